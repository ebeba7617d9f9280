"""Which kernels of ours read and write a model's pages on this device, if any, and whether they compute what they should."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine import device
from mlxrpc_server.engine.kernels import metal
from mlxrpc_server.engine.kernels.cuda import CudaStore
from mlxrpc_server.engine.kernels.metal import MetalStore
from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.kernels.turn import Turn
from mlxrpc_server.engine.paged import Form, Goal, Paged, Plan, Store, form_of, planned
from mlxrpc_server.engine.pages import SIZE
from mlxrpc_server.engine.room import Room

log = logging.getLogger(__name__)

SLAB_BYTES = 256 << 20
"""Memory is taken in slabs of about this, where there is room for many of them."""

RESERVE = 1 / 8
"""Of the room, where that is not endless, taken at once: to ask a driver for memory can take longer than a step."""

LENGTHS = (0, 3 * SIZE - 1, 7, 9 * SIZE, 1)
"""Rows that the kernels are tried on: empty, up to a page's end, and cut into parts."""

LAYERS = 2
"""Enough to find out whether they are kept apart."""

TOLERANCE = {mx.float32: 5e-3, mx.float16: 5e-3, mx.bfloat16: 4e-2}
"""How far what is attended to may differ, as a part of the largest number in it. MLX takes TF32 for float32's products."""


def layout(model: Any, sample: Sequence[Any], room: Room, *, metal_kernels: bool = False) -> Paged | None:
    """The model's rows in pages, where its caches behind one token and this device allow it."""
    form = form_of(model, sample) if mx.default_device() == mx.Device(mx.gpu) else None
    store = form and of_this_device(form, room, metal_kernels=metal_kernels)
    reserve = int(RESERVE * room.bytes) if room.bytes < device.memory_bytes() else 0
    return Paged(model, form, store, room, reserve=reserve) if form and store else None


def of_this_device(form: Form, room: Room, *, metal_kernels: bool) -> Store | None:
    """Metal's have never run where they were written, so they are taken only where they are asked for."""
    slab = max(1, min(SLAB_BYTES, room.bytes // 16) // form.page_bytes)
    if mx.cuda.is_available():
        return CudaStore(form, slab) if agrees(CudaStore, form) else None
    if metal_kernels and mx.metal.is_available() and metal.suits(form):
        return MetalStore(form, slab) if agrees(MetalStore, form) else None
    return None


def agrees(kind: Callable[[Form, int], Store], form: Form, turn: Turn | None = None) -> bool:
    """Whether a store attends like plain operations: to pages in any order, over steps, with windows, in parts or not.

    With a turn like this one, if there is one: kernels with and without are different ones.
    """
    turn = turn and _mild(turn, form)
    try:
        cases = (0, 128), (0, 1024), (SIZE + 5, 128)
        worst = max(_difference(kind, form, turn, window, part) for window, part in cases)
    except RuntimeError:
        # What MLX raises where a kernel does not compile or does not launch.
        log.warning("a kernel does not run on this device: plain operations take its place", exc_info=True)
        return False
    # Not "above it": a difference that is no number is neither above nor within.
    if worst <= TOLERANCE[form.dtype]:
        return True
    log.warning("a kernel computes something else than plain operations, which take its place", extra={"worst": worst})
    return False


def _mild(turn: Turn, form: Form) -> Turn:
    """With norms of other weights: a model's own may be so large that scores differ by what rounding makes of them."""
    query, key = (
        norm
        if norm is None
        else (1 + mx.random.uniform(0, 0.5, norm.shape, key=mx.random.key(place))).astype(form.dtype)
        for place, norm in enumerate((turn.query_norm, turn.key_norm))
    )
    return replace(turn, query_norm=query, key_norm=key)


def _difference(kind: Callable[[Form, int], Store], form: Form, turn: Turn | None, window: int, part: int) -> float:
    form = replace(form, layers=LAYERS)
    stores = kind(form, 8), PlainStore(form, 8)
    pages = _scattered([(length + 2) // SIZE + 1 for length in LENGTHS])
    keys = mx.random.split(mx.random.key(part + window), 6)
    held = [_random(form, form.kv_heads, max(LENGTHS), key) for key in keys[:2]]
    plans = [_begun(store, pages, held, part) for store in stores]
    worst = 0.0
    for step in range(2):
        heads = (form.kv_heads * form.queries, form.kv_heads, form.kv_heads)
        token = [_random(form, count, 1, key) for count, key in zip(heads, keys[2 + step :], strict=False)]
        for layer in range(LAYERS):
            attended, expected = (
                store.attend(layer, (token[0], token[1], token[2]), plan, form.head_size**-0.5, window, turn)
                for store, plan in zip(stores, plans, strict=True)
            )
            apart = mx.abs(attended.astype(mx.float32) - expected.astype(mx.float32)).max()
            worst = max(worst, float(apart / mx.abs(expected).max()))
        for plan in plans:
            plan.lengths, plan.age = plan.lengths + 1, plan.age + 1
    return worst


def _begun(store: Store, pages: Sequence[Sequence[int]], held: Sequence[mx.array], part: int) -> Plan:
    store.hold(-(-sum(map(len, pages)) // store.slab))
    plan = planned(store, pages, LENGTHS, steps=2, part=part)
    keys, values = held
    for layer in range(LAYERS):
        store.write(layer, keys, values, Goal(plan.table, LENGTHS))
    return plan


def _scattered(counts: Sequence[int]) -> list[list[int]]:
    """So many pages for each row, no two of a row side by side."""
    free = [*range(0, sum(counts), 2), *range(1, sum(counts), 2)]
    return [[free.pop() for _ in range(count)] for count in counts]


def _random(form: Form, heads: int, columns: int, key: mx.array) -> mx.array:
    shape = (len(LENGTHS), heads, columns, form.head_size)
    return mx.random.normal(shape, key=key).astype(form.dtype)
