"""Keys and values in 8 or 4 bits: more rows and longer ones in the same memory, for a little of the model's precision.

Each token's are quantized once, before anything attends to them, so that a row gives the same whether it was prefilled
at once, in chunks, or again after it had lost its place. Knows arrays; nothing of rows and who they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from mlx_lm.models.cache import QuantizedKVCache

GROUPS = (64, 32)
"""So many numbers share a scale and a bias. The larger cost less."""

Triple = tuple[mx.array, mx.array, mx.array]
"""The packed numbers, their scales and their biases."""


def packing(caches: Sequence[Any], bits: int) -> Quantized | None:
    """For a model with such plain caches; None where groups do not divide its heads."""
    widths = {array.shape[-1] for cache in caches for array in (cache.keys, cache.values)}
    group = next((group for group in GROUPS if all(width % group == 0 for width in widths)), None)
    return None if group is None else Quantized(bits, group, len(caches))


@dataclass(frozen=True, slots=True)
class Quantized:
    bits: int
    group: int
    layers: int

    def open(self, _model: Any, held: Sequence[Sequence[mx.array]] = ()) -> list[Any]:
        return [Prefill(self, layer) for layer in held] or [Prefill(self) for _ in range(self.layers)]

    def stored(self, layer: Any) -> Sequence[mx.array]:
        arrays: Sequence[mx.array] = layer.arrays
        return arrays

    def packed(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return *self._packed(keys), *self._packed(values)

    def attend(self, queries: mx.array, stored: Sequence[mx.array], scale: float, mask: mx.array | None) -> mx.array:
        keys, scales, biases, *values = stored
        attended: mx.array = quantized_scaled_dot_product_attention(
            queries, (keys, scales, biases), (values[0], values[1], values[2]), scale, mask, self.group, self.bits
        )
        return attended

    def unpacked(self, stored: Triple) -> mx.array:
        packed, scales, biases = stored
        return mx.dequantize(packed, scales, biases, group_size=self.group, bits=self.bits)

    def _packed(self, array: mx.array) -> Triple:
        packed, scales, biases = mx.quantize(array, group_size=self.group, bits=self.bits)
        return packed, scales, biases


class Prefill:
    """One layer of a prefill, in the shape that mlx-lm's models expect of a cache.

    It stores what mlx-lm's own quantized cache does, and shows what that stands for: attention of many tokens to many is
    faster over numbers than over what is packed, and needs no scores in memory.
    """

    def __init__(self, packing: Quantized, held: Sequence[mx.array] = ()) -> None:
        self._packing = packing
        self._cache: Any = QuantizedKVCache(packing.group, packing.bits)
        if held:
            state = tuple(held[:3]), tuple(held[3:]), held[0].shape[2], packing.group, packing.bits
            self._cache.state = state

    @property
    def offset(self) -> int:
        return int(self._cache.offset)

    @property
    def arrays(self) -> list[mx.array]:
        return [*self._cache.keys, *self._cache.values]

    @property
    def state(self) -> list[mx.array]:
        return self.arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def make_mask(self, *arguments: Any, **options: Any) -> Any:
        return self._cache.make_mask(*arguments, **options)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        stored = self._cache.update_and_fetch(keys, values)
        unpacked_keys, unpacked_values = map(self._packing.unpacked, stored)
        return unpacked_keys, unpacked_values
