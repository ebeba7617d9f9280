"""top_p, min_p and top_k: which tokens may be drawn.

Each counts the full distribution and keeps the likeliest tokens, so their order does not matter. Only top_k parts
tokens that are equally likely. Knows logits whose largest is 0 in each row; neither temperature nor noise.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlxrpc_server.engine.some import Some, column
from mlxrpc_server.types import Sampling

_FEW = 256
"""So many tokens are sorted at once on a CPU, where sorting is dear and halving cheap."""


class Filters:
    """The rows' filters as columns. A row without any costs nothing where no other has one."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._any_min_p = any(row.min_p > 0 for row in rows)
        self._least = mx.log(column([row.min_p for row in rows]))
        self._with_top_p = Some([row.top_p < 1 for row in rows])
        self._with_top_k = Some([row.top_k > 0 for row in rows])
        self._top_p = _TopP([row for row in rows if row.top_p < 1])
        self._top_k = _TopK([row.top_k for row in rows if row.top_k > 0])

    def apply(self, scores: mx.array, logits: mx.array) -> mx.array:
        """The scores of what may be drawn, and -inf for the rest."""
        masks = list(self._masks(logits))
        return mx.where(functools.reduce(operator.and_, masks), scores, -mx.inf) if masks else scores

    def _masks(self, logits: mx.array) -> Iterator[mx.array]:
        everything = mx.ones(logits.shape, dtype=mx.bool_)
        if self._with_top_p:
            yield self._with_top_p.put(everything, self._top_p.kept(self._with_top_p.of(logits)))
        if self._any_min_p:
            yield logits >= self._least
        if self._with_top_k:
            yield self._with_top_k.put(everything, self._top_k.kept(self._with_top_k.of(logits)))


class _TopP:
    """The smallest set of likeliest tokens whose mass reaches top_p; ties with its last member stay."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._shares = column([row.top_p for row in rows])
        self._top_ks = [row.top_k for row in rows]

    def kept(self, logits: mx.array) -> mx.array:
        masses = mx.exp(logits)
        wanted = self._shares * masses.sum(axis=-1, keepdims=True)
        likeliest = _largest(masses.view(mx.int32), self._depth(logits.shape[-1]))
        return masses >= _edge(likeliest, wanted)

    def _depth(self, width: int) -> int:
        """How many tokens can matter: top_k removes what is further down."""
        return max(top_k if 0 < top_k < width else width for top_k in self._top_ks)


def _edge(masses: mx.array, wanted: mx.array) -> mx.array:
    """The least of the largest masses that reach what is wanted. Masses are their bits: as integers they sort faster."""
    above = mx.zeros_like(wanted)
    few = _FEW if mx.default_device() == mx.Device(mx.cpu) else masses.shape[-1]
    while masses.shape[-1] > few:
        masses, above = _half_with_edge(masses, above, wanted)
    ordered = mx.sort(masses, axis=-1)[:, ::-1].view(mx.float32)
    before = above + mx.cumsum(ordered, axis=-1, inclusive=False)
    kept = mx.maximum((before < wanted).sum(axis=-1, keepdims=True), 1)
    return mx.take_along_axis(ordered, kept - 1, axis=-1)


def _half_with_edge(masses: mx.array, above: mx.array, wanted: mx.array) -> tuple[mx.array, mx.array]:
    """The larger half where it reaches what is wanted, else the smaller one; and the mass of all that are larger."""
    if masses.shape[-1] % 2:
        masses = mx.pad(masses, [(0, 0), (1, 0)])
    half = masses.shape[-1] // 2
    smaller, larger = mx.split(mx.partition(masses, kth=half, axis=-1), 2, axis=-1)
    reached = above + larger.view(mx.float32).sum(axis=-1, keepdims=True)
    enough = reached >= wanted
    return mx.where(enough, larger, smaller), mx.where(enough, above, reached)


class _TopK:
    """The k likeliest tokens; of equals at the edge, those with the lower ids. The vocabulary's size and above is off."""

    def __init__(self, top_ks: Sequence[int]) -> None:
        self._top_ks = top_ks

    def kept(self, logits: mx.array) -> mx.array:
        width = logits.shape[-1]
        top_k = mx.array([min(top_k, width) for top_k in self._top_ks], dtype=mx.int32)[:, None]
        ordered = self._ordered(logits)
        edge = mx.take_along_axis(ordered, mx.minimum(top_k, ordered.shape[-1]) - 1, axis=-1)
        equal = logits == edge
        places = top_k - (ordered > edge).sum(axis=-1, keepdims=True)
        kept = (logits > edge) | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= places))
        return kept | (top_k >= width)

    def _ordered(self, logits: mx.array) -> mx.array:
        """As many of each row's largest as any row keeps, in order."""
        depth = max([top_k for top_k in self._top_ks if top_k < logits.shape[-1]], default=1)
        keys = mx.sort(_largest(_key(logits.view(mx.int32)), depth), axis=-1)[:, ::-1]
        return _key(keys).view(mx.float32)


def _largest(values: mx.array, count: int) -> mx.array:
    """So many of each row's largest values, in no order."""
    width = values.shape[-1]
    return values if count >= width else mx.partition(values, kth=width - count, axis=-1)[:, width - count :]


def _key(bits: mx.array) -> mx.array:
    """A float's bits as an integer of the same order, or such an integer as the float's bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
