"""A transformer block's step over rows in pages, in five launches: a launch costs the host more than most cost the device.

For blocks of mlx-lm's that are built like Llama's or Qwen3's: their small operations, norms and turns and sums and gates,
are done by the kernels that multiply and attend. Prompts, and all other blocks, go mlx-lm's way. What was found in a block
is kept only where it gives what the block itself gives. Knows mlx-lm's modules by what they hold.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import RMSNorm
from mlx.nn.layers.positional_encoding import RoPE
from mlx_lm.models.rope_utils import Llama3RoPE

from mlxrpc_server.engine import attention
from mlxrpc_server.engine.kernels import product
from mlxrpc_server.engine.kernels.product import MOST_ROWS, Layer, Norm
from mlxrpc_server.engine.kernels.turn import Token, Turn, turned

log = logging.getLogger(__name__)

PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
FEEDING = {"gate_proj", "up_proj", "down_proj"}

POSITIONS = (0, 1, 70, 1000)
"""Of the rows on which a block is tried."""

TOLERANCE = 2e-2
"""How far anything may differ, as a part of the largest number in it: some last bits of bfloat16."""


@runtime_checkable
class Stepping(Protocol):
    """A layer's cache that holds rows in pages."""

    def advance(self, token: Token, scale: float, mask: Any, turn: Turn) -> mx.array:
        """Attends with each row's new query, which is turned here, as its new key is, and takes key and value in."""


class Launches(Protocol):
    """What `product` has; each is one launch."""

    def products(self, x: mx.array, layers: Sequence[Layer], norm: Norm | None = None) -> list[mx.array]: ...
    def added(self, x: mx.array, layer: Layer, to: mx.array) -> mx.array: ...
    def gated(self, x: mx.array, gate: Layer, up: Layer, norm: Norm | None = None) -> mx.array: ...


@dataclass(frozen=True, slots=True)
class Attending:
    norm: Norm
    asked: tuple[Layer, Layer, Layer]
    """That give queries, keys and values."""
    output: Layer
    scale: float
    turn: Turn
    head_size: int

    def __call__(self, launch: Launches, x: mx.array, mask: Any, cache: Stepping) -> mx.array:
        asked = launch.products(x, self.asked, self.norm)
        queries, keys, values = (heads.reshape(len(x), -1, 1, self.head_size) for heads in asked)
        attended = cache.advance((queries, keys, values), self.scale, mask, self.turn)
        return launch.added(attended.reshape(len(x), 1, -1), self.output, x)


@dataclass(frozen=True, slots=True)
class Feeding:
    norm: Norm
    gate: Layer
    up: Layer
    down: Layer

    def __call__(self, launch: Launches, x: mx.array) -> mx.array:
        return launch.added(launch.gated(x, self.gate, self.up, self.norm), self.down, x)


@dataclass(frozen=True, slots=True)
class Step:
    launch: Launches
    attending: Attending
    feeding: Feeding | None
    """None where a block has something else in its place."""

    def takes(self, x: mx.array) -> bool:
        return len(x) <= MOST_ROWS and x.dtype == self.attending.output.weight.dtype


class Quick:
    """Comes before a block's own class."""

    step: Step

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        launch, feeding = self.step.launch, self.step.feeding
        if not (isinstance(cache, Stepping) and self.step.takes(x)):
            usual: mx.array = super().__call__(x, mask, cache)  # type: ignore[misc]
            return usual
        x = self.step.attending(launch, x, mask, cache)
        if feeding is not None:
            return feeding(launch, x)
        fed: mx.array = x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[attr-defined]
        return fed


class OtherwiseBuilt(Exception):
    """A block is none that this is for."""


def install(model: Any, head_size: int, launch: Launches = product) -> list[Turn]:
    """Of each block that takes a step so from now on: all that there are, or none. Parameters stay what and where they are."""
    attention.route(model)
    blocks = [(block, step) for block in model.modules() if (step := _found(block, head_size, launch))]
    for block, step in blocks:
        block.step = step
        block.__class__ = _quick(block.__class__)
    try:
        agreed = all(_agrees(block, step) for block, step in blocks)
    except RuntimeError:
        # What MLX raises where a kernel does not compile or does not launch.
        log.warning("a kernel does not run on this device: blocks take their own steps", exc_info=True)
        agreed = False
    if not agreed:
        remove(model)
    return [step.attending.turn for _, step in blocks] if agreed else []


def remove(model: Any) -> None:
    for block in model.modules():
        if isinstance(block, Quick):
            block.__class__ = _usual(block)
            del block.step


@functools.cache
def _quick(kind: Any) -> type:
    """Still of the module that the block comes from: that is where functions of ours are put in mlx-lm's place."""
    return type(kind.__name__, (Quick, kind), {"__module__": kind.__module__})


def _usual(block: Any) -> Any:
    _quick, _mixed_in, kind, *_ = type(block).__mro__
    return kind


