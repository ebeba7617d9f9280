"""Where the rows' keys and values live, and how one decoding step runs over them.

`Blocks` holds the rows of plain attention models in preallocated rectangles of similar lengths and decodes all of
them in one forward pass. `Lanes` takes any other model of mlx-lm, each row in its own cache and its own pass. They
know tokens and caches, not requests; nothing here is evaluated before somebody asks for a step's logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxrpc_server.engine import attention, merged, quantized
from mlxrpc_server.engine.kernels import stores
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.room import EMPTY, UNBOUNDED, Room, Shape, kind
from mlxrpc_server.types import RowId


class KV(Protocol):
    """What the batch needs of any of them."""

    joint: bool
    """Whether prompts of different lengths may be prefilled in one pass, padded behind."""

    ahead: bool
    """Whether a step may be dispatched while the one before it still runs. Where storage is changed by replacing it,
    MLX would copy all of it then."""

    @property
    def nbytes(self) -> int:
        """What the rows take as they are laid out now."""

    whole: bool
    """Whether what is kept of a row is good up to its own last token only: a state cannot be cut, a window has forgotten."""

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        """Whether rows of these lengths, and no others, would find room together, beside so many bytes kept."""

    def open(self, kept: Beginnings = ()) -> list[Any]:
        """A cache for a prefill: empty, or of rows that begin with what was kept of others, equally many tokens each."""

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        """What the row holds from one token to another, beyond its own life: whole blocks, or all of it."""

    def drop(self, kept: Kept) -> None:
        """It will not be asked for any more."""

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        """Takes the rows of a prefilled cache: so many tokens of each are its own, what is behind them is padding."""

    def leave(self, row: RowId) -> None: ...

    def arrange(self) -> Sequence[RowId]:
        """Makes room for one more token in each row; gives the order in which `decode` takes them."""

    def decode(self, tokens: mx.array) -> mx.array:
        """Feeds each row its token; gives the logits behind it, [rows, vocabulary]."""

    def clear(self) -> None:
        """Forgets every row."""


Beginnings = Sequence[Sequence[Kept]]
"""Of each row, part by part."""

Arrays = Sequence[Sequence[mx.array]]
"""Of each layer, as its packing stores them."""


def for_model(model: Any, room: Room = UNBOUNDED, kv_bits: int | None = None) -> KV:
    """The layout that suits the model best by what its caches are."""
    return next(layouts(model, room, kv_bits))


def layouts(
    model: Any, room: Room = UNBOUNDED, kv_bits: int | None = None, *, metal_kernels: bool = False
) -> Iterator[KV]:
    """What may suit the model, best first; the last one suits every model, unless it has to be in so many bits."""
    caches = sample(model)
    plain = all(type(cache) is KVCache and cache.keys is not None for cache in caches)
    if kv_bits is not None:
        if plain and (packing := quantized.packing(caches, kv_bits)):
            yield Blocks(model, room, packing)
        return
    if pages := stores.layout(model, caches, room, metal_kernels=metal_kernels):
        yield pages
    if plain:
        yield Blocks(model, room)
    if merged.suits(caches):
        yield merged.Merged(model, caches, room)
    yield Lanes(model, room)


def sample(model: Any) -> list[Any]:
    """A row's caches behind its first token. Nothing evaluates them: they tell shapes."""
    return _after_one_token(model, make_prompt_cache(model))


def _after_one_token(model: Any, cache: list[Any]) -> list[Any]:
    model(mx.array([[0]]), cache=cache)
    return cache


class Packing(Protocol):
    """How a layer's keys and values are stored: in some arrays [rows, heads, tokens, any]."""

    def open(self, model: Any, held: Arrays = ()) -> list[Any]:
        """A cache for a prefill: empty, or with what is stored of some tokens."""

    def stored(self, layer: Any) -> Sequence[mx.array]:
        """What the prefill left in one layer of such a cache."""

    def packed(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]: ...

    def attend(
        self, queries: mx.array, stored: Sequence[mx.array], scale: float, mask: mx.array | None
    ) -> mx.array: ...


