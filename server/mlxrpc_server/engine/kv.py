"""Where the rows' keys and values live, and how one decoding step runs over them.

`Slots` holds the rows of plain attention models in preallocated arrays and decodes all of them in one forward
pass. `Lanes` takes any other model of mlx-lm, each row in its own cache and its own pass. Both keep rows in
order: a join appends, a leave moves the last row into the gap. They know tokens and caches, not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

Forward = Callable[..., mx.array]
"""A model of mlx-lm: (tokens [rows, n], cache=list) -> logits [rows, n, vocabulary]."""

COLUMN_STEP = 256
"""Rows grow by multiples of this, as mlx-lm's own cache does."""


class KV(Protocol):
    """What the batch needs of either."""

    def open(self) -> list[Any]:
        """An empty cache for one row's prefill."""

    def join(self, cache: list[Any]) -> None: ...

    def leave(self, index: int) -> None: ...

    def decode(self, tokens: Sequence[int]) -> mx.array:
        """Feeds each row its token; gives the logits behind it, [rows, vocabulary]."""


def for_model(model: Any) -> KV:
    """Slots where every layer keeps plain keys and values, else Lanes."""
    plain = all(type(cache) is KVCache for cache in make_prompt_cache(model))
    return Slots(model) if plain else Lanes(model)


class Slots:
    """Rows side by side in preallocated arrays, each with its own length."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._lengths: list[int] = []
        self._layers = [_Layer() for _ in make_prompt_cache(model)]

    def open(self) -> list[Any]:
        return make_prompt_cache(self._model)

    def join(self, cache: list[Any]) -> None:
        row, length = len(self._lengths), cache[0].offset
        for layer, prefilled in zip(self._layers, cache, strict=True):
            if length:
                layer.write_row(row, prefilled.keys[:, :, :length], prefilled.values[:, :, :length])
        self._lengths.append(length)

    def leave(self, index: int) -> None:
        last = len(self._lengths) - 1
        for layer in self._layers:
            if not last:
                layer.clear()
            elif index != last and self._lengths[last]:
                layer.move_row(last, index, self._lengths[last])
        self._lengths[index] = self._lengths[last]
        self._lengths.pop()

    def decode(self, tokens: Sequence[int]) -> mx.array:
        places = _Places(self._lengths)
        for layer in self._layers:
            layer.places = places
        logits: mx.array = self._model(mx.array(list(tokens))[:, None], cache=self._layers)
        self._lengths = [length + 1 for length in self._lengths]
        return logits[:, -1]


class _Places:
    """Where one step writes, and what each row may see: shared by all layers of the step."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.rows = len(lengths)
        self.row_index = mx.arange(self.rows)
        self.offsets = mx.array(list(lengths))
        self.even = len(set(lengths)) == 1
        self.width = max(lengths) + 1

    def mask(self, window: int | None) -> mx.array | None:
        """None where the rows are equally long: an array mask would leave the fused attention on CUDA."""
        if self.even and window is None:
            return None
        columns = mx.arange(self.width)[None]
        seen = columns <= self.offsets[:, None]
        if window is not None:
            seen = seen & (columns > self.offsets[:, None] - window)
        return seen[:, None, None]


class _Layer:
    """One layer's rows, in the shape that mlx-lm's models expect of a cache."""

    places: _Places

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        return self.places.offsets

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        if return_array and window_size is None:
            window_size = self.places.width + 1
        return self.places.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        places = self.places
        stored_keys, stored_values = self._reserve(places.rows, places.width, keys, values)
        stored_keys[places.row_index, :, places.offsets] = keys[:, :, 0]
        stored_values[places.row_index, :, places.offsets] = values[:, :, 0]
        return (
            stored_keys[: places.rows, :, : places.width],
            stored_values[: places.rows, :, : places.width],
        )

    def write_row(self, row: int, keys: mx.array, values: mx.array) -> None:
        length = keys.shape[2]
        stored_keys, stored_values = self._reserve(row + 1, length, keys, values)
        stored_keys[row : row + 1, :, :length] = keys
        stored_values[row : row + 1, :, :length] = values

    def move_row(self, source: int, target: int, length: int) -> None:
        for stored in (self._keys, self._values):
            if stored is not None:
                stored[target : target + 1, :, :length] = stored[source : source + 1, :, :length]

    def _reserve(self, rows: int, columns: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._keys = _grown(self._keys, rows, columns, keys)
        self._values = _grown(self._values, rows, columns, values)
        return self._keys, self._values


def _grown(stored: mx.array | None, rows: int, columns: int, like: mx.array) -> mx.array:
    """`stored` with room for so many rows and columns. Rows double, so that joins rarely copy."""
    held_rows, held_columns = (stored.shape[0], stored.shape[2]) if stored is not None else (0, 0)
    if stored is not None and rows <= held_rows and columns <= held_columns:
        return stored
    rows = held_rows if rows <= held_rows else max(rows, 2 * held_rows)
    columns = max(held_columns, -(-columns // COLUMN_STEP) * COLUMN_STEP)
    grown = mx.zeros((rows, like.shape[1], columns, like.shape[3]), like.dtype)
    if stored is not None:
        grown[:held_rows, :, :held_columns] = stored
    return grown


class Lanes:
    """Each row in a cache of mlx-lm's own, decoded one after another: right for every model, batched for none."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rows: list[list[Any]] = []

    def open(self) -> list[Any]:
        return make_prompt_cache(self._model)

    def join(self, cache: list[Any]) -> None:
        self._rows.append(cache)

    def leave(self, index: int) -> None:
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    def decode(self, tokens: Sequence[int]) -> mx.array:
        passes = [
            self._model(mx.array([[token]]), cache=cache)[:, -1]
            for token, cache in zip(tokens, self._rows, strict=True)
        ]
        return mx.concatenate(passes)
