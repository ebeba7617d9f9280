"""Rows of models that remember otherwise than by plain keys and values, decoded together by mlx-lm's own means.

Sliding windows, states, and keys and values beside them: mlx-lm merges the caches of several rows into one, with
padding before the shorter ones. A row that is alone keeps its own cache, which needs no mask. Knows tokens and caches,
not requests; nothing here is evaluated before somebody asks for a step's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from mlxrpc_server.engine.caches import flat, opened, price, snapshot
from mlxrpc_server.engine.kv import Beginnings
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.sizes import EXACT
from mlxrpc_server.types import RowId


def suits(caches: Sequence[Any]) -> bool:
    """Whether mlx-lm can merge rows of these, and rightly so: a merged window loses the tokens that it was to keep."""
    return all(
        type(cache) in (KVCache, ArraysCache) or (type(cache) is RotatingKVCache and cache.keep == 0)
        for cache in flat(caches)
    )


class Merged:
    """One cache of mlx-lm's for all rows; a row that joins, or has nothing behind it yet, is apart in its own."""

    joint = False
    whole = True
    sizes = EXACT

    def __init__(self, model: Any, sample: Sequence[Any], room: Room) -> None:
        """The sample is a row's caches behind one token."""
        self._model = model
        self._room = room
        self._prices = [price(cache) for cache in flat(sample)]
        self._rows: list[RowId] = []
        self._cache: list[Any] = []
        self._gone: set[RowId] = set()
        self._apart: dict[RowId, _Apart] = {}
        self.ahead = not any(price.column for price in self._prices)
        """Only where there is nothing but states: a step replaces those anyhow."""

    @property
    def nbytes(self) -> int:
        caches = [*self._cache, *(cache for apart in self._apart.values() for cache in apart.cache)]
        return sum(cache.nbytes for cache in caches)

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        return self._room.holds(lengths, len(lengths) * self._row_bytes(max(lengths, default=0)), beside)

    def _row_bytes(self, longest: int) -> float:
        """Of each row: the padding before it costs as much as the tokens of the longest, whose last one is still to be
        fed. Merged caches grow by a whole step from there."""
        return sum(price.of(longest - 1 + KVCache.step) for price in self._prices)

    def open(self, kept: Beginnings = ()) -> list[Any]:
        return opened(self._model, kept)

    def keep(self, row: RowId, _start: int, _end: int) -> Kept:
        if row in self._apart:
            return snapshot(self._apart[row].cache)
        return snapshot([cache.extract(self._rows.index(row)) for cache in self._cache])

    def drop(self, kept: Kept) -> None:
        pass

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        (row,), (length,) = rows, lengths
        self._apart[row] = _Apart(cache, fed=length > 0)

    def leave(self, row: RowId) -> None:
        """At the next arrangement, with all others that have left by then: each time copies what remains.

        The last one takes everything with it at once: there may be no arrangement for long.
        """
        if self._apart.pop(row, None) is None:
            self._gone.add(row)
        if not self._apart and len(self._gone) == len(self._rows):
            self.clear()

    def arrange(self) -> Sequence[RowId]:
        self._drop_gone()
        if len(self._rows) + len(self._apart) > 1:
            # What has seen no token is not merged yet: mlx-lm would mask such states in every step from then on.
            self._merge([row for row, apart in self._apart.items() if apart.fed])
        return [*self._rows, *self._apart]

    def decode(self, tokens: mx.array) -> mx.array:
        merged = len(self._rows)
        passes = [self._pass(tokens[:merged], self._cache)] if merged else []
        for place, apart in enumerate(self._apart.values(), start=merged):
            passes.append(self._pass(tokens[place : place + 1], apart.cache))
            apart.fed = True
        return mx.concatenate(passes) if len(passes) > 1 else passes[0]

    def clear(self) -> None:
        self._rows, self._cache = [], []
        self._gone.clear()
        self._apart.clear()

    def _drop_gone(self) -> None:
        kept = [place for place, row in enumerate(self._rows) if row not in self._gone]
        if kept and len(kept) < len(self._rows):
            for cache in self._cache:
                cache.filter(mx.array(kept))
        self._rows = [self._rows[place] for place in kept]
        if not kept:
            self._cache = []
        self._gone.clear()

    def _merge(self, rows: Sequence[RowId]) -> None:
        if not rows:
            return
        each = [self._apart.pop(row).cache for row in rows]
        merged = [type(layer[0]).merge(layer) for layer in zip(*each, strict=True)]
        if self._cache:
            for cache, other in zip(self._cache, merged, strict=True):
                cache.extend(other)
        else:
            self._cache = merged
        self._rows += rows

    def _pass(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """With what the step leaves in the cache computed beside the logits: mlx-lm counts in arrays which some layers
        never read, and each step would hang another sum on them."""
        logits: mx.array = self._model(tokens[:, None], cache=cache)[:, -1]
        state: Any = tree_flatten([layer.state for layer in cache])
        arrays = [value for _, value in state if isinstance(value, mx.array)]
        depending: list[mx.array] = mx.depends([logits], arrays)
        return depending[0]


@dataclass(slots=True)
class _Apart:
    """A row in its own cache."""

    cache: list[Any]
    fed: bool
    """Whether anything has been fed into it."""
