"""One request on its way through a model's worker: what was sent down, and what has come back of it.

Outlives the worker: its prompt and tokens are all that a new worker needs to take it up again. No I/O, no clock:
times are those of whoever tells it something. Whoever waits for its news is one task, the call's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ServerError
from mlxrpc_server.types import SHARED, Cache, LogProbs, RowId, Sampling


@dataclass(frozen=True, slots=True)
class Orders:
    """What the engine is to do."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]
    logprobs: int = -1
    """Of how many of the likeliest tokens beside each drawn one; -1 for none at all."""
    min_tokens: int = 0
    constraint: wire.Constraint | None = None
    budget: wire.Budget | None = None
    """Of its reasoning."""
    cache: Cache = SHARED


class News(NamedTuple):
    """Everything since the last news."""

    tokens: list[int]
    prefilled: int
    left: wire.Left | None


class Flight:
    def __init__(self, row: RowId, orders: Orders, produced: Sequence[int], now: float) -> None:
        self.row = row
        self.orders = orders
        self.produced = list(produced)
        self.logprobs: deque[LogProbs] = deque()
        """Of the new tokens, where they are asked for; whoever has told a token's takes them out."""
        self.prefilled = 0
        self.cached: int | None = None
        """Tokens that were not computed when it began; None before."""
        self.submitted_at = now
        self.began_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self._told = len(self.produced)
        self._at_submission = len(self.produced)
        self._strikes = 0
        self.cause = ""
        """Why it left, where the reason alone does not say it."""
        self._left: wire.Left | None = None
        self._error: ServerError | None = None
        self._untold = False
        self._reader: asyncio.Future[None] | None = None

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
            logprobs=self.orders.logprobs,
            min_tokens=self.orders.min_tokens,
            constraint=self.orders.constraint,
            budget=self.orders.budget,
            tenant=self.orders.cache.tenant,
            bypass=self.orders.cache.bypass,
        )

    def crashed(self) -> int:
        """Counts a worker's death against it; gives how many it has seen since it last gained a token."""
        gained = len(self.produced) > self._at_submission
        self._strikes = 0 if gained else self._strikes + 1
        return self._strikes

    def begin_behind(self, cached: int) -> None:
        """So much of it is known, and is not computed. What it finds when it begins again may be its own."""
        self.prefilled = cached
        if self.cached is None:
            self.cached = cached

    def advance(self, prefilled: int, now: float, seconds: float = 0.0) -> None:
        """So much of the prompt is computed, by a step that took so long."""
        self._begin(now - seconds)
        self.prefilled = prefilled
        self._tell()

    def append(self, token: int, now: float, logprobs: LogProbs | None = None) -> None:
        if self.first_token_at is None:
            self._begin(now)
            self.first_token_at = now
        self.last_token_at = now
        self.produced.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self._tell()

    def leave(self, reason: wire.Left, cause: str = "") -> None:
        self._left = reason
        self.cause = cause
        self._tell()

    def fail(self, error: ServerError) -> None:
        if not self.ended:
            self._error = error
            self._tell()

    async def begun(self) -> None:
        """Waits until the engine has taken it up. Until then it may be refused as if it had never come."""
        await self._told_something()
        if self._error is not None and self.began_at is None:
            raise self._error

    async def news(self) -> News:
        """Waits until there is any. What came before an error is told before it is raised."""
        if not self._untold:
            await self._told_something()
        self._untold = self.ended
        tokens, self._told = self.produced[self._told :], len(self.produced)
        if self._error is not None and not tokens:
            raise self._error
        return News(tokens, self.prefilled, self._left)

    def _begin(self, at: float) -> None:
        if self.began_at is None:
            self.began_at = max(self.submitted_at, at)

    def _tell(self) -> None:
        self._untold = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _told_something(self) -> None:
        """A bare future: an Event costs three times as much, and this is done for every token."""
        if not self._untold:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
