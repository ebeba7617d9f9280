"""Pages on a CUDA device, read and written in place by kernels of our own (attend.cu, write.cu).

MLX does not know that these kernels write: it takes the pages for memory that nobody touches, and that is what lets a step
be dispatched while the one before it still runs. Their order is kept by a ticket to each layer: every kernel takes the
last one's output as an input, and its own output is the next ticket.
"""

from __future__ import annotations

import functools
import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from mlxrpc_server.engine.given import given
from mlxrpc_server.engine.kernels import cuda_kernel
from mlxrpc_server.engine.kernels.turn import Token, Turn
from mlxrpc_server.engine.paged import Form, Goal, Plan, rows_of
from mlxrpc_server.engine.pages import SIZE
from mlxrpc_server.engine.sizes import FEW

WRITERS = 128
"""Threads that write one page."""

STAGES = 2
"""Of a warp's tokens, so many times as many as it computes with at once are on their way from memory."""

STAGE_BYTES = 4096
"""Keys and values that a warp computes with at once."""

STILL = "Still"
"""Of attend.cu: the kind of turn that is none."""


class CudaStore:
    """Slabs never move: a row's table has the addresses of its pages, and more slabs cost no copy."""

    compiles = True
    sizes = FEW

    def __init__(self, form: Form, slab: int) -> None:
        self._form = form
        self.slab = slab
        self._slabs: list[mx.array] = []
        self._bases: list[int] = []
        self._addresses: list[int] = []
        """Of every page, in the first layer's keys."""
        self.tickets = [mx.zeros((1,), form.dtype) for _ in range(form.layers)]
        self._counters = [mx.zeros((0,), mx.uint32)] * form.layers
        self._places: dict[tuple[int, float, int, Turn | None], mx.array] = {}

    @property
    def _layer_page_bytes(self) -> int:
        """Of one page, the keys or the values of one layer."""
        return self._form.page_bytes // (2 * self._form.layers)

    def hold(self, slabs: int) -> None:
        if slabs < len(self._slabs):
            mx.eval(self.tickets)  # what runs may still write
        with mx.stream(_aside()):
            more = [self._new() for _ in range(slabs - len(self._slabs))]
            mx.eval(more)
        self._slabs = self._slabs[:slabs] + [slab for slab, _ in more]
        self._bases = self._bases[:slabs] + [cast("int", address.item()) for _, address in more]
        self._addresses = [base + page * self._layer_page_bytes for base in self._bases for page in range(self.slab)]
        if not more:
            mx.clear_cache()  # for other models' workers

    def _new(self) -> tuple[mx.array, mx.array]:
        """A slab, and its address. [layers, keys and values, pages, heads, tokens, size]"""
        form = self._form
        slab = mx.zeros((2 * form.layers, self.slab * form.kv_heads * SIZE * form.head_size), form.dtype)
        (address,) = _address()(
            inputs=[slab], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.uint64]
        )
        return slab, address

    def table(self, rows: Sequence[Sequence[int]], width: int) -> mx.array:
        self._reserve(len(rows))
        addresses = array("Q")
        for pages in rows:
            addresses.extend(map(self._addresses.__getitem__, pages))
            addresses.frombytes(bytes(addresses.itemsize * (width - len(pages))))
        return given(addresses, mx.uint64).reshape(len(rows), width)

    def _place(self, layer: int, scale: float, window: int, turn: Turn | None = None) -> mx.array:
        """Where this layer's keys and values lie behind a page's address, and how it attends."""
        known = self._places.get((layer, scale, window, turn))
        if known is None:
            layer_bytes = self.slab * self._layer_page_bytes
            numbers = [2 * layer * layer_bytes, (2 * layer + 1) * layer_bytes, window, _bits(scale)]
            known = mx.array(numbers, dtype=mx.int64)
            known = known if turn is None else mx.concatenate([known, packed(turn)])
            mx.eval(known)
            self._places[layer, scale, window, turn] = known
        return known

    def write(self, layer: int, keys: mx.array, values: mx.array, goal: Goal) -> None:
        form = self._form
        pages = -(-max(goal.lengths) // SIZE)
        (self.tickets[layer],) = _write()(
            inputs=[
                keys,
                values,
                self.tickets[layer],
                goal.table,
                goal.counted,
                self._place(layer, 0.0, 0),
            ],
            template=[("T", form.dtype), ("D", form.head_size), ("HKV", form.kv_heads), ("PAGE", SIZE)],
            grid=(pages * WRITERS, form.kv_heads, len(goal.lengths)),
            threadgroup=(WRITERS, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[form.dtype],
        )

    def read(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
        """By MLX's own means, behind the last kernel that touched this layer."""
        # MLX sees no write into a slab, so a read may run beside one that is in the same graph. This ends the graph.
        mx.async_eval(self.tickets)  # type: ignore[no-untyped-call]
        form, pages = self._form, [page for row in rows for page in row]
        used = sorted({page // self.slab for page in pages})
        slabs = mx.depends([self._slabs[number] for number in used], [self.tickets[layer]])
        shape = (2, self.slab, form.kv_heads, SIZE, form.head_size)
        held = [slab[2 * layer : 2 * layer + 2].reshape(shape) for slab in slabs]
        parts = []
        for number, run in itertools.groupby(pages, lambda page: page // self.slab):
            places = mx.array([page % self.slab for page in run])
            parts.append(mx.take(held[used.index(number)], places, axis=1))
        keys, values = mx.concatenate(parts, axis=1)
        return rows_of(keys, len(rows)), rows_of(values, len(rows))

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        form = self._form
        queries, keys, values = token
        heads = queries.shape[1]
        threads = 32 * _warps(form.queries)
        partials = plan.parts * heads * (form.head_size + 2)
        attended, _, self.tickets[layer] = _attend(form, _kind(turn))(
            inputs=[
                queries.astype(form.dtype),
                keys.astype(form.dtype),
                values.astype(form.dtype),
                self.tickets[layer],
                plan.table,
                plan.lengths,
                plan.work,
                self._place(layer, scale, window, turn),
                self._counters[layer],
            ],
            template=[
                ("T", form.dtype),
                ("D", form.head_size),
                ("HKV", form.kv_heads),
                ("G", form.queries),
                ("PAGE", SIZE),
                ("STAGES", STAGES),
            ],
            grid=(plan.parts * form.kv_heads * threads, 1, 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[queries.shape, (partials,), (1,)],
            output_dtypes=[form.dtype, mx.float32, form.dtype],
        )
        result: mx.array = attended.astype(queries.dtype)
        return result

    def _reserve(self, rows: int) -> None:
        """Counters for so many rows: zeros, and the kernel leaves zeros behind."""
        if self._counters[0].size < rows * self._form.kv_heads:
            self._counters = [mx.zeros((2 * rows * self._form.kv_heads,), mx.uint32) for _ in self._counters]
            mx.eval(self._counters)

    def forget(self) -> None:
        mx.synchronize()
        self.tickets = [mx.zeros((1,), self._form.dtype) for _ in self.tickets]
        self._counters = [mx.zeros((0,), mx.uint32) for _ in self._counters]


def _warps(group: int) -> int:
    """As in attend.cu: four queries to a warp at most, and eight warps where that leaves enough."""
    roles = -(-group // 4)
    return roles * max(1, 8 // roles)


@functools.cache
def _aside() -> mx.Stream:
    """Where slabs are made without waiting for the step that runs."""
    return mx.new_stream(mx.default_device())


def _bits(number: float) -> int:
    """A float32's, as a whole number."""
    return cast("int", struct.unpack("<i", struct.pack("<f", number))[0])


def packed(turn: Turn) -> mx.array:
    """As attend.cu says it. MLX itself divides by the frequencies before it multiplies by the position."""
    norms = [norm.astype(mx.float32) for norm in (turn.query_norm, turn.key_norm) if norm is not None]
    numbers = mx.concatenate([*norms, 1.0 / turn.frequencies.astype(mx.float32)])
    whole = mx.concatenate([numbers, mx.zeros((numbers.size % 2,), mx.float32)]).view(mx.int64)
    return mx.concatenate([mx.array([_bits(turn.eps)], dtype=mx.int64), whole])


def _kind(turn: Turn | None) -> str:
    """Its type in attend.cu."""
    if turn is None:
        return STILL
    return f"Turn<T, D, {', '.join(str(one).lower() for one in turn.kind)}>"


@functools.cache
def _attend(form: Form, kind: str) -> Any:
    ring = _warps(form.queries) * STAGES * STAGE_BYTES
    turned = (form.queries + 1) * form.head_size * form.dtype.size if kind != STILL else 0
    return cuda_kernel(
        ("later", "attend"),
        inputs=("q", "k", "v", "ticket", "table", "lengths", "work", "place", "counters"),
        outputs=("out", "partials", "next"),
        call=f"mlxrpc::attend<T, D, HKV, G, PAGE, STAGES, mlxrpc::{kind}>(q, k, v, table, table_shape[1], lengths, work,"
        " place, const_cast<uint32_t*>(counters), out, partials);",
        shared=ring + turned,
    )


@functools.cache
def _write() -> Any:
    return cuda_kernel(
        ("write",),
        inputs=("keys", "values", "ticket", "table", "lengths", "place"),
        outputs=("next",),
        call="mlxrpc::write<T, D, HKV, PAGE>(keys, values, keys_shape[2], table, table_shape[1], lengths, place);",
    )


@functools.cache
def _address() -> Any:
    return mx.fast.cuda_kernel(
        name="mlxrpc_address",
        input_names=["slab"],
        output_names=["address"],
        source="address[0] = reinterpret_cast<uint64_t>(slab);",
    )
