"""Who runs and who waits: in the order of arrival, as far as there is room, and who goes back where it grows short.

Knows rows and how long they are. Takes no array into its hands: whether rows find room, another tells it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId

Fits = Callable[[Sequence[int]], bool]
"""Whether rows of these lengths, and no others, find room together."""


class Admission:
    def __init__(self, fits: Fits, max_rows: int) -> None:
        self.waiting: deque[Row] = deque()
        """Those that have not begun, or have to begin again."""
        self.prefilling: list[Row] = []
        self.decoding: dict[RowId, Row] = {}
        self._fits = fits
        self._max_rows = max_rows
        self._arrivals = 0

    @property
    def running(self) -> list[Row]:
        return [*self.decoding.values(), *self.prefilling]

    @property
    def everyone(self) -> list[Row]:
        return [*self.running, *self.waiting]

    def arrive(self, row: Row) -> None:
        row.arrival = self._arrivals = self._arrivals + 1

    def join(self, row: Row) -> None:
        """Its prompt is fed."""
        self.prefilling.remove(row)
        self.decoding[row.id] = row

    def remove(self, row: Row) -> None:
        """From wherever it is, if it is anywhere."""
        if row.id in self.decoding:
            del self.decoding[row.id]
        elif row in self.prefilling:
            self.prefilling.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)

    def forget(self, rows: Collection[RowId]) -> None:
        """Those that have left, wherever they are still."""
        for row in [one for one in self.everyone if one.id in rows]:
            self.remove(row)

    def send_back(self, row: Row) -> None:
        """In front of all that wait: whoever goes back is older than they are."""
        self.remove(row)
        row.rewind()
        self.waiting.appendleft(row)

    def admit(self) -> None:
        """In order, even where a later row would find room: else a long one would wait for ever."""
        while self.waiting and len(self.running) < self._most_rows and self._fits_beside(self._next):
            row = self._next
            self.waiting.remove(row)
            self.prefilling.append(row)

    @property
    def unsuspected(self) -> list[Row]:
        """Who gives its place to rows that are suspected, while any of those wait."""
        if not any(row.suspected for row in self.waiting):
            return []
        return [row for row in self.running if not row.suspected]

    def one_too_many(self) -> Row | None:
        """The youngest, where the rows outgrow their room: all that waits is younger, so it waits in front.

        Never the oldest: there is always one that comes to its end.
        """
        if self._fits([row.length for row in self.running]):
            return None
        return max(self.running, key=lambda row: row.arrival)

    @property
    def _next(self) -> Row:
        return next((row for row in self.waiting if row.suspected), self.waiting[0])

    @property
    def _most_rows(self) -> int:
        """A suspect runs alone: where a step raises again, it was the one."""
        return 1 if any(row.suspected for row in self.everyone) else self._max_rows

    def _fits_beside(self, row: Row) -> bool:
        """With a token more for each: none is to come in and go at once."""
        return self._fits([one.length + 1 for one in (*self.running, row)])
