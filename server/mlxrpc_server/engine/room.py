"""How much of the device's memory the rows' keys and values may take, and which shapes they get within it.

Rows of similar length share a block, a rectangle with the columns of its longest row: one long row among short ones
then costs its own columns, not everybody's. Arithmetic over lengths: knows neither arrays nor requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

COLUMN_STEP = 256
"""Rows grow by multiples of this, as mlx-lm's own cache does."""

SHORT_STEP = 64
"""And by multiples of this up to COLUMN_STEP."""

SHARE = 1 / 2
"""Of the device's memory, for the keys and values of all models that may be loaded at once. The other half is for
weights, and for what these numbers leave out: a chunk's transients, the cache of the row in prefill, a layer's old array
beside its new one."""

PREFIX_SHARE = 1 / 2
"""Of the room for keys and values, that what is kept of rows' beginnings may take while rows leave it."""


class Shape(NamedTuple):
    """Rows side by side, each with the columns of the longest."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        return self.rows * self.columns


EMPTY = Shape(0, 0)


@dataclass(frozen=True, slots=True)
class Room:
    rows: int
    """The most that there will be."""
    bytes: int

    def fits(self, lengths: Sequence[int], cell_bytes: int, beside: int = 0) -> bool:
        """Beside so many bytes. A row alone always does: there is nobody to wait for."""
        return self.holds(lengths, tight_cells(lengths) * cell_bytes, beside)

    def holds(self, lengths: Sequence[int], nbytes: float, beside: int) -> bool:
        """The same for rows that take so much."""
        return (len(lengths) <= 1 and not beside) or nbytes + beside <= self.bytes

    def shape(self, held: Shape, lengths: Sequence[int], other_cells: int, cell_bytes: int) -> Shape:
        """What a block holds next, beside so many cells of others.

        Rows grow by half and shrink late, so that joins and leaves rarely copy, where there is room.
        """
        need = tight(lengths)
        rows = _settled(held.rows, need.rows, max(need.rows, min(held.rows * 3 // 2, self.rows)))
        loose = Shape(rows, _settled(held.columns, need.columns, need.columns))
        return loose if (loose.cells + other_cells) * cell_bytes <= self.bytes else need


UNBOUNDED = Room(rows=1 << 30, bytes=1 << 62)


def kind(length: int) -> int:
    """Which rows share a block: those whose lengths lie between the same two powers of two."""
    return max(0, (max(1, length) - 1).bit_length() - SHORT_STEP.bit_length())


def tight(lengths: Sequence[int]) -> Shape:
    """The smallest block for rows of these lengths."""
    return Shape(len(lengths), stepped(max(lengths, default=0)))


def tight_cells(lengths: Iterable[int]) -> int:
    """Of all blocks together, each as small as its rows allow."""
    return sum(tight(list(block)).cells for _, block in groupby(sorted(lengths), kind))


def stepped(length: int) -> int:
    step = SHORT_STEP if length <= COLUMN_STEP else COLUMN_STEP
    return -(-length // step) * step


def _settled(held: int, need: int, grown: int) -> int:
    """As held, unless that is too little or more than twice too much."""
    if need > held:
        return grown
    return need if held > 2 * need else held
