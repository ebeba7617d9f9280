"""What is wrong with a request, gathered while it is read. Knows paths and sentences, not the contract."""

from __future__ import annotations

from typing import NoReturn

from mlxrpc_server.errors import InvalidRequest, Violation, not_supported, shortened

MAX_FAULTS = 1000
"""A request with so many faults is answered before the rest of it is read: nobody is shown more, and each takes memory."""


class Faults:
    """What has been found wrong with one request so far."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, path: str, description: str) -> None:
        self._add(Violation(path, description))

    def too_long(self, path: str, given: str, most: int) -> None:
        self.add(path, f"{shortened(given)!r} has {len(given):,} characters; at most {most} are allowed")

    def not_supported(self, path: str) -> None:
        self._add(not_supported(path))

    def refuse_any(self) -> None:
        if self._found:
            self._refuse()

    def _add(self, violation: Violation) -> None:
        self._found.append(violation)
        if len(self._found) >= MAX_FAULTS:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise InvalidRequest(self._found)
