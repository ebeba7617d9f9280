"""Where the rows' keys and values live, and how one decoding step runs over them.

`Slots` holds the rows of plain attention models in preallocated arrays and decodes all of them in one forward
pass. `Lanes` takes any other model of mlx-lm, each row in its own cache and its own pass. Both keep rows in
order: a join appends, a leave moves the last row into the gap. They know tokens and caches, not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from mlxrpc_server.engine.room import EMPTY, UNBOUNDED, Room, Shape, stepped

Forward = Callable[..., mx.array]
"""A model of mlx-lm: (tokens [rows, n], cache=list) -> logits [rows, n, vocabulary]."""


class KV(Protocol):
    """What the batch needs of either."""

    @property
    def nbytes(self) -> int:
        """What the rows take as they are laid out now."""

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths, and no others, would find room together."""

    def open(self) -> list[Any]:
        """An empty cache for one row's prefill."""

    def join(self, cache: list[Any]) -> None: ...

    def leave(self, index: int) -> None: ...

    def decode(self, tokens: Sequence[int]) -> mx.array:
        """Feeds each row its token; gives the logits behind it, [rows, vocabulary]."""


def for_model(model: Any, room: Room = UNBOUNDED) -> KV:
    """Slots where every layer keeps plain keys and values, else Lanes."""
    plain = all(type(cache) is KVCache and cache.keys is not None for cache in _sample(model))
    return Slots(model, room) if plain else Lanes(model, room)


def _sample(model: Any) -> list[Any]:
    """A row's caches behind its first token. Nothing evaluates them: they tell shapes."""
    cache = make_prompt_cache(model)
    model(mx.array([[0]]), cache=cache)
    return cache


class Slots:
    """Rows side by side in preallocated arrays, each with its own length."""

    def __init__(self, model: Any, room: Room = UNBOUNDED) -> None:
        self._model = model
        self._room = room
        self._lengths: list[int] = []
        self._layers = [_Layer(cache.keys, cache.values) for cache in _sample(model)]
        self._cell_bytes = sum(layer.cell_bytes for layer in self._layers)
        self._shape = EMPTY

    @property
    def nbytes(self) -> int:
        return self._shape.cells * self._cell_bytes

    def fits(self, lengths: Sequence[int]) -> bool:
        return self._room.fits(lengths, self._cell_bytes)

    def open(self) -> list[Any]:
        return make_prompt_cache(self._model)

    def join(self, cache: list[Any]) -> None:
        row, length = len(self._lengths), cache[0].offset
        self._make_room([*self._lengths, length])
        for layer, prefilled in zip(self._layers, cache, strict=True):
            if length:
                layer.write_row(row, prefilled.keys[:, :, :length], prefilled.values[:, :, :length])
        self._lengths.append(length)

    def leave(self, index: int) -> None:
        last = len(self._lengths) - 1
        if not last:
            self._resize(EMPTY)
        elif index != last and self._lengths[last]:
            for layer in self._layers:
                layer.move_row(last, index, self._lengths[last])
        self._lengths[index] = self._lengths[last]
        self._lengths.pop()

    def decode(self, tokens: Sequence[int]) -> mx.array:
        self._make_room(self._lengths)
        places = _Places(self._lengths)
        for layer in self._layers:
            layer.places = places
        logits: mx.array = self._model(mx.array(list(tokens))[:, None], cache=self._layers)
        self._lengths = [length + 1 for length in self._lengths]
        return logits[:, -1]

    def _make_room(self, lengths: Sequence[int]) -> None:
        """For one more token in each row; gives back what is far more than they need."""
        shape = self._room.shape(self._shape, [length + 1 for length in lengths], self._cell_bytes)
        if shape != self._shape:
            self._resize(shape)

    def _resize(self, shape: Shape) -> None:
        kept = Shape(min(len(self._lengths), shape.rows), min(max(self._lengths, default=0), shape.columns))
        for layer in self._layers:
            layer.resize(shape, kept)
        self._shape = shape


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

    def __init__(self, like_keys: mx.array, like_values: mx.array) -> None:
        self._keys = _resized(like_keys, EMPTY, EMPTY)
        self._values = _resized(like_values, EMPTY, EMPTY)

    @property
    def cell_bytes(self) -> int:
        """Of one token of one row."""
        return sum(one.shape[1] * one.shape[3] * one.itemsize for one in (self._keys, self._values))

    @property
    def offset(self) -> mx.array:
        return self.places.offsets

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        if return_array and window_size is None:
            window_size = self.places.width + 1
        return self.places.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        places = self.places
        self._keys[places.row_index, :, places.offsets] = keys[:, :, 0]
        self._values[places.row_index, :, places.offsets] = values[:, :, 0]
        return (
            self._keys[: places.rows, :, : places.width],
            self._values[: places.rows, :, : places.width],
        )

    def write_row(self, row: int, keys: mx.array, values: mx.array) -> None:
        length = keys.shape[2]
        self._keys[row : row + 1, :, :length] = keys
        self._values[row : row + 1, :, :length] = values

    def move_row(self, source: int, target: int, length: int) -> None:
        for stored in (self._keys, self._values):
            stored[target : target + 1, :, :length] = stored[source : source + 1, :, :length]

    def resize(self, shape: Shape, kept: Shape) -> None:
        self._keys = _resized(self._keys, shape, kept)
        self._values = _resized(self._values, shape, kept)


def _resized(stored: mx.array, shape: Shape, kept: Shape) -> mx.array:
    """A copy, also where it is smaller: a slice would keep all of the old array alive."""
    sized = mx.zeros((shape.rows, stored.shape[1], shape.columns, stored.shape[3]), stored.dtype)
    if kept.cells:
        rows, columns = kept
        sized[:rows, :, :columns] = stored[:rows, :, :columns]
    return sized


class Lanes:
    """Each row in a cache of mlx-lm's own, decoded one after another: right for every model, batched for none."""

    def __init__(self, model: Any, room: Room = UNBOUNDED) -> None:
        self._model = model
        self._room = room
        self._rows: list[list[Any]] = []
        self._prices = [_price(cache) for cache in _flat(_sample(model))]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for row in self._rows for cache in row)

    def fits(self, lengths: Sequence[int]) -> bool:
        return len(lengths) <= 1 or sum(map(self._bytes, lengths)) <= self._room.bytes

    def _bytes(self, length: int) -> float:
        return sum(price.of(length) for price in self._prices)

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


class _Price(NamedTuple):
    """What one cache of a lane takes."""

    fixed: int
    column: float = 0.0
    most_columns: float = float("inf")

    def of(self, length: int) -> float:
        return self.fixed + self.column * min(stepped(length), self.most_columns)


def _price(cache: Any) -> _Price:
    """By what it took for its first token: a state stays as it is, keys and values grow, some of them to an end."""
    keys = getattr(cache, "keys", None)
    if keys is None:
        return _Price(cache.nbytes)
    columns = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    most = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    return _Price(0, cache.nbytes / columns, float("inf") if most is None else most)


def _flat(caches: Sequence[Any]) -> Iterator[Any]:
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _flat(cache.caches)
        else:
            yield cache
