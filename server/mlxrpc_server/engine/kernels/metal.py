"""Pages on an Apple GPU, read and written in place by kernels of our own (attend.metal, write.metal).

The twin of kernels/cuda.py, which tells how it works. It has never run: nobody who wrote it had such a machine. It is off
unless asked for, and then `proven` stands between it and any request.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.kernels import metal_kernel
from mlxrpc_server.engine.kernels.turn import Token, Turn, turned
from mlxrpc_server.engine.paged import Form, Goal, Plan, rows_of
from mlxrpc_server.engine.pages import SIZE
from mlxrpc_server.engine.sizes import EXACT

WRITERS = 128
"""Threads that write one page."""

SHARED_BYTES = 32 << 10
"""A threadgroup's memory."""


class MetalStore:
    """An array of keys and one of values to a layer. They are copied when there are more slabs, or fewer."""

    compiles = False
    sizes = EXACT

    def __init__(self, form: Form, slab: int) -> None:
        self._form = form
        self.slab = slab
        self._keys = [self._empty(0) for _ in range(form.layers)]
        self._values = [self._empty(0) for _ in range(form.layers)]
        self.tickets = [mx.zeros((1,), form.dtype) for _ in range(form.layers)]

    def _empty(self, pages: int) -> mx.array:
        return mx.zeros((pages, self._form.kv_heads, SIZE, self._form.head_size), self._form.dtype)

    def hold(self, slabs: int) -> None:
        """Waits for what runs, which may still write, and copies one array at a time."""
        mx.eval(self.tickets)
        for stored in (self._keys, self._values):
            for layer in range(self._form.layers):
                stored[layer] = self._resized(stored[layer], slabs * self.slab)
                mx.eval(stored[layer])
        mx.clear_cache()

    def _resized(self, stored: mx.array, pages: int) -> mx.array:
        more = pages - stored.shape[0]
        return mx.concatenate([stored, self._empty(more)]) if more > 0 else mx.contiguous(stored[:pages]) + 0

    def table(self, rows: Sequence[Sequence[int]], width: int) -> mx.array:
        return mx.array([[*pages, *[0] * (width - len(pages))] for pages in rows], dtype=mx.int32)

    def write(self, layer: int, keys: mx.array, values: mx.array, goal: Goal) -> None:
        form = self._form
        pages = -(-max(goal.lengths) // SIZE)
        (self.tickets[layer],) = _write()(
            inputs=[
                keys,
                values,
                self._keys[layer],
                self._values[layer],
                self.tickets[layer],
                goal.table,
                goal.counted,
                _place(goal.table, 0.0, 0),
            ],
            template=[("T", form.dtype), ("D", form.head_size), ("HKV", form.kv_heads), ("PAGE", SIZE)],
            grid=(pages * WRITERS, form.kv_heads, len(goal.lengths)),
            threadgroup=(WRITERS, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[form.dtype],
        )

    def read(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
        mx.eval(self.tickets[layer])  # MLX sees no write into the pages: a read might run beside one
        pages, keys, values = mx.array([page for row in rows for page in row]), self._keys[layer], self._values[layer]
        return rows_of(keys[pages], len(rows)), rows_of(values[pages], len(rows))

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        form = self._form
        queries, keys, values = turned(token, plan.lengths, turn)
        heads = queries.shape[1]
        threads = 32 * warps(form)
        template = [("T", form.dtype), ("D", form.head_size), ("HKV", form.kv_heads), ("G", form.queries)]
        grid = (plan.parts * form.kv_heads * threads, 1, 1)
        place = _place(plan.table, scale, window)
        partials = plan.parts * heads * (form.head_size + 2) if plan.split else 1
        attended, parts, self.tickets[layer] = _attend()(
            inputs=[
                queries.astype(form.dtype),
                keys.astype(form.dtype),
                values.astype(form.dtype),
                self._keys[layer],
                self._values[layer],
                self.tickets[layer],
                plan.table,
                plan.lengths,
                plan.work,
                place,
            ],
            template=[*template, ("PAGE", SIZE), ("SPLIT", plan.split)],
            grid=grid,
            threadgroup=(threads, 1, 1),
            output_shapes=[queries.shape, (partials,), (1,)],
            output_dtypes=[form.dtype, mx.float32, form.dtype],
        )
        if plan.split:
            (attended,) = _combine()(
                inputs=[parts, plan.lengths, plan.work, place],
                template=template,
                grid=grid,
                threadgroup=(threads, 1, 1),
                output_shapes=[queries.shape],
                output_dtypes=[form.dtype],
            )
        result: mx.array = attended.astype(queries.dtype)
        return result

    def forget(self) -> None:
        mx.synchronize()
        self.tickets = [mx.zeros((1,), self._form.dtype) for _ in self.tickets]


def warps(form: Form) -> int:
    """As in attend.metal."""
    roles = -(-form.queries // 4)
    return roles * max(1, (4 if form.head_size > 128 else 8) // roles)


def suits(form: Form) -> bool:
    """Whether what a threadgroup puts together finds room in its memory."""
    queries = -(-form.queries // -(-form.queries // 4))
    return warps(form) * queries * (form.head_size + 2) * 4 <= SHARED_BYTES


def _place(table: mx.array, scale: float, window: int) -> mx.array:
    return mx.array([window, struct.unpack("<i", struct.pack("<f", scale))[0], table.shape[1]], dtype=mx.int32)


@functools.cache
def _attend() -> Any:
    return metal_kernel(
        "attend",
        inputs=("q", "k", "v", "key_pages", "value_pages", "ticket", "table", "lengths", "work", "place"),
        outputs=("out", "partials", "next"),
        call="threadgroup float shared[mlxrpc::Warps<G, D>::SHARED];"
        " mlxrpc::attend<T, D, HKV, G, PAGE, SPLIT>(q, k, v, (device T*)key_pages, (device T*)value_pages, table, lengths,"
        " work, place, out, partials, shared, threadgroup_position_in_grid.x, thread_index_in_threadgroup);",
    )


@functools.cache
def _combine() -> Any:
    return metal_kernel(
        "attend",
        inputs=("partials", "lengths", "work", "place"),
        outputs=("out",),
        call="mlxrpc::combine<T, D, HKV, G>(partials, lengths, work, place, out, threadgroup_position_in_grid.x,"
        " thread_index_in_threadgroup, threads_per_threadgroup.x);",
    )


@functools.cache
def _write() -> Any:
    return metal_kernel(
        "write",
        inputs=("keys", "values", "key_pages", "value_pages", "ticket", "table", "lengths", "place"),
        outputs=("next",),
        call="mlxrpc::write<T, D, HKV, PAGE>(keys, values, keys_shape[2], (device T*)key_pages, (device T*)value_pages,"
        " table, lengths, place, threadgroup_position_in_grid, thread_index_in_threadgroup, threads_per_threadgroup.x);",
    )
