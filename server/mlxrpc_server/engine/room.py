"""How much of the device's memory the rows' keys and values may take, and which shape they get within it.

Arithmetic over lengths: knows neither arrays nor requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

COLUMN_STEP = 256
"""Rows grow by multiples of this, as mlx-lm's own cache does."""

SHARE = 1 / 8
"""Of the device's memory. Four models are loaded at once by default: together their keys and values get half of it.
The other half is for weights, and for what these numbers leave out: a chunk's transients, the cache of the row in
prefill, a layer's old array beside its new one."""


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

    def fits(self, lengths: Sequence[int], cell_bytes: int) -> bool:
        """A row alone always does: there is nobody to wait for."""
        return len(lengths) <= 1 or self._holds(tight(lengths), cell_bytes)

    def shape(self, held: Shape, lengths: Sequence[int], cell_bytes: int) -> Shape:
        """What to hold next. Rows double and shrink late, so that joins and leaves rarely copy, where there is room."""
        need = tight(lengths)
        rows = _settled(held.rows, need.rows, max(need.rows, min(2 * held.rows, self.rows)))
        loose = Shape(rows, _settled(held.columns, need.columns, need.columns))
        return loose if self._holds(loose, cell_bytes) else need

    def _holds(self, shape: Shape, cell_bytes: int) -> bool:
        return shape.cells * cell_bytes <= self.bytes


UNBOUNDED = Room(rows=1 << 30, bytes=1 << 62)


def tight(lengths: Sequence[int]) -> Shape:
    """The smallest shape for rows of these lengths."""
    return Shape(len(lengths), stepped(max(lengths, default=0)))


def stepped(length: int) -> int:
    return -(-length // COLUMN_STEP) * COLUMN_STEP


def _settled(held: int, need: int, grown: int) -> int:
    """As held, unless that is too little or more than twice too much."""
    if need > held:
        return grown
    return need if held > 2 * need else held
