"""Pages in plain operations, on any device: slow, and what the kernels are held against."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxrpc_server.engine.kernels.turn import Token, Turn, turned
from mlxrpc_server.engine.paged import Form, Goal, Plan, rows_of
from mlxrpc_server.engine.pages import SIZE
from mlxrpc_server.engine.sizes import EXACT

Table = Sequence[Sequence[int]]


class PlainStore:
    compiles = False
    sizes = EXACT

    def __init__(self, form: Form, slab: int) -> None:
        self.slab = slab
        self._form = form
        self.tickets: list[mx.array] = []
        self._keys = [self._empty() for _ in range(form.layers)]
        self._values = [self._empty() for _ in range(form.layers)]

    def _empty(self, pages: int = 0) -> mx.array:
        return mx.zeros((pages, self._form.kv_heads, SIZE, self._form.head_size), self._form.dtype)

    def hold(self, slabs: int) -> None:
        for stored in (self._keys, self._values):
            stored[:] = [self._resized(one, slabs * self.slab) for one in stored]

    def _resized(self, stored: mx.array, pages: int) -> mx.array:
        more = pages - stored.shape[0]
        return mx.concatenate([stored, self._empty(more)]) if more > 0 else stored[:pages]

    def table(self, rows: Table, width: int) -> Table:
        return [list(pages) for pages in rows]

    def write(self, layer: int, keys: mx.array, values: mx.array, goal: Goal) -> None:
        for row, length in enumerate(goal.lengths):
            for stored, one in ((self._keys, keys), (self._values, values)):
                for page, first in zip(goal.table[row], range(0, length, SIZE), strict=False):
                    tokens = one[row, :, first : min(first + SIZE, length)]
                    stored[layer][page, :, : tokens.shape[1]] = tokens

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        queries, keys, values = turned(token, plan.lengths, turn)
        attended = []
        for row, (pages, length) in enumerate(zip(plan.table, plan.held, strict=True)):
            if not pages:
                attended.append(mx.zeros_like(queries[row : row + 1]))
                continue
            page, place = pages[length // SIZE], length % SIZE
            self._keys[layer][page, :, place] = keys[row, :, 0]
            self._values[layer][page, :, place] = values[row, :, 0]
            seen = slice(max(0, length + 1 - window) if window else 0, length + 1)
            held = [self._row(stored[layer], pages)[:, :, seen] for stored in (self._keys, self._values)]
            attended.append(mx.fast.scaled_dot_product_attention(queries[row : row + 1], *held, scale=scale))
        return mx.concatenate(attended)

    def _row(self, stored: mx.array, pages: Sequence[int]) -> mx.array:
        return mx.concatenate([stored[page : page + 1] for page in pages], axis=2)

    def read(self, layer: int, rows: Table) -> tuple[mx.array, mx.array]:
        pages = mx.array([page for row in rows for page in row])
        return rows_of(self._keys[layer][pages], len(rows)), rows_of(self._values[layer][pages], len(rows))

    def forget(self) -> None:
        pass
