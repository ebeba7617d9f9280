"""Exponentials of many numbers on a CPU, and what a prompt needs them for: attention and gates.

MLX's CPU backend asks the C library for each one, 12 to 20 ns apiece, where a product or a sum takes 0.2: as long as a
model's products in all. From those, an exponential is four times as fast. Knows mlx-lm's gate by its name.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from mlx_lm.models import activations

from mlxrpc_server.engine import device
from mlxrpc_server.engine.reroute import reroute

MANY = 1 << 14
"""Numbers from which the launches of some twenty operations cost less than they save."""

LEAST, MOST = -87.0, 88.0
"""Beyond which float32 has no number of the ordinary form."""

TERMS = [1 / math.factorial(power) for power in range(7)]
"""Of the series, enough for float32 within half an octave of one."""

CHUNK = 64
"""Queries that are taken at once: fewer take more launches, and of more the first ones see keys in vain."""

HIDDEN = -1e30

NAME = "swiglu"

_swiglu = activations.swiglu


def exponential(x: mx.array) -> mx.array:
    """Of float32 up to `MOST`, to a unit or two of the last place; below `LEAST` it stays what it is there."""
    powers: mx.array = _with_slope(x)
    return powers


def _powers(x: mx.array) -> mx.array:
    octaves = mx.maximum(x, LEAST) * math.log2(math.e)
    whole = mx.round(octaves)
    rest = (octaves - whole) * math.log(2)
    series = TERMS[-1] * rest + TERMS[-2]
    for term in reversed(TERMS[:-2]):
        series = series * rest + term
    # Two to a whole power, written into the bits where float32 keeps its exponent.
    return series * ((whole.astype(mx.int32) + 127) << 23).view(mx.float32)


_with_slope: Any = mx.custom_function(_powers)


@_with_slope.vjp  # type: ignore[untyped-decorator]
def _slope(_x: mx.array, cotangent: mx.array, powers: mx.array) -> mx.array:
    """Bits have none of their own, and whoever trains a model in this process needs it."""
    return cotangent * powers


def route(model: Any) -> None:
    """From now on the model's gates come here; those of few numbers, or in half precision, go mlx-lm's own way."""
    reroute(model, NAME, _swiglu, swiglu)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    if gate.size < MANY or gate.dtype != mx.float32:
        gated: mx.array = _swiglu(gate, x)
        return gated
    return gate / (1 + exponential(mx.minimum(-gate, MOST))) * x


def suits(queries: mx.array, mask: Any, sinks: mx.array | None) -> bool:
    """Whether it is a prompt's attention on a CPU."""
    return (
        isinstance(mask, str)
        and mask == "causal"
        and sinks is None
        and queries.dtype == mx.float32
        and queries.shape[2] >= CHUNK // 2
        and device.on_cpu()
    )


def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Of each query to the keys up to its own, which is the last one's for the last query."""
    asked, held = queries.shape[2], keys.shape[2]
    parts = []
    for begin in range(0, asked, CHUNK):
        seen = held - asked + min(begin + CHUNK, asked)
        parts.append(_attend(queries[:, :, begin : begin + CHUNK] * scale, keys[:, :, :seen], values[:, :, :seen]))
    return mx.concatenate(parts, axis=2)


def _attend(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    rows, heads, asked, _size = queries.shape
    groups, seen = keys.shape[1:3]
    # Queries that ask the same keys, in one product.
    together = queries.reshape(rows, groups, heads // groups * asked, -1)
    scores = (together @ keys.swapaxes(-1, -2)).reshape(rows, groups, heads // groups, asked, seen)
    hidden = mx.arange(seen) > mx.arange(seen - asked, seen)[:, None]
    scores = mx.where(hidden, HIDDEN, scores)
    shares = exponential(scores - scores.max(axis=-1, keepdims=True))
    sums = (shares.reshape(*together.shape[:3], seen) @ values).reshape(*shares.shape[:4], -1)
    return (sums / shares.sum(axis=-1, keepdims=True)).reshape(rows, heads, asked, -1)
