"""Feeds prompts beside the rows that decode: in chunks as long as the pace allows, short ones together.

Knows the model, the KV and what is kept of rows' beginnings; not who may run, and nothing of what rows draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.admission import Admission
from mlxrpc_server.engine.given import given
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.outcome import Outcome
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.reuse import Reuse, evaluate
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sizes import LONGEST

PADDING = 1.5
"""Prompts are prefilled together while that feeds at most so many times their tokens."""

STEPS = 4
"""Of the rows that decode, for which prompts are put together."""


@dataclass(slots=True)
class Pass:
    """Some rows' chunks on their way through the model, a few layers with each step of the rows that decode."""

    rows: Sequence[Row]
    cache: list[Any]
    start: int
    """What each row held before."""
    tokens: list[int]
    """Of each row's chunk."""
    last: bool
    """Whether they end the rows' prompts."""
    fed: int
    """Tokens that the model takes, padding among them."""
    left: list[list[Any]]
    """Layers that are still to be dispatched, part by part."""

    def cut(self, parts: int) -> None:
        layers = [layer for part in self.left for layer in part]
        each = -(-len(layers) // parts) or 1
        self.left = [layers[first : first + each] for first in range(0, len(layers), each)]

    def dispatch(self, *, wait: bool) -> None:
        """The next part."""
        if self.left:
            evaluate(self.left.pop(0), wait=wait)


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
        self._pass: Pass | None = None

    def clear(self) -> None:
        self._pass = None

    def feed(self, outcome: Outcome) -> int | None:
        """In order of arrival, as many tokens as the step's budget allows.

        Where rows decode ahead nobody waits here: gives how many tokens are through with this step, for whoever times
        it. None where nothing is fed beside it.
        """
        if self._pass and not any(self._rides(row, self._pass) for row in self._pass.rows):
            self._pass = None
        if not self._rows.prefilling:
            return None
        if self._waits:
            self._feed_alone(outcome)
            return None
        return self._feed_beside(outcome)

    def _feed_alone(self, outcome: Outcome) -> None:
        begun, from_start = self._clock(), self._pass is None
        decoding, joining = len(self._rows.decoding), len(self._rows.prefilling)
        budget = self._pace.budget(decoding=decoding, joining=joining)
        fed = spent = 0
        while self._rows.prefilling and spent < budget:
            one = self._pass or self._begun(budget - spent, outcome)
            one.cut(1)
            one.dispatch(wait=True)
            self._end(one, outcome)
            fed += one.fed
            spent += max(1, one.fed) + self._pace.overhead
        outcome.prefill_seconds = self._clock() - begun
        if from_start:
            self._pace.prefilled(fed, outcome.prefill_seconds)

    def _feed_beside(self, outcome: Outcome) -> int:
        """One part of a pass that is shared by steps, or as many whole ones as there is time for.

        To build a pass takes a part's time, and so does letting its rows join: neither is done beside a part.
        """
        fed = spent = 0
        if one := self._pass:
            if one.left:
                one.dispatch(wait=False)
                return 0
            self._end(one, outcome)
            fed += one.fed
        crowd = {"decoding": len(self._rows.decoding), "joining": len(self._rows.prefilling)}
        budget, most = self._pace.budget(**crowd), self._pace.budget(**crowd, parts=STEPS)
        while self._rows.prefilling and spent < budget:
            self._pass = one = self._begun(most - spent, outcome)
            one.cut(self._pace.parts(one.fed, **crowd))
            if len(one.left) > 1:
                break
            one.dispatch(wait=False)
            self._end(one, outcome)
            fed += one.fed
            spent += max(1, one.fed) + self._pace.overhead
        return fed

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
            fed = self._kv.sizes.rows(rows) * self._width(longest, first.cached)
            too_much = rows * longest > PADDING * tokens or fed > budget or longest > LONGEST
            if row.cache or row.cached != first.cached or too_much:
                row.rewind()  # by its own turn, more may be kept, or less
                return
            yield row

    def _width(self, longest: int, start: int) -> int:
        """To which last chunks are padded that begin behind so many tokens."""
        if not longest:
            return 0
        return self._kv.sizes.rest(longest) if start else self._kv.sizes.width(longest)

    def _begun(self, budget: int, outcome: Outcome) -> Pass:
        """None of its layers is dispatched yet. Where all rows have one token, which is decoding's, there are none."""
        group = list(self._group(budget))
        cache, start = group[0].cache or self._opened(group, outcome), group[0].cached
        chunks = [row.context(start, start + self._chunk(row, budget)) for row in group]
        last = len(chunks[0]) == group[0].to_prefill
        longest = max(map(len, chunks))
        padded = self._padded(chunks, self._width(longest, start) if last else longest)
        if padded.size:
            self._model(padded, cache=cache)
        for row in group:
            row.cache = cache
        layers = [layer.state for layer in cache] if padded.size else []
        return Pass(group, cache, start, list(map(len, chunks)), last, padded.size, [layers])

    def _end(self, one: Pass, outcome: Outcome) -> None:
        self._pass = None
        for row, tokens in zip(one.rows, one.tokens, strict=True):
            if self._rides(row, one):
                row.cached += tokens
                outcome.prefilled.append((row.id, row.cached))
        if one.last:
            self._join(one)
        elif self._rides(one.rows[0], one):
            self._reuse.keep_halfway(one.rows[0], wait=self._waits)

    def _chunk(self, row: Row, budget: int) -> int:
        most = min(budget, LONGEST)
        return (
            row.next_halt if row.next_halt <= most else min(row.next_halt, self._kv.sizes.chunk(most), self._pace.most)
        )

    def _padded(self, chunks: Sequence[list[int]], width: int) -> mx.array:
        """Nothing that is padded is ever attended to: attention is causal, and the KV takes each row's own tokens."""
        rows = self._kv.sizes.rows(len(chunks))
        padded = [token for chunk in chunks for token in (*chunk, *[0] * (width - len(chunk)))]
        return given([*padded, *[0] * (width * rows - len(padded))], mx.int32).reshape(rows, width)

    def _opened(self, group: Sequence[Row], outcome: Outcome) -> list[Any]:
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

    def _rides(self, row: Row, one: Pass) -> bool:
        """Not where it was cancelled or sent back since, even if it is to begin again by now."""
        return row.cache is one.cache and row in self._rows.prefilling

    def _join(self, one: Pass) -> None:
        self._kv.join([row.id for row in one.rows], one.cache, [one.start + tokens for tokens in one.tokens])
        for row in one.rows:
            if self._rides(row, one):
                row.cache = []
                self._rows.join(row)
                self._reuse.keep(row)
            else:
                self._kv.leave(row.id)
