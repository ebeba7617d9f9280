"""How likely drawn tokens were under the model's own distribution, and which were the likeliest at their place.

Gathered on the device for the rows that asked, and read when the tokens are. Knows logits as the model gave them;
nothing of what a row does to them before its draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlxrpc_server.engine.filters import key
from mlxrpc_server.engine.some import Some
from mlxrpc_server.types import LogProbs

_LOW_BITS = 2**32


@dataclass(frozen=True, slots=True)
class Unread:
    """One step's log-probabilities, of the rows that asked."""

    rows: Sequence[int]
    """Their places among all rows."""
    tops: Sequence[int]
    """How many of the likeliest each asked for."""
    chosen: mx.array
    ids: mx.array
    values: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        return [self.chosen, self.ids, self.values]

    def read(self) -> dict[int, LogProbs]:
        """By the rows' places; waits for the device."""
        chosen = cast("list[float]", self.chosen.tolist())
        ids, values = cast("list[list[int]]", self.ids.tolist()), cast("list[list[float]]", self.values.tolist())
        columns = zip(self.rows, self.tops, chosen, ids, values, strict=True)
        return {
            row: LogProbs(own, tuple(ids[:top]), tuple(likeliest[:top])) for row, top, own, ids, likeliest in columns
        }


class Asked:
    """Who wants log-probabilities among the rows, and of how many tokens beside its own; -1 for none at all."""

    def __init__(self, tops: Sequence[int]) -> None:
        self._some = Some([top >= 0 for top in tops])
        self._rows = [row for row, top in enumerate(tops) if top >= 0]
        self._tops = [tops[row] for row in self._rows]

    def of(self, logits: mx.array, tokens: mx.array) -> Unread | None:
        """Of the tokens drawn, lazily; None where no row asks."""
        if not self._some:
            return None
        own = self._some.of(logits).astype(mx.float32)
        total = mx.logsumexp(own, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(own, self._some.of(tokens)[:, None], axis=-1) - total
        ids, values = likeliest(own, max(self._tops))
        return Unread(self._rows, self._tops, chosen[:, 0], ids, values - total)


def likeliest(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids and logits of each row's so many likeliest tokens in order, of equals the lower id first.

    They all lie in as many groups of neighbours: those with the largest maxima. So a vocabulary is passed over once,
    and what is sorted is small.
    """
    rows, width = logits.shape
    count = min(count, width)
    if not count:
        return mx.zeros((rows, 0), dtype=mx.int32), mx.zeros((rows, 0))
    size = _group_size(width, count)
    groups = mx.pad(logits, [(0, 0), (0, -width % size)], constant_values=-mx.inf).reshape(rows, -1, size)
    best, _ = _sorted(groups.max(axis=-1), mx.arange(groups.shape[1], dtype=mx.int32)[None], count)
    ids = best[:, :, None] * size + mx.arange(size, dtype=mx.int32)
    values = mx.take_along_axis(groups, best[:, :, None], axis=1)
    return _sorted(values.reshape(rows, -1), ids.reshape(rows, -1), count)


def _group_size(width: int, count: int) -> int:
    """So that there are about as many groups as members of the chosen ones; a power of two divides most vocabularies."""
    return int(2 ** round(math.log2(math.sqrt(width / count))))


def _sorted(values: mx.array, ids: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids and values of the largest, in order. One integer holds both, so that equals have an order as well."""
    values = values + 0.0  # no zero with a sign: it would come behind the other
    keys = key(values.view(mx.int32)).astype(mx.int64) * _LOW_BITS - ids.astype(mx.int64)
    width = keys.shape[-1]
    if count < width:
        keys = mx.partition(keys, kth=width - count, axis=-1)[:, width - count :]
    keys = mx.sort(keys, axis=-1)[:, ::-1]
    # What was subtracted is below 2^31: rounded up to the next multiple, the value is there again.
    high = (keys + (_LOW_BITS - 1)) >> 32
    return (high * _LOW_BITS - keys).astype(mx.int32), key(high.astype(mx.int32)).view(mx.float32)
