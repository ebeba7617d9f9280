"""Feeds prompts beside the rows that decode: in chunks as long as the pace allows, short ones together.

Knows the model, the KV and what is kept of rows' beginnings; not who may run, and nothing of what rows draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.admission import Admission
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.outcome import Outcome
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.reuse import Reuse, evaluate
from mlxrpc_server.engine.row import Row

PADDING = 1.5
"""Prompts are prefilled together while that feeds at most so many times their tokens."""

LONGEST = 2048
"""Tokens of a row's chunk: where attention is not fused, its memory grows with their square."""


class Prefill:
    def __init__(
        self, model: Any, kv: KV, rows: Admission, reuse: Reuse, pace: Pace, clock: Callable[[], float]
    ) -> None:
        self._model = model
        self._kv = kv
        self._rows = rows
        self._reuse = reuse
        self._pace = pace
        self._clock = clock

    def feed(self, outcome: Outcome) -> int:
        """In order of arrival, as many tokens as the step's budget allows. Gives how many are still to be timed: those
        that nobody here has waited for."""
        if not self._rows.prefilling:
            return 0
        begun = self._clock()
        decoding = len(self._rows.decoding)
        budget = self._pace.budget(decoding=decoding, joining=len(self._rows.prefilling))
        fed = spent = 0
        while self._rows.prefilling and spent < budget:
            tokens = self._feed_group(list(self._group(budget - spent)), budget - spent, outcome)
            fed += tokens
            spent += max(1, tokens) + self._pace.overhead
        if decoding and self._kv.ahead:
            return fed
        outcome.prefill_seconds = self._clock() - begun
        self._pace.prefilled(fed, outcome.prefill_seconds)
        return 0

    def _group(self, budget: int) -> Iterator[Row]:
        """The row whose turn it is, and those behind it that can be fed with it."""
        first = self._rows.prefilling[0]
        self._reuse.recall(first)
        yield first
        if not self._kv.joint or first.cache or first.to_prefill > min(budget, LONGEST):
            return
        longest = tokens = first.to_prefill
        for rows, row in enumerate(self._rows.prefilling[1:], start=2):
            self._reuse.recall(row)
            longest, tokens = max(longest, row.to_prefill), tokens + row.to_prefill
            too_much = rows * longest > PADDING * tokens or self._fed(rows, longest) > budget or longest > LONGEST
            if row.cache or row.cached != first.cached or too_much:
                row.rewind()  # by its own turn, more may be kept, or less
                return
            yield row

    def _fed(self, rows: int, longest: int) -> int:
        """Tokens that the model takes, padding among them."""
        return self._kv.sizes.rows(rows) * self._kv.sizes.width(longest) if longest else 0

    def _feed_group(self, group: Sequence[Row], budget: int, outcome: Outcome) -> int:
        """Gives the number of tokens fed: none for rows of one token, which are decoding's."""
        cache = group[0].cache or self._begun(group, outcome)
        chunks = [row.context(row.cached, row.cached + self._chunk(row, budget)) for row in group]
        padded = self._padded(chunks, last=len(chunks[0]) == group[0].to_prefill)
        if padded.size:
            self._model(padded, cache=cache)
            evaluate([layer.state for layer in cache], wait=self._waits)
        for row, chunk in zip(group, chunks, strict=True):
            row.cached += len(chunk)
            outcome.prefilled.append((row.id, row.cached))
        if group[0].to_prefill:
            group[0].cache = cache
            self._reuse.keep_halfway(group[0], wait=self._waits)
        else:
            self._join(group, cache)
        return padded.size

    def _chunk(self, row: Row, budget: int) -> int:
        most = min(budget, LONGEST)
        return row.next_halt if row.next_halt <= most else self._kv.sizes.chunk(most)

    def _padded(self, chunks: Sequence[list[int]], *, last: bool) -> mx.array:
        """Nothing that is padded is ever attended to: attention is causal, and the KV takes each row's own tokens."""
        sizes, longest = self._kv.sizes, max(map(len, chunks))
        width = sizes.width(longest) if last and longest else longest
        padded = [[*chunk, *[0] * (width - len(chunk))] for chunk in chunks]
        return mx.array(padded + [[0] * width] * (sizes.rows(len(chunks)) - len(chunks)))

    def _begun(self, group: Sequence[Row], outcome: Outcome) -> list[Any]:
        kept = [row.kept for row in group]
        cache = self._kv.open(kept + kept[:1] * (self._kv.sizes.rows(len(group)) - len(group)))
        if group[0].cached:
            # Before anything that is kept may be dropped.
            evaluate([layer.state for layer in cache], wait=self._waits)
        for row in group:
            outcome.cached.append((row.id, row.cached))
            row.kept = ()
        return cache

    @property
    def _waits(self) -> bool:
        return not (self._rows.decoding and self._kv.ahead)

    def _join(self, group: Sequence[Row], cache: list[Any]) -> None:
        self._kv.join([row.id for row in group], cache, [row.cached for row in group])
        for row in group:
            row.cache = []
            self._rows.join(row)
            self._reuse.keep(row)