def _found(block: Any, head_size: int, launch: Launches) -> Step | None:
    """Where it has what such a block has, and nothing else."""
    if set(block) != PARTS:
        return None
    try:
        attending = _attending(block["self_attn"], _norm(block["input_layernorm"]), head_size)
        norm = _norm(block["post_attention_layernorm"])
        feeding = _feeding(block["mlp"], norm) if set(block["mlp"]) == FEEDING else None
    except OtherwiseBuilt:
        return None
    return Step(launch, attending, feeding)


def _attending(module: Any, norm: Norm, head_size: int) -> Attending:
    queries, keys, values = asked = tuple(_layer(module, name) for name in ("q_proj", "k_proj", "v_proj"))
    turn = _turn(module)
    whole = not any(layer.width % head_size for layer in asked) and turn.suits(head_size)
    if not (whole and _alike(*asked) and isinstance(getattr(module, "scale", None), float)):
        raise OtherwiseBuilt
    return Attending(norm, (queries, keys, values), _layer(module, "o_proj"), module.scale, turn, head_size)


def _feeding(module: Any, norm: Norm) -> Feeding:
    gate, up, down = (_layer(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    if not _alike(gate, up) or gate.width != up.width:
        raise OtherwiseBuilt
    return Feeding(norm, gate, up, down)


def _layer(parent: Any, name: str) -> Layer:
    linear = parent.get(name)
    if isinstance(linear, Linear) and (layer := Layer(linear["weight"], linear.get("bias"))).suits:
        return layer
    raise OtherwiseBuilt


def _alike(*layers: Layer) -> bool:
    """Whether one launch takes them all."""
    return len({(layer.depth, layer.weight.dtype, layer.bias is None) for layer in layers}) == 1


def _norm(module: Any) -> Norm:
    if type(module) is RMSNorm:
        return Norm(module["weight"], module.eps)
    raise OtherwiseBuilt


def _turn(attention: Any) -> Turn:
    queries, keys = ((_norm(attention[name]) if name in attention else None) for name in ("q_norm", "k_norm"))
    rope, epses = attention.get("rope"), {norm.eps for norm in (queries, keys) if norm}
    if len(epses) > 1:
        raise OtherwiseBuilt
    return Turn(
        _frequencies(rope),
        rope.dims,
        rope.traditional,
        query_norm=queries.weight if queries else None,
        key_norm=keys.weight if keys else None,
        eps=max(epses, default=0.0),
    )


def _frequencies(rope: Any) -> mx.array:
    if type(rope) is RoPE:
        powers: mx.array = rope.base ** (mx.arange(0, rope.dims, 2, dtype=mx.float32) / rope.dims)
        return powers / rope.scale
    if type(rope) is Llama3RoPE:
        own: mx.array = rope._freqs  # noqa: SLF001
        return own.astype(mx.float32)
    raise OtherwiseBuilt


@dataclass(slots=True)
class Witness:
    """A layer's cache that notes what it is asked with, and gives an answer that was made up."""

    offset: mx.array
    answer: mx.array
    heard: tuple[Any, ...] = ()

    def advance(self, token: Token, scale: float, _mask: Any, turn: Turn) -> mx.array:
        self.heard = (*turned(token, self.offset, turn), scale)
        return self.answer

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, mx.array]:
        self.heard = keys, values
        return self, values

    def attend(self, queries: mx.array, scale: float, _mask: Any) -> mx.array:
        self.heard = (queries, *self.heard, scale)
        return self.answer


def _agrees(block: Any, step: Step) -> bool:
    """Whether it attends with what the block attends with, and makes the same of the answer."""
    said = list(_said(block, step))
    agreed = all(_near(*both) for both in zip(*said, strict=True))
    if not agreed:
        log.warning("a block's quick step computes something else than the block, which takes its own steps")
    return agreed


def _said(block: Any, step: Step) -> Iterator[tuple[Any, ...]]:
    """By the quick step, and then by the block itself."""
    output, queries = step.attending.output, step.attending.asked[0]
    keys = mx.random.split(mx.random.key(len(POSITIONS)), 2)
    dtype, rows = output.weight.dtype, len(POSITIONS)
    x = mx.random.normal((rows, 1, queries.depth), key=keys[0]).astype(dtype)
    heads = queries.width // step.attending.head_size
    answer = mx.random.normal((rows, heads, 1, step.attending.head_size), key=keys[1]).astype(dtype)
    for call in (Quick.__call__, _usual(block).__call__):
        cache = Witness(mx.array(POSITIONS), answer)
        yield (call(block, x, None, cache), *cache.heard)


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, float):
        return bool(one == other)
    apart = mx.abs((one.reshape(other.shape) - other).astype(mx.float32)).max()
    # Not "farther": a difference that is no number is neither near nor far.
    return bool(apart <= TOLERANCE * mx.maximum(mx.abs(other).max(), 1e-6))
