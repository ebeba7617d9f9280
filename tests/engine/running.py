"""A batch in this process, and rows for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.outcome import Outcome
from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId, Sampling
from tests.engine.rows import for_model

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)


class HandClock:
    """Advances by so many seconds whenever it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.tick = tick
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self.tick
        return self._now


class Run:
    """A batch, and all that its steps told of each row."""

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        *,
        max_rows: int = 64,
        prefill_tokens: int = 2048,
        kv_bytes: int = 1 << 40,
        clock: Callable[[], float] | None = None,
        ahead: bool = False,
        kv_bits: int | None = None,
        kv: KV | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        kv = kv or for_model(model, Room(max_rows, kv_bytes), kv_bits)
        kv.ahead = ahead
        limits = {"max_rows": max_rows, "prefill_tokens": prefill_tokens, "prefix_bytes": prefix_bytes}
        self.batch = Batch(model, kv, **limits, clock=clock or HandClock())
        self.outcomes: list[Outcome] = []
        self.most_bytes = 0
        """What keys and values took at most while more than one row was in the layout."""

    def step(self, times: int = 1) -> Outcome:
        for _ in range(times):
            self.outcomes.append(self.batch.step())
            if len(self.outcomes[-1].tokens) > 1:
                self.most_bytes = max(self.most_bytes, self.batch.nbytes)
        return self.outcomes[-1]

    @property
    def preempted(self) -> list[int]:
        return [row for outcome in self.outcomes for row in outcome.preempted]

    def to_end(self) -> Run:
        while not self.batch.idle:
            self.step()
        return self

    def tokens(self, id: int) -> list[int]:
        return [token for outcome in self.outcomes for row, token in outcome.tokens if row == id]

    def cached(self, id: int) -> list[int]:
        """How much of it was not computed, each time that it began."""
        return [tokens for outcome in self.outcomes for row, tokens in outcome.cached if row == id]

    def left(self, id: int) -> list[Left]:
        return [reason for outcome in self.outcomes for row, reason in outcome.left if row == id]


def row(
    id: int,
    prompt: Sequence[int],
    max_tokens: int = 4,
    sampling: Sampling = GREEDY,
    produced: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
    **settings: Any,
) -> Row:
    return Row(RowId(id), prompt, list(produced), sampling, max_tokens, frozenset(stop_ids), **settings)


def alone(model: Any, one: Row, kv_bits: int | None = None) -> list[int]:
    run = Run(model, kv_bits=kv_bits)
    run.batch.submit(row(one.id, one.prompt, one.max_tokens, one.sampling, one.produced, sorted(one.stop_ids)))
    return run.to_end().tokens(one.id)
