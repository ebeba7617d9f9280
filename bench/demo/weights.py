"""The built-in model's weights, read for making others of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model

from demo.architectures import PEBBLE


def as_shipped() -> tuple[Any, dict[str, Any]]:
    model, config = load_model(PEBBLE, lazy=True)
    return model, config


def in_float32() -> tuple[Any, dict[str, Any]]:
    """Which holds each of the shipped values exactly."""
    model, config = as_shipped()
    model.set_dtype(mx.float32)  # the scales, before anything is multiplied by them
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    return dequantize_model(model), kept | {"dtype": "float32"}


def arrays(model: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)
