"""Draws the next token of every row, in one call for all of them.

A draw is a pure function of the row's logits, its seed, the absolute position of the token drawn and the token's
id: not of the row's neighbours, nor of its place among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx

from mlxrpc_server.engine import candidates
from mlxrpc_server.engine.filters import Filters
from mlxrpc_server.engine.kernels import draw as fused
from mlxrpc_server.engine.noise import chance, gumbel
from mlxrpc_server.engine.penalties import History, Penalties
from mlxrpc_server.engine.some import Some, column
from mlxrpc_server.types import Sampling

_COLDEST = 1e-6
"""Temperatures between 0 and this draw as this: logits over less would leave float32's range."""


class Draws:
    """The rows' sampling as columns. Rebuilt when a row joins or leaves, not at every step.

    Histories matter to rows with penalties alone. `unread` has one token for each row that its history lacks yet,
    or -1; tokens drawn here need no telling.
    """

    def __init__(
        self, rows: Sequence[Sampling], histories: Sequence[History] = (), unread: mx.array | None = None
    ) -> None:
        self._penalties = Penalties(rows, histories, unread)
        self._rows = rows
        fusible = [_fusible(row) for row in rows]
        self._fused = _fused(_greedy_but(rows, fusible)) if any(fusible) else None
        self._rest = _Sampled(rows, [row.temperature > 0 and not one for row, one in zip(rows, fusible, strict=True)])

    def draw(self, logits: mx.array, positions: mx.array) -> mx.array:
        """One token for each row of `logits`; `positions` are those of the tokens drawn."""
        logits = self._penalised(logits)
        tokens = self._drawn(logits, positions)
        self._penalties.push(tokens)
        return tokens

    def scores(self, logits: mx.array, positions: mx.array) -> mx.array:
        """What a draw takes the largest of, for tests: they ask how nearly two candidates tie."""
        logits = self._penalised(logits)
        sampled = _Sampled(self._rows, [row.temperature > 0 for row in self._rows])
        return sampled.put(logits, sampled.scores(logits, positions)) if sampled else logits

    def _penalised(self, logits: mx.array) -> mx.array:
        return self._penalties.apply(logits.astype(mx.float32)) if self._penalties else logits

    def _drawn(self, logits: mx.array, positions: mx.array) -> mx.array:
        if self._rest.all:
            return mx.argmax(self._rest.scores(logits, positions), axis=-1)
        tokens = self._fused(logits, positions) if self._fused else mx.argmax(logits, axis=-1)
        if self._rest:
            tokens = self._rest.put(tokens, mx.argmax(self._rest.scores(logits, positions), axis=-1))
        return tokens


def _fusible(row: Sampling) -> bool:
    """Whether there is a quicker way on this device to all of the row's draw."""
    known = row.xtc_probability == 0 and row.min_tokens_to_keep == 1
    return row.temperature > 0 and known and (fused.suits(mx.float32) or candidates.suits())


def _fused(rows: Sequence[Sampling]) -> Callable[[mx.array, mx.array], mx.array]:
    """That way: from logits and positions to tokens."""
    if candidates.suits():
        return candidates.Rows(rows, _COLDEST).draw
    return functools.partial(fused.draw, columns=fused.columns(rows, _COLDEST))


def _greedy_but(rows: Sequence[Sampling], chosen: Sequence[bool]) -> list[Sampling]:
    return [row if one else replace(row, temperature=0.0) for row, one in zip(rows, chosen, strict=True)]


class _Sampled(Some):
    """The rows among all that draw their token here. Greedy ones are spared the work."""

    def __init__(self, rows: Sequence[Sampling], chosen: Sequence[bool]) -> None:
        super().__init__(chosen)
        sampled = [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
        self._filters = Filters(sampled)
        self._temperature = column([max(row.temperature, _COLDEST) for row in sampled])
        self._seed_low = mx.array([row.seed & 0xFFFFFFFF for row in sampled], dtype=mx.uint32)
        self._seed_high = mx.array([row.seed >> 32 for row in sampled], dtype=mx.uint32)

    def scores(self, logits: mx.array, positions: mx.array) -> mx.array:
        """These rows' alone; of the logits of all."""
        logits = self.of(logits).astype(mx.float32)
        below = logits - mx.max(logits, axis=-1, keepdims=True)
        keys = self._seed_low, self._seed_high, self.of(positions)
        noise = gumbel(*keys, logits.shape[-1])
        chances = chance(*keys) if self._filters.take_chances else None
        return self._filters.apply(below / self._temperature + noise, below, chances)
