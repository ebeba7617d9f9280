"""Models that could not be loaded: why, and until when nobody tries again.

Each failure in a row doubles the wait, so that requests for a broken model neither evict others again and again nor
lock it out for good. Pure: the time is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxrpc_server.errors import ServerError
from mlxrpc_server.types import ModelName

FIRST_WAIT = 5.0
LONGEST_WAIT = 300.0


@dataclass(frozen=True, slots=True)
class _Failure:
    error: ServerError
    times: int
    retry_at: float


class Failures:
    def __init__(self) -> None:
        self._failures: dict[ModelName, _Failure] = {}

    def note(self, name: ModelName, error: ServerError, now: float) -> float:
        """Remembers it; gives how many seconds it stands."""
        before = self._failures.get(name)
        times = before.times + 1 if before else 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (times - 1))
        self._failures[name] = _Failure(error, times, now + wait)
        return wait

    def clear(self, name: ModelName) -> None:
        self._failures.pop(name, None)

    def current(self, name: ModelName, now: float) -> ServerError | None:
        """The error, while it stands."""
        failure = self._failures.get(name)
        return failure.error if failure and now < failure.retry_at else None
