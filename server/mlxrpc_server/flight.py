"""One request on its way through a model's worker: what was sent down, and what has come back of it.

Outlives the worker: its prompt and tokens are all that a new worker needs to take it up again. No I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ServerError
from mlxrpc_server.types import RowId, Sampling

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Orders:
    """What the engine is to do."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class News:
    """Everything since the last news."""

    tokens: list[int]
    prefilled: int
    left: wire.Left | None


class Flight:
    def __init__(self, row: RowId, orders: Orders, produced: Sequence[int], clock: Clock) -> None:
        self.row = row
        self.orders = orders
        self.produced = list(produced)
        self.prefilled = 0
        self.submitted_at = clock()
        self.began_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self._clock = clock
        self._told = len(self.produced)
        self._at_submission = len(self.produced)
        self._strikes = 0
        self._left: wire.Left | None = None
        self._error: ServerError | None = None
        self._wake = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._left is not None or self._error is not None

    @property
    def to_prefill(self) -> int:
        """Prompt tokens that stand between this request and its next token."""
        if len(self.produced) > self._at_submission:
            return 0
        return max(0, len(self.orders.prompt) - self.prefilled)

    def submission(self) -> wire.Submit:
        """The message that begins it, or that takes it up again behind what it has."""
        self._at_submission = len(self.produced)
        self.prefilled = 0
        return wire.Submit(
            row=self.row,
            prompt=list(self.orders.prompt),
            produced=list(self.produced),
            sampling=self.orders.sampling,
            max_tokens=self.orders.max_tokens,
            stop_ids=sorted(self.orders.stop_ids),
        )

    def crashed(self) -> int:
        """Counts a worker's death against it; gives how many it has seen since it last gained a token."""
        gained = len(self.produced) > self._at_submission
        self._strikes = 0 if gained else self._strikes + 1
        return self._strikes

    def advance(self, prefilled: int, seconds: float = 0.0) -> None:
        """So much of the prompt is computed, by a step that took so long."""
        self._begin(seconds)
        self.prefilled = prefilled
        self._wake.set()

    def append(self, token: int) -> None:
        self._begin(0.0)
        self.last_token_at = self._clock()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at
        self.produced.append(token)
        self._wake.set()

    def leave(self, reason: wire.Left) -> None:
        self._left = reason
        self._wake.set()

    def fail(self, error: ServerError) -> None:
        if not self.ended:
            self._error = error
            self._wake.set()

    async def begun(self) -> None:
        """Waits until the engine has taken it up. Until then it may be refused as if it had never come."""
        await self._wake.wait()
        if self._error is not None and self.began_at is None:
            raise self._error

    async def news(self) -> News:
        """Waits until there is any. What came before an error is told before it is raised."""
        await self._wake.wait()
        if not self.ended:
            self._wake.clear()
        tokens, self._told = self.produced[self._told :], len(self.produced)
        if self._error is not None and not tokens:
            raise self._error
        return News(tokens, self.prefilled, self._left)

    def _begin(self, seconds: float) -> None:
        if self.began_at is None:
            self.began_at = max(self.submitted_at, self._clock() - seconds)
