"""Which pages hold which row's tokens, and what that costs.

A page holds the keys and values of a few tokens, of all layers. Arithmetic over lengths and page numbers: knows neither
arrays nor what is in a page.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.sizes import power_up
from mlxrpc_server.types import RowId

SIZE = 32
"""Tokens of a page."""

AHEAD = 32
"""Tokens for which every row has room when pages are given out: for so many steps nothing has to be given out again."""


BLOCKS = 256
"""That may attend at once, so many at least: they keep the largest devices busy, a few for each of their processors."""

SHORTEST_PART, LONGEST_PART = 128, 512
"""In tokens, where that is up to us. Shorter ones take longer to put together than they save."""


def needed(length: int) -> int:
    """Pages of a row of this length, its room ahead counted."""
    return -(-(length + AHEAD) // SIZE)


def fit(lengths: Sequence[int], page_bytes: int, slab: int, room: Room, beside: int = 0) -> bool:
    """Whether rows of these lengths find room together, beside pages of so many bytes, where pages come in slabs.

    A row alone always does: there is nobody to wait for.
    """
    pages = sum(map(needed, lengths)) + -(-beside // page_bytes)
    return (len(lengths) <= 1 and not beside) or slabs(pages, slab) * slab * page_bytes <= room.bytes


def slabs(pages: int, slab: int) -> int:
    return -(-pages // slab)


def parts_of(rows: int, kv_heads: int) -> int:
    """The most parts that so many rows are cut into for attention, however long they are: as many are launched, some of
    them parts of nothing, so that what is launched need not be compiled again. Twice as many as rows at least, so that
    a long row among short ones is cut too."""
    return max(-(-BLOCKS // kv_heads), power_up(2 * rows))


def part_tokens(lengths: Sequence[int], kv_heads: int) -> int:
    """Tokens of a part: few where rows are few, and as many as it takes for rows of these lengths to have no more parts,
    or an eighth more: to look at long rows once for every page would take longer than they save."""
    shared = sum(lengths) * kv_heads // BLOCKS // SHORTEST_PART * SHORTEST_PART
    tokens, parts = min(LONGEST_PART, max(SHORTEST_PART, shared)), parts_of(len(lengths), kv_heads)
    while sum(length // tokens + 1 for length in lengths) > parts:
        tokens += max(1, tokens // 8 // SHORTEST_PART) * SHORTEST_PART
    return tokens


class Pages:
    """Gives out the lowest free pages, so that those at the end become free for good when there is less to hold.

    A page may outlive its row: it is free when nobody holds it any more.
    """

    def __init__(self) -> None:
        self._of: dict[RowId, list[int]] = {}
        self._holders: dict[int, int] = {}
        """How many there are of each page."""
        self._free: list[int] = []
        self._end = 0

    @property
    def used(self) -> int:
        return len(self._holders)

    @property
    def end(self) -> int:
        """Behind the last page that is in use."""
        return max(self._holders, default=-1) + 1

    def of(self, row: RowId) -> Sequence[int]:
        return self._of[row]

    def give(self, row: RowId, pages: int) -> None:
        """So that the row has at least so many."""
        held = self._of.setdefault(row, [])
        held.extend(self._next() for _ in range(pages - len(held)))

    def take_back(self, row: RowId) -> None:
        self.drop(self._of.pop(row))

    def keep(self, pages: Iterable[int]) -> None:
        """Has them held once more."""
        for page in pages:
            self._holders[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """Has them held once less."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                heapq.heappush(self._free, page)

    def clear(self) -> None:
        self._of.clear()
        self._holders.clear()
        self._free.clear()
        self._end = 0

    def _next(self) -> int:
        if self._free:
            page = heapq.heappop(self._free)
        else:
            page, self._end = self._end, self._end + 1
        self._holders[page] = 1
        return page
