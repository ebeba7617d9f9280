"""Products of few rows with a model's weights, several weights in one launch, on a CUDA device. Knows arrays only.

MLX asks cuBLAS for each product, which costs the host far more than a launch: many such products make a decoding step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.kernels import cuda_kernel

TILES = {16: 2, 64: 8, 128: 8}
"""Of eight rows, for a block: by the most rows that a form is for. Each form takes a second to compile."""

MOST_ROWS = max(TILES)
MOST_LAYERS = 3
STEP = 8
"""Widths and depths are whole multiples of this: sixteen bytes."""

WARPS = 8
PART_BYTES = 512
"""What a warp fetches at once: sixteen bytes a lane."""

TALL = (16, 32, 64, 128)
"""Of one weight's rows, so many to a block."""

MOST_STAGES = 8
SHARED = {(8, 0): 160, (9, 0): 224, (10, 0): 224}
LEAST_SHARED = 96
"""KiB that a block may have, by compute capability; on all others."""

PROCESSORS = 132
FETCHED, FETCHED_ALONE = 6000, 100
"""Bytes in a nanosecond, to all processors of the device and to one. Not a promise: they only tell one form from another."""


@dataclass(frozen=True, slots=True)
class Layer:
    weight: mx.array
    bias: mx.array | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def depth(self) -> int:
        return self.weight.shape[1]

    @property
    def suits(self) -> bool:
        """Whether its products can be had from here."""
        halves = self.weight.dtype in (mx.float16, mx.bfloat16)
        biased = self.bias is None or self.bias.dtype == self.weight.dtype
        return halves and biased and self.weight.ndim == 2 and not (self.width % STEP or self.depth % STEP)


@dataclass(frozen=True, slots=True)
class Form:
    """How a product is cut up, as product.cu says it."""

    tiles: int
    tall: int
    shared: int

    @property
    def beside(self) -> int:
        return 1 if self.tall == TALL[0] else 2

    @property
    def wide(self) -> int:
        return self.tall // (16 * self.beside)

    @property
    def stages(self) -> int:
        return min(MOST_STAGES, self.shared // self._stage_bytes)

    @property
    def bytes(self) -> int:
        """Of shared memory: for what is fetched, and then for the sums of all warps."""
        return max(self.stages * self._stage_bytes, WARPS * self.wide * self.tiles * PART_BYTES)

    @property
    def _stage_bytes(self) -> int:
        return WARPS // self.beside * (2 * self.wide * self.beside + self.tiles) * PART_BYTES

    @property
    def fits(self) -> bool:
        return self.stages > 1 and self.bytes <= self.shared

    def blocks(self, rows: int, widths: Sequence[int]) -> tuple[int, int]:
        return sum(-(-width // self.tall) for width in widths), -(-rows // (8 * self.tiles))

    def nanoseconds(self, rows: int, widths: Sequence[int], depth: int) -> float:
        """What it takes about: x comes to every block anew, and a block is as slow as one processor."""
        beside, above = self.blocks(rows, widths)
        fetched = 2 * depth * (self.tall + min(rows, 8 * self.tiles))
        turns = -(-beside * above // PROCESSORS)
        return max(beside * above * fetched / FETCHED, turns * fetched / FETCHED_ALONE)


def available() -> bool:
    """Whether this device has what the kernel is made of."""
    on_cuda = mx.default_device() == mx.Device(mx.gpu) and mx.cuda.is_available()
    return on_cuda and int(mx.device_info()["compute_capability_major"]) >= 8


def products(x: mx.array, layers: Sequence[Layer]) -> list[mx.array]:
    """`x` [..., depth] times each weight [width, depth], lazily. All of one dtype and depth, all biased or none."""
    widths = tuple(layer.width for layer in layers)
    return in_form(_form(x.size // x.shape[-1], widths, x.shape[-1]), x, layers)


def in_form(form: Form, x: mx.array, layers: Sequence[Layer]) -> list[mx.array]:
    widths = [layer.width for layer in layers]
    beside, above = form.blocks(x.size // x.shape[-1], widths)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return list(
        _kernel(form, len(layers), bool(biases))(
            inputs=[x, *(layer.weight for layer in layers), *biases],
            template=[("T", x.dtype)],
            grid=(beside * WARPS * 32, above, 1),
            threadgroup=(WARPS * 32, 1, 1),
            output_shapes=[(*x.shape[:-1], width) for width in widths],
            output_dtypes=[x.dtype] * len(layers),
        )
    )


@functools.cache
def _form(rows: int, widths: tuple[int, ...], depth: int) -> Form:
    return form(rows, widths, depth, _shared())


def form(rows: int, widths: Sequence[int], depth: int, shared: int) -> Form:
    """The one that takes least with the most rows of its kind."""
    most = next(most for most in TILES if rows <= most)
    forms = [one for tall in TALL if (one := Form(TILES[most], tall, shared)).fits]
    return min(forms, key=lambda one: one.nanoseconds(most, widths, depth))


@functools.cache
def _shared() -> int:
    info = mx.device_info()
    capability = int(info["compute_capability_major"]), int(info["compute_capability_minor"])
    return SHARED.get(capability, LEAST_SHARED) << 10


@functools.cache
def _kernel(form: Form, layers: int, biased: bool) -> Any:
    each = range(layers)
    said = ", ".join(f"{{w{n}, {f'b{n}' if biased else 'nullptr'}, out{n}, w{n}_shape[0]}}" for n in each)
    numbers = f"{form.tiles}, {form.wide}, {form.beside}, {form.stages}"
    return cuda_kernel(
        ("later", "product"),
        inputs=("x", *(f"w{n}" for n in each), *(f"b{n}" for n in each if biased)),
        outputs=[f"out{n}" for n in each],
        call=f"const mlxrpc::Layer<T> layers[] = {{{said}}};"
        f" mlxrpc::product<T, {numbers}>(x, mlxrpc::rows_of(x_shape, x_ndim), w0_shape[1], layers);",
        shared=form.bytes,
    )
