"""Products of few rows with a model's weights, several weights in one launch, on a CUDA device. Knows arrays only.

MLX asks cuBLAS for each product, which costs the host far more than a launch: many such products make a decoding step.
What a model does right before and after a product can be in its launch too, as each launch costs the host more than
the device. It is rounded less often there than by MLX: the last bits differ.
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
class Norm:
    """An RMS norm over the last axis, its weight of the products' dtype."""

    weight: mx.array
    eps: float


@dataclass(frozen=True, slots=True)
class Form:
    """How a product is cut up, as product.cu says it."""

    tiles: int
    tall: int
    shared: int
    normed: bool = False

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
        """Of shared memory: for what is fetched, and then for the sums of all warps, and for those of squares."""
        squares = WARPS // self.beside * self.tiles * 8 * 4 if self.normed else 0
        return max(self.stages * self._stage_bytes, WARPS * self.wide * self.tiles * PART_BYTES + squares)

    @property
    def _stage_bytes(self) -> int:
        return WARPS // self.beside * (2 * self.wide * self.beside + self.tiles + self.normed) * PART_BYTES

    @property
    def gates(self) -> bool:
        """Whether half of a block's warps can have other weights than the rest."""
        return self.beside > 1

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


def products(x: mx.array, layers: Sequence[Layer], norm: Norm | None = None) -> list[mx.array]:
    """`x` [..., depth] times each weight [width, depth], lazily. All of one dtype and depth, all biased or none."""
    widths = tuple(layer.width for layer in layers)
    return in_form(_form(_rows(x), widths, x.shape[-1], normed=norm is not None), x, layers, norm)


def in_form(form: Form, x: mx.array, layers: Sequence[Layer], norm: Norm | None = None) -> list[mx.array]:
    """The same, cut up so. A form is for products with a norm or for those without."""
    kind = _Kind(form, len(layers), _biased(layers), eps=norm.eps if norm else None)
    return _launched(kind, x, layers, [layer.width for layer in layers], [norm.weight] if norm else [])


def added(x: mx.array, layer: Layer, to: mx.array) -> mx.array:
    """`to` [..., width] and the product."""
    kind = _Kind(_form(_rows(x), (layer.width,), x.shape[-1]), 1, _biased([layer]), added=True)
    return _launched(kind, x, [layer], [layer.width], [to])[0]


def gated(x: mx.array, gate: Layer, up: Layer, norm: Norm | None = None) -> mx.array:
    """silu of the gate's product, times the other's. Both of one width."""
    form = _form(_rows(x), (2 * gate.width,), x.shape[-1], normed=norm is not None, gated=True)
    kind = _Kind(form, 2, _biased([gate, up]), eps=norm.eps if norm else None, gated=True)
    return _launched(kind, x, [gate, up], [gate.width], [norm.weight] if norm else [])[0]


def _rows(x: mx.array) -> int:
    return x.size // x.shape[-1]


def _biased(layers: Sequence[Layer]) -> bool:
    return layers[0].bias is not None


@functools.cache
def _form(rows: int, widths: tuple[int, ...], depth: int, *, normed: bool = False, gated: bool = False) -> Form:
    return form(rows, widths, depth, _shared(), normed=normed, gated=gated)


def form(
    rows: int, widths: Sequence[int], depth: int, shared: int, *, normed: bool = False, gated: bool = False
) -> Form:
    """The one that takes least with the most rows of its kind. Gated layers are as wide as both are."""
    most = next(most for most in TILES if rows <= most)
    forms = [Form(TILES[most], tall, shared, normed) for tall in TALL]
    forms = [one for one in forms if one.fits and (one.gates or not gated)]
    return min(forms, key=lambda one: one.nanoseconds(most, widths, depth))


@functools.cache
def _shared() -> int:
    info = mx.device_info()
    capability = int(info["compute_capability_major"]), int(info["compute_capability_minor"])
    return SHARED.get(capability, LEAST_SHARED) << 10


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a kernel is compiled for, beside a dtype."""

    form: Form
    layers: int
    biased: bool
    eps: float | None = None
    gated: bool = False
    added: bool = False

    @property
    def weights(self) -> list[str]:
        return [f"w{n}" for n in range(self.layers)]

    @property
    def biases(self) -> list[str]:
        return [f"b{n}" for n in range(self.layers) if self.biased]

    @property
    def around(self) -> list[str]:
        return ["norm"] * (self.eps is not None) + ["to"] * self.added

    @property
    def outputs(self) -> list[str]:
        return [f"out{n}" for n in range(1 if self.gated else self.layers)]

    @property
    def call(self) -> str:
        form, biases = self.form, self.biases or ["nullptr"] * self.layers
        three = zip(self.weights, biases, self.outputs * (2 if self.gated else 1), strict=True)
        said = ", ".join(f"{{{weight}, {bias}, {out}, {weight}_shape[0]}}" for weight, bias, out in three)
        numbers = f"{form.tiles}, {form.wide}, {form.beside}, {form.stages}"
        return (
            f"const mlxrpc::Layer<T> layers[] = {{{said}}};"
            f" mlxrpc::product<T, {numbers}, {self._options}>"
            f"(x, mlxrpc::rows_of(x_shape, x_ndim), w0_shape[1], layers, {self._values});"
        )

    @property
    def _options(self) -> str:
        return ", ".join("true" if one else "false" for one in (self.eps is not None, self.gated, self.added))

    @property
    def _values(self) -> str:
        norm, eps = ("nullptr", 0.0) if self.eps is None else ("norm", self.eps)
        return f"{{{norm}, {float(eps)!r}f, {'to' if self.added else 'nullptr'}}}"


def _launched(
    kind: _Kind, x: mx.array, layers: Sequence[Layer], widths: Sequence[int], around: Sequence[mx.array]
) -> list[mx.array]:
    form = kind.form
    beside, above = form.blocks(_rows(x), [2 * width for width in widths] if kind.gated else widths)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return list(
        _kernel(kind)(
            inputs=[x, *(layer.weight for layer in layers), *biases, *around],
            template=[("T", x.dtype)],
            grid=(beside * WARPS * 32, above, 1),
            threadgroup=(WARPS * 32, 1, 1),
            output_shapes=[(*x.shape[:-1], width) for width in widths],
            output_dtypes=[x.dtype] * len(widths),
        )
    )


@functools.cache
def _kernel(kind: _Kind) -> Any:
    return cuda_kernel(
        ("later", "product"),
        inputs=("x", *kind.weights, *kind.biases, *kind.around),
        outputs=kind.outputs,
        call=kind.call,
        shared=kind.form.bytes,
    )
