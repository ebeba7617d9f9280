"""The draw on a CPU: of each row only the tokens that may win are looked at, and few of them need all of their noise.

Gives what `sampling` gives in passes over the whole vocabulary, but for the last bits of float32. Waits for the
logits. Knows neither penalties nor filters that depend on chance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrpc_server.engine import device
from mlxrpc_server.engine.noise import FIRST, MIXERS, NOT_ONE, SECOND, TOKEN
from mlxrpc_server.types import Sampling

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]
Ids = NDArray[np.intp]
Number = TypeVar("Number", bound=np.generic)

_WORD = 0xFFFFFFFF

_SLACK = np.float32(1e-5)
"""More than float32's last bits make of a score, as a part of it."""

_GROUP = 16
"""Tokens whose largest stands for them where the k likeliest are looked for."""

_MANY, _SOME = 2048, 512
"""Where so many may be in the nucleus, some of them tell first about where it ends: sorting all of them is dear."""


def suits() -> bool:
    """Whether the logits are computed where numpy can look at them without a copy."""
    return device.on_cpu()


class Rows:
    """The rows' settings. Temperatures between 0 and `coldest` draw as that."""

    def __init__(self, rows: Sequence[Sampling], coldest: float) -> None:
        self._rows = [_row(row, coldest) for row in rows]

    def draw(self, logits: mx.array, positions: mx.array) -> mx.array:
        """One token for each row of `logits` [rows, vocabulary]; `positions` are those of the tokens drawn."""
        logits = logits.astype(mx.float32)
        mx.eval(logits, positions)  # not by numpy, which would hold the interpreter meanwhile
        columns = zip(self._rows, np.asarray(logits), np.asarray(positions).tolist(), strict=True)
        with np.errstate(all="ignore"):  # logits that are no numbers are one row's fault alone
            return mx.array([row.draw(its, place) for row, its, place in columns], dtype=mx.uint32)


@dataclass(frozen=True, slots=True)
class _Row:
    temperature: np.float32
    top_p: np.float32
    least: np.float32
    """How far below the likeliest one min_p lets a token be."""
    top_k: int
    keys: tuple[int, int]
    """What the seed gives to the noise's key."""

    def draw(self, logits: Floats, position: int) -> int:
        most = logits.max()
        if not self.temperature or not np.isfinite(most):
            return int(logits.argmax())
        below = logits - most
        ids = self._kept(below)
        bits = _bits(self.keys, position, _of(_tokens(below.size), ids))
        place = _winner(np.divide(_of(below, ids), self.temperature), bits)
        return place if ids is None else int(ids[place])

    def _kept(self, below: Floats) -> Ids | None:
        """What the filters leave, in order; None for all. Each leaves the likeliest: one may go on from another's."""
        masses = np.exp(below) if self.top_p < 1 else None
        total = np.float32(0) if masses is None else masses.sum()
        ids = self._near(below, total)
        if 0 < self.top_k < (below.size if ids is None else ids.size):
            largest = _largest(_of(below, ids), self.top_k)
            ids = largest if ids is None else ids[largest]
        if masses is not None:
            kept = _of(masses, ids)
            inside = np.flatnonzero(kept >= _edge(kept, self.top_p * total))
            ids = inside if ids is None else ids[inside]
        return ids

    def _near(self, below: Floats, total: np.float32) -> Ids | None:
        """What can be left, by bounds that are found in a pass; None for all."""
        least = self.least
        if self.top_p < 1:
            # The tokens below this have, all together, no more mass than the nucleus may lack.
            least = max(least, np.log((total - self.top_p * total) / below.size) - np.float32(1e-3))
        if 0 < self.top_k <= below.size // _GROUP:
            least = max(least, _reached(below, self.top_k))
        return np.flatnonzero(below >= least) if least > -np.inf else None


def _row(row: Sampling, coldest: float) -> _Row:
    low, high = row.seed & _WORD, row.seed >> 32
    with np.errstate(divide="ignore"):
        least = np.log(np.float32(row.min_p))
    return _Row(
        temperature=np.float32(row.temperature and max(row.temperature, coldest)),
        top_p=np.float32(row.top_p),
        least=least,
        top_k=row.top_k,
        keys=(_mixed(_mixed(low ^ FIRST) ^ high), _mixed(_mixed(low ^ SECOND) ^ high)),
    )


