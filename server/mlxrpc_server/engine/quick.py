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
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import RMSNorm
from mlx.nn.layers.positional_encoding import RoPE
from mlx_lm.models.rope_utils import Llama3RoPE

from mlxrpc_server.engine import attention, thin
from mlxrpc_server.engine.attention import Window
from mlxrpc_server.engine.kernels import product
from mlxrpc_server.engine.kernels.product import MOST_ROWS, Layer, Norm
from mlxrpc_server.engine.kernels.turn import Token, Turn, frequencies, turned

log = logging.getLogger(__name__)

PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
FEEDING = {"gate_proj", "up_proj", "down_proj"}

PROBES = (4, 50, 100)
"""Rows on which a block is tried, for every form of the kernels."""

POSITIONS = (0, 1, 70, 1000)
"""Of these rows, in turns."""

WINDOW = 5

TOLERANCE = 2e-2
"""How far anything may differ, as a part of the largest number in it: some last bits of bfloat16."""


class Stepping(Protocol):
    """A layer's cache that holds rows in pages."""

    def attend_turned(self, token: Token, scale: float, mask: Any, turn: Turn) -> mx.array:
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
        attended = cache.attend_turned((queries, keys, values), self.scale, mask, self.turn)
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
        if not (hasattr(cache, "attend_turned") and self.step.takes(x)):
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
    """Of each block that takes a step so from now on. Parameters stay what and where they are."""
    attention.route(model)
    blocks = {id(block): block for block in model.modules() if set(block) == PARTS}.values()
    steps = [(block, step) for block in blocks if (step := _found(block, head_size, launch))]
    turns = [step.attending.turn for block, step in steps if _quickened(block, step)]
    if len(turns) < len(steps):
        log.warning("blocks compute something else than was found in them, and take their own steps")
    return turns


def remove(model: Any) -> None:
    for block in model.modules():
        if isinstance(block, Quick):
            _leave(block)


def _quickened(block: Any, step: Step) -> bool:
    block.step = step
    block.__class__ = _quick(block.__class__)
    if _agrees(block):
        return True
    _leave(block)
    return False


def _leave(block: Any) -> None:
    block.__class__ = _usual(block)
    del block.step


@functools.cache
def _quick(kind: Any) -> type:
    """Still of the module that the block comes from: that is where functions of ours are put in mlx-lm's place."""
    return type(kind.__name__, (Quick, kind), {"__module__": kind.__module__})


def _usual(block: Any) -> Any:
    _made, _mixed_in, kind, *_ = type(block).__mro__
    return kind


def _found(block: Any, head_size: int, launch: Launches) -> Step | None:
    """Where it has what such a block has, and nothing else."""
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
    normed = norm.weight.dtype == queries.weight.dtype
    if not (whole and normed and _alike(*asked) and isinstance(getattr(module, "scale", None), float)):
        raise OtherwiseBuilt
    return Attending(norm, (queries, keys, values), _layer(module, "o_proj"), module.scale, turn, head_size)


def _feeding(module: Any, norm: Norm) -> Feeding:
    gate, up, down = (_layer(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    if not _alike(gate, up) or gate.width != up.width or norm.weight.dtype != gate.weight.dtype:
        raise OtherwiseBuilt
    return Feeding(norm, gate, up, down)


def _layer(parent: Any, name: str) -> Layer:
    linear = parent.get(name)
    if isinstance(linear, Linear) and (layer := thin.layer_of(linear)).suits:
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
        return frequencies(rope.dims, rope.base) / rope.scale
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

    def attend_turned(self, token: Token, scale: float, mask: Any, turn: Turn) -> mx.array:
        self.heard = (*turned(token, self.offset, turn), scale, mask)
        return self.answer

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, mx.array]:
        self.heard = keys, values
        return self, values

    def attend(self, queries: mx.array, scale: float, mask: Any) -> mx.array:
        self.heard = (queries, *self.heard, scale, mask)
        return self.answer


def _agrees(block: Any) -> bool:
    """Whether it attends with what the block attends with, and makes the same of the answer."""
    try:
        return all(_near(*both) for rows in PROBES for both in zip(*_said(block, rows), strict=True))
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # What MLX raises where a kernel does not run, and a model's own code on a cache that it does not expect.
        log.warning("a block's step in few launches does not run here", exc_info=True)
        return False


def _said(block: Any, rows: int) -> Iterator[tuple[Any, ...]]:
    """By the quick step, and then by the block itself."""
    attending = block.step.attending
    dtype, queries = attending.output.weight.dtype, attending.asked[0]
    keys = mx.random.split(mx.random.key(rows), 2)
    x = mx.random.normal((rows, 1, queries.depth), key=keys[0]).astype(dtype)
    heads = queries.width // attending.head_size
    answer = mx.random.normal((rows, heads, 1, attending.head_size), key=keys[1]).astype(dtype)
    offset = mx.array([POSITIONS[row % len(POSITIONS)] for row in range(rows)])
    for call in (Quick.__call__, _usual(block).__call__):
        cache = Witness(offset, answer)
        yield (call(block, x, Window(WINDOW), cache), *cache.heard)


def _near(one: Any, other: Any) -> bool:
    if not isinstance(one, mx.array):
        return bool(one == other)
    apart = mx.abs((one.reshape(other.shape) - other).astype(mx.float32)).max()
    # Not "farther": a difference that is no number is neither near nor far.
    return bool(apart <= TOLERANCE * mx.maximum(mx.abs(other).max(), 1e-6))
