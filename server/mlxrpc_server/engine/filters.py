"""top_p, min_p, xtc and top_k: which tokens may be drawn.

Each counts the full distribution. All but xtc keep the likeliest tokens, so their order does not matter where it is
off; only top_k parts tokens that are equally likely. Knows logits whose largest is 0 in each row; neither
temperature nor noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mlxrpc_server.engine import device
from mlxrpc_server.engine.some import Some, column
from mlxrpc_server.types import Sampling

_ROUND = 1024
"""Values that MLX's scan on CUDA takes in one round, whatever they are."""

_FEW = 256
"""So many tokens are sorted at once on a CPU, where sorting is dear and halving cheap."""


class Filters:
    """The rows' filters as columns. A row without any costs nothing where no other has one."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._any_min_p = any(row.min_p > 0 for row in rows)
        self._least = mx.log(column([row.min_p for row in rows]))
        self._with_top_p = Some([_has_top_p(row) for row in rows])
        self._with_floor = Some([_has_floor(row) for row in rows])
        self._with_xtc = Some([row.xtc_probability > 0 for row in rows])
        self._with_top_k = Some([row.top_k > 0 for row in rows])
        self._top_p = _TopP([row for row in rows if _has_top_p(row)])
        self._floor = _TopK([row.min_tokens_to_keep for row in rows if _has_floor(row)])
        self._xtc = _Xtc([row for row in rows if row.xtc_probability > 0])
        self._top_k = _TopK([row.top_k for row in rows if row.top_k > 0])

    @property
    def take_chances(self) -> bool:
        """Whether any row's candidates depend on luck."""
        return bool(self._with_xtc)

    def apply(self, scores: mx.array, logits: mx.array, chances: mx.array | None) -> mx.array:
        """The scores of what may be drawn, and -inf for the rest. `chances` are numbers from 0 to 1, one for each row."""
        kept = self._likely(logits)
        if chances is not None:
            kept = mx.ones(logits.shape, dtype=mx.bool_) if kept is None else kept
            some = self._xtc.kept(self._with_xtc.of(logits), self._with_xtc.of(kept), self._with_xtc.of(chances))
            kept = self._with_xtc.put(kept, some)
            logits = mx.where(kept, logits, -mx.inf)
        if self._with_top_k:
            kept = _both(kept, _everywhere(self._with_top_k, self._top_k.kept, logits))
        return scores if kept is None else mx.where(kept, scores, -mx.inf)

    def _likely(self, logits: mx.array) -> mx.array | None:
        """What top_p and min_p leave; None for everything."""
        kept = None
        if self._with_top_p:
            kept = _everywhere(self._with_top_p, self._top_p.kept, logits)
        if self._any_min_p:
            kept = _both(kept, logits >= self._least)
        if kept is not None and self._with_floor:
            some = self._with_floor.of(kept) | self._floor.kept(self._with_floor.of(logits))
            kept = self._with_floor.put(kept, some)
        return kept


def _has_top_p(row: Sampling) -> bool:
    """In float32, where a share that is next to everything is everything: so it is on every device."""
    return bool(np.float32(row.top_p) < 1)


def _has_floor(row: Sampling) -> bool:
    return row.min_tokens_to_keep > 1 and (_has_top_p(row) or row.min_p > 0)


def _both(one: mx.array | None, other: mx.array) -> mx.array:
    return other if one is None else one & other


def _everywhere(some: Some, kept: Callable[[mx.array], mx.array], logits: mx.array) -> mx.array:
    """What a filter of some rows keeps, and all of the other rows."""
    return some.put(mx.ones(logits.shape, dtype=mx.bool_), kept(some.of(logits)))