def _of(values: NDArray[Number], ids: Ids | None) -> NDArray[Number]:
    return values if ids is None else values[ids]


# The filters' edges


def _reached(values: Floats, count: int) -> np.float32:
    """What so many reach at least: the largest of as many groups."""
    groups = values[: values.size // _GROUP * _GROUP].reshape(_GROUP, -1).max(axis=0)
    return np.float32(np.partition(groups, groups.size - count)[groups.size - count])


def _largest(values: Floats, count: int) -> Ids:
    """The places of so many of the largest, in order; of equals at the edge, the first."""
    edge = np.partition(values, values.size - count)[values.size - count]
    kept = values >= edge
    if surplus := int(np.count_nonzero(kept)) - count:
        kept[np.flatnonzero(values == edge)[-surplus:]] = False
    return np.flatnonzero(kept)


def _edge(masses: Floats, wanted: np.float32) -> np.float32:
    """The least of the largest that reach what is wanted."""
    if masses.size > _MANY:
        low, high = _about(masses, wanted)
        larger = masses > high
        between = masses[np.flatnonzero((masses >= low) & ~larger)]
        left = wanted - (masses * larger).sum()  # quicker by half than picking them out
        if between.size < masses.size and 0 < left <= between.sum():
            return _edge(between, left)
    ordered = np.sort(masses)[::-1]
    place = int(np.searchsorted(np.cumsum(ordered), wanted))
    return np.float32(ordered[min(place, ordered.size - 1)])


def _about(masses: Floats, wanted: np.float32) -> tuple[np.float32, np.float32]:
    """What the edge probably lies between, as some of the masses tell."""
    some = np.sort(masses[:: masses.size // _SOME])[::-1]
    sums = np.cumsum(some)
    place, apart = int(np.searchsorted(sums, wanted * (sums[-1] / masses.sum()))), 2 * math.isqrt(_SOME)
    low = some[place + apart] if place + apart < some.size else np.float32(0)
    return np.float32(low), np.float32(some[place - apart] if place >= apart else np.inf)


# The noise


def _winner(scaled: Floats, bits: Bits) -> int:
    """The place of the largest sum with its noise.

    The noise is at most -log of the uniform: a token that this bound leaves behind the best one known needs no more.
    """
    uniform = bits.astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2.0**-32)
    np.minimum(uniform, np.float32(NOT_ONE), out=uniform)
    at_most = scaled - np.log(uniform)
    first = at_most.argmax()
    known = scaled[first] + _noise(uniform[first])
    places = np.flatnonzero(at_most >= known - _SLACK * (1 + abs(known)))
    return int(places[(scaled[places] + _noise(uniform[places])).argmax()])


def _noise(uniform: Floats) -> Floats:
    noise: Floats = -np.log(-np.log1p(-uniform))
    return noise


def _bits(keys: tuple[int, int], position: int, tokens: Bits) -> Bits:
    first, second = (np.uint32(_mixed(key ^ position)) for key in keys)
    bits = tokens ^ first
    _mix(bits)
    bits += second
    _mix(bits)
    return bits


@functools.lru_cache(maxsize=4)
def _tokens(width: int) -> Bits:
    """Each token's share of the noise's key."""
    return np.arange(width, dtype=np.uint32) * np.uint32(TOKEN)


def _mix(bits: Bits) -> None:
    shifted = bits >> np.uint32(16)
    bits ^= shifted
    bits *= np.uint32(MIXERS[0])
    bits ^= np.right_shift(bits, np.uint32(15), out=shifted)
    bits *= np.uint32(MIXERS[1])
    bits ^= np.right_shift(bits, np.uint32(16), out=shifted)


def _mixed(bits: int) -> int:
    bits = (bits ^ bits >> 16) * MIXERS[0] & _WORD
    bits = (bits ^ bits >> 15) * MIXERS[1] & _WORD
    return bits ^ bits >> 16