class AsComputed:
    """Keys and values as the model gives them."""

    def open(self, model: Any, held: Arrays = ()) -> list[Any]:
        caches = make_prompt_cache(model)
        for cache, (keys, values) in zip(caches, held, strict=False):
            cache.state = keys, values, keys.shape[2]
        return caches

    def stored(self, layer: Any) -> Sequence[mx.array]:
        return layer.keys, layer.values

    def packed(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return keys, values

    def attend(self, queries: mx.array, stored: Sequence[mx.array], scale: float, mask: mx.array | None) -> mx.array:
        keys, values = stored
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


AS_COMPUTED = AsComputed()


class Blocks:
    """Rows in rectangles of similar lengths, all of them in one forward pass."""

    joint = True
    ahead = False
    whole = False

    def __init__(self, model: Any, room: Room = UNBOUNDED, packing: Packing = AS_COMPUTED) -> None:
        attention.route(model)
        self._model = model
        self._room = room
        self._packing = packing
        self._like = [packing.stored(layer) for layer in _after_one_token(model, packing.open(model))]
        self._cell_bytes = sum(_cell_bytes(one) for layer in self._like for one in layer)
        self._layers = [_Layer(self, layer) for layer in range(len(self._like))]
        self._blocks: dict[int, _Block] = {}
        self.offsets = mx.array([0])

    @property
    def nbytes(self) -> int:
        return sum(block.shape.cells for block in self._blocks.values()) * self._cell_bytes

    @property
    def blocks(self) -> Iterator[tuple[slice, _Block]]:
        """In the order of decoding, each with its place among the rows."""
        start = 0
        for block in self._blocks.values():
            yield slice(start, start + len(block.rows)), block
            start += len(block.rows)

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        return self._room.fits(lengths, self._cell_bytes, beside)

    def open(self, kept: Beginnings = ()) -> list[Any]:
        return self._packing.open(self._model, _laid_out(kept) if any(kept) else ())

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        """Copies: the block goes on changing."""
        block = next(block for block in self._blocks.values() if row in block.rows)
        _, arrays = block.row(row)
        content = [[mx.contiguous(array[:, :, start:end]) for array in layer] for layer in arrays]
        lazy = list(chain.from_iterable(content))
        return Kept(content, sum(array.nbytes for array in lazy), lazy)

    def drop(self, kept: Kept) -> None:
        pass

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        prefilled = [self._packing.stored(layer) for layer in cache] if any(lengths) else []
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self._add(row, length, _cut(prefilled, index, length))

    def leave(self, row: RowId) -> None:
        block = next(block for block in self._blocks.values() if row in block.rows)
        block.remove(row)
        if not block.rows:
            del self._blocks[block.kind]

    def arrange(self) -> Sequence[RowId]:
        for block in list(self._blocks.values()):
            for row in block.outgrown():
                length, arrays = block.row(row)
                self.leave(row)
                self._add(row, length, arrays)
        for block in self._blocks.values():
            block.resize(self._shape(block, [length + 1 for length in block.lengths]))
        return [row for block in self._blocks.values() for row in block.rows]

    def decode(self, tokens: mx.array) -> mx.array:
        for block in self._blocks.values():
            block.begin()
        self.offsets = mx.array([length for block in self._blocks.values() for length in block.lengths])
        logits: mx.array = self._model(tokens[:, None], cache=self._layers)
        for block in self._blocks.values():
            block.lengths = [length + 1 for length in block.lengths]
        return logits[:, -1]

    def clear(self) -> None:
        self._blocks.clear()

    def _add(self, row: RowId, length: int, arrays: Arrays) -> None:
        """The token that comes next counts already: a row moves before it has to."""
        key = kind(length + 1)
        block = self._blocks.get(key) or _Block(key, self._like, self._packing)
        block.resize(self._shape(block, [*(held + 1 for held in block.lengths), length + 1]))
        block.add(row, length, arrays)
        self._blocks[key] = block

    def _shape(self, block: _Block, lengths: Sequence[int]) -> Shape:
        others = sum(other.shape.cells for other in self._blocks.values() if other is not block)
        return self._room.shape(block.shape, lengths, others, self._cell_bytes)


class _Block:
    """Rows of similar lengths. A row is added behind the others; the last one takes the place of one that goes."""

    def __init__(self, kind: int, like: Arrays, packing: Packing) -> None:
        self.kind = kind
        self.shape = EMPTY
        self.rows: list[RowId] = []
        self.lengths: list[int] = []
        self._packing = packing
        self._layers = [[_resized(stored, EMPTY, EMPTY) for stored in layer] for layer in like]
        self._places = _Places([])

    def outgrown(self) -> list[RowId]:
        pairs = zip(self.rows, self.lengths, strict=True)
        return [row for row, length in pairs if kind(length + 1) != self.kind]

    def row(self, row: RowId) -> tuple[int, Arrays]:
        index = self.rows.index(row)
        return self.lengths[index], _cut(self._layers, index, self.lengths[index])

    def add(self, row: RowId, length: int, arrays: Arrays) -> None:
        place = slice(len(self.rows), len(self.rows) + 1)
        if length:
            for stored, array in _pairs(self._layers, arrays):
                stored[place, :, :length] = array
        self.rows.append(row)
        self.lengths.append(length)

    def remove(self, row: RowId) -> None:
        index, last = self.rows.index(row), len(self.rows) - 1
        if length := self.lengths[last] if index != last else 0:
            for stored in chain.from_iterable(self._layers):
                stored[index : index + 1, :, :length] = stored[last : last + 1, :, :length]
        self.rows[index], self.lengths[index] = self.rows[last], self.lengths[last]
        self.rows.pop()
        self.lengths.pop()

    def resize(self, shape: Shape) -> None:
        if shape == self.shape:
            return
        kept = Shape(min(len(self.rows), shape.rows), min(max(self.lengths, default=0), shape.columns))
        self._layers = [[_resized(stored, shape, kept) for stored in layer] for layer in self._layers]
        self.shape = shape

    def begin(self) -> None:
        self._places = _Places(self.lengths)

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        places = self._places
        for stored, array in zip(self._layers[layer], self._packing.packed(keys, values), strict=True):
            stored[places.rows, :, places.offsets] = array[:, :, 0]

    def attend(self, layer: int, queries: mx.array, scale: float, window: int | None) -> mx.array:
        rows, width = len(self.rows), self._places.width
        seen = [stored[:rows, :, :width] for stored in self._layers[layer]]
        return self._packing.attend(queries, seen, scale, self._places.mask(window))


def _cut(layers: Arrays, row: int, length: int) -> Arrays:
    """One row of them, and of that its tokens."""
    return [[stored[row : row + 1, :, :length] for stored in layer] for layer in layers]


def _laid_out(rows: Beginnings) -> Arrays:
    """Their parts one behind the other, and the rows side by side."""
    each = [[kept.content for kept in row] for row in rows]
    return [
        [
            mx.concatenate([mx.concatenate([part[layer][place] for part in row], axis=2) for row in each])
            for place in range(len(arrays))
        ]
        for layer, arrays in enumerate(each[0][0])
    ]


def _pairs(layers: Arrays, others: Arrays) -> Iterator[tuple[mx.array, mx.array]]:
    for layer, other in zip(layers, others, strict=True):
        yield from zip(layer, other, strict=True)


class _Places:
    """Where one step writes in a block, and what each row may see: shared by all layers of the step."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.rows = mx.arange(len(lengths))
        self.offsets = mx.array(list(lengths))
        self.width = max(lengths, default=0) + 1
        self._even = len(set(lengths)) == 1
        self._masks: dict[int | None, mx.array] = {}

    def mask(self, window: int | None) -> mx.array | None:
        """None where the rows are equally long: an array mask would leave the fused attention on CUDA."""
        if self._even and (window is None or window >= self.width):
            return None
        if window not in self._masks:
            columns = mx.arange(self.width)[None]
            seen = columns <= self.offsets[:, None]
            if window is not None:
                seen = seen & (columns > self.offsets[:, None] - window)
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class Window:
    """Stands for a mask: what a layer sees of each row, from the last token backwards."""

    tokens: int | None


class _Layer:
    """One layer's share of all blocks, in the shape that mlx-lm's models expect of a cache."""

    def __init__(self, kv: Blocks, layer: int) -> None:
        self._kv = kv
        self._layer = layer

    @property
    def offset(self) -> mx.array:
        return self._kv.offsets

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> Window:
        if return_array:
            raise NotImplementedError("rows that are stored apart have no mask in common")
        return Window(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_Layer, mx.array]:
        for place, block in self._kv.blocks:
            block.write(self._layer, keys[place], values[place])
        return self, values

    def attend(self, queries: mx.array, scale: float, mask: Window | None) -> mx.array:
        window = mask.tokens if mask else None
        parts = [block.attend(self._layer, queries[place], scale, window) for place, block in self._kv.blocks]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def _cell_bytes(stored: mx.array) -> int:
    """Of one token of one row in one array of a layer."""
    return stored.shape[1] * stored.shape[3] * stored.itemsize


def _resized(stored: mx.array, shape: Shape, kept: Shape) -> mx.array:
    """A copy, also where it is smaller: a slice would keep all of the old array alive."""
    sized = mx.zeros((shape.rows, stored.shape[1], shape.columns, stored.shape[3]), stored.dtype)
    if kept.cells:
        rows, columns = kept
        sized[:rows, :, :columns] = stored[:rows, :, :columns]
    return sized


class Lanes:
    """Each row in a cache of mlx-lm's own, decoded one after another: right for every model, batched for none."""

    joint = False
    ahead = False
    whole = True

    def __init__(self, model: Any, room: Room = UNBOUNDED) -> None:
        self._model = model
        self._room = room
        self._rows: dict[RowId, list[Any]] = {}
        self._prices = [_price(cache) for cache in merged.flat(sample(model))]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for row in self._rows.values() for cache in row)

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        return self._room.holds(lengths, sum(map(self._bytes, lengths)), beside)

    def _bytes(self, length: int) -> float:
        return sum(price.of(length) for price in self._prices)

    def open(self, kept: Beginnings = ()) -> list[Any]:
        return merged.opened(self._model, kept)

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        return merged.snapshot(self._rows[row])

    def drop(self, kept: Kept) -> None:
        pass

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        (row,) = rows
        self._rows[row] = cache

    def leave(self, row: RowId) -> None:
        del self._rows[row]

    def arrange(self) -> Sequence[RowId]:
        return list(self._rows)

    def decode(self, tokens: mx.array) -> mx.array:
        passes = [
            self._model(tokens[index : index + 1, None], cache=cache)[:, -1]
            for index, cache in enumerate(self._rows.values())
        ]
        return mx.concatenate(passes)

    def clear(self) -> None:
        self._rows.clear()


class _Price(NamedTuple):
    """What one cache of a lane takes."""

    fixed: int
    column: float = 0.0
    most_columns: float = float("inf")

    def of(self, length: int) -> float:
        return self.fixed + self.column * min(stepped_as_mlx_lm(length), self.most_columns)


def stepped_as_mlx_lm(length: int) -> int:
    return -(-length // KVCache.step) * int(KVCache.step)


def _price(cache: Any) -> _Price:
    """By what it took for its first token: a state stays as it is, keys and values grow, some of them to an end."""
    keys = getattr(cache, "keys", None)
    if keys is None:
        return _Price(cache.nbytes)
    columns = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    most = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    return _Price(0, cache.nbytes / columns, float("inf") if most is None else most)