class _TopP:
    """The smallest set of likeliest tokens whose mass reaches top_p; ties with its last member stay."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._shares = column([row.top_p for row in rows])
        self._last_places = [0 if row.xtc_probability > 0 else row.top_k for row in rows]

    def kept(self, logits: mx.array) -> mx.array:
        masses = mx.exp(logits)
        wanted = self._shares * masses.sum(axis=-1, keepdims=True)
        likeliest = _largest(masses.view(mx.int32), self._depth(logits.shape[-1]))
        return masses >= _edge(likeliest, wanted)

    def _depth(self, width: int) -> int:
        """How many tokens can matter: top_k removes what is further down."""
        return max(top_k if 0 < top_k < width else width for top_k in self._last_places)


def _edge(masses: mx.array, wanted: mx.array) -> mx.array:
    """The least of the largest masses that reach what is wanted. Masses are their bits: as integers they sort faster."""
    above = mx.zeros_like(wanted)
    few = _FEW if device.on_cpu() else masses.shape[-1]
    while masses.shape[-1] > few:
        masses, above = _half_with_edge(masses, above, wanted)
    ordered = mx.sort(masses, axis=-1)[:, ::-1].view(mx.float32)
    before = above + running(ordered, inclusive=False)
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


class _Xtc:
    """By chance, none of the candidates above the threshold but the least likely of them, and what ends a text."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._probabilities = column([row.xtc_probability for row in rows])
        self._thresholds = column([row.xtc_threshold for row in rows])
        self._end_ids = [row.end_ids for row in rows]

    def kept(self, logits: mx.array, candidates: mx.array, chances: mx.array) -> mx.array:
        masses = mx.exp(logits)
        probabilities = masses / masses.sum(axis=-1, keepdims=True)
        above = candidates & (probabilities > self._thresholds)
        least = mx.where(above, probabilities, mx.inf).min(axis=-1, keepdims=True)
        removed = above & (probabilities > least) & (chances[:, None] < self._probabilities)
        return candidates & (~removed | self._ends(logits.shape))

    def _ends(self, shape: tuple[int, ...]) -> mx.array:
        places = [row * shape[-1] + token for row, ids in enumerate(self._end_ids) for token in ids]
        ends = mx.zeros(shape, dtype=mx.bool_).reshape(-1)
        if places:
            ends[mx.array(places)] = True
        return ends.reshape(shape)


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
        kept = (logits > edge) | (equal & (running(equal.astype(mx.int32)) <= places))
        return kept | (top_k >= width)

    def _ordered(self, logits: mx.array) -> mx.array:
        """As many of each row's largest as any row keeps, in order."""
        depth = max([top_k for top_k in self._top_ks if top_k < logits.shape[-1]], default=1)
        keys = mx.sort(_largest(key(logits.view(mx.int32)), depth), axis=-1)[:, ::-1]
        return key(keys).view(mx.float32)


def running(values: mx.array, *, inclusive: bool = True) -> mx.array:
    """Each row's sums up to each of its values.

    Not by one `cumsum` on a GPU: in MLX 0.32.4, CUDA's scan of a row that takes a block more than one round races
    (contiguous_scan in scan.cu reads its prefix where the next round already writes). In parts no row takes two.
    """
    if device.on_cpu() or values.shape[-1] <= _ROUND:
        return mx.cumsum(values, axis=-1, inclusive=inclusive)
    return in_parts(values, inclusive=inclusive)


def in_parts(values: mx.array, *, inclusive: bool) -> mx.array:
    rows, width = values.shape
    parts = mx.pad(values, [(0, 0), (0, -width % _ROUND)]).reshape(rows, -1, _ROUND)
    before = mx.cumsum(parts.sum(axis=-1), axis=-1, inclusive=False)
    return (mx.cumsum(parts, axis=-1, inclusive=inclusive) + before[..., None]).reshape(rows, -1)[:, :width]


def _largest(values: mx.array, count: int) -> mx.array:
    """So many of each row's largest values, in no order."""
    width = values.shape[-1]
    return values if count >= width else mx.partition(values, kth=width - count, axis=-1)[:, width - count :]


def key(bits: mx.array) -> mx.array:
    """A float's bits as an integer of the same order, or such an integer as the float's bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
