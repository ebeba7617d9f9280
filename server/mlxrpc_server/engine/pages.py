"""Which pages hold which row's tokens, and what that costs.

A page holds the keys and values of a few tokens, of all layers. Arithmetic over lengths and page numbers: knows neither
arrays nor what is in a page.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from mlxrpc_server.engine.room import Room
from mlxrpc_server.types import RowId

SIZE = 32
"""Tokens of a page."""

AHEAD = 32
"""Tokens for which every row has room when pages are given out: for so many steps nothing has to be given out again."""


PARTS = 256
"""So many at once keep the largest devices busy, a few blocks to each of their processors."""

SHORTEST_PART, LONGEST_PART = 128, 512
"""In tokens, where rows are not so long that there would be more than MOST_PARTS of them."""

MOST_PARTS = 32
"""Of a row. More take longer to put together than they save."""


def needed(length: int) -> int:
    """Pages of a row of this length, its room ahead counted."""
    return -(-(length + AHEAD) // SIZE)


def fit(lengths: Sequence[int], page_bytes: int, slab: int, room: Room) -> bool:
    """Whether rows of these lengths find room together, where pages come in slabs of so many.

    A row alone always does: there is nobody to wait for.
    """
    return len(lengths) <= 1 or slabs(sum(map(needed, lengths)), slab) * slab * page_bytes <= room.bytes


def slabs(pages: int, slab: int) -> int:
    return -(-pages // slab)


def rounded(count: int) -> int:
    """Up to one of few numbers: an eighth more at most, where it is not small."""
    step = 1 << max(2, count.bit_length() - 3)
    return -(-count // step) * step


def part_tokens(lengths: Sequence[int], kv_heads: int) -> int:
    """Into parts of how many tokens rows are cut for attention."""
    tokens = min(LONGEST_PART, max(SHORTEST_PART, sum(lengths) * kv_heads // PARTS))
    tokens = max(tokens, max(lengths, default=0) // MOST_PARTS)
    return -(-tokens // SHORTEST_PART) * SHORTEST_PART


class Pages:
    """Gives out the lowest free pages, so that those at the end become free for good when there is less to hold."""

    def __init__(self) -> None:
        self._of: dict[RowId, list[int]] = {}
        self._free: list[int] = []
        self._end = 0

    @property
    def used(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def end(self) -> int:
        """Behind the last page that is in use."""
        return max((max(pages, default=-1) for pages in self._of.values()), default=-1) + 1

    def of(self, row: RowId) -> Sequence[int]:
        return self._of[row]

    def give(self, row: RowId, pages: int) -> None:
        """So that the row has at least so many."""
        held = self._of.setdefault(row, [])
        held.extend(self._next() for _ in range(pages - len(held)))

    def take_back(self, row: RowId) -> None:
        self._put_back(self._of.pop(row))

    def clear(self) -> None:
        self._of.clear()
        self._free.clear()
        self._end = 0

    def _next(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._end += 1
        return self._end - 1

    def _put_back(self, pages: Iterable[int]) -> None:
        for page in pages:
            heapq.heappush(self._free, page)
