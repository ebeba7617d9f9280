"""The rows of plain attention models in preallocated rectangles of similar lengths, decoded in one forward pass.

A `Packing` says how keys and values are stored in them: as the model computes them, or in fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxrpc_server.engine import attention
from mlxrpc_server.engine.attention import Window, stand_in
from mlxrpc_server.engine.caches import after_one_token
from mlxrpc_server.engine.kv import Beginnings
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.room import EMPTY, UNBOUNDED, Room, Shape, kind
from mlxrpc_server.engine.sizes import EXACT
from mlxrpc_server.types import RowId

Arrays = Sequence[Sequence[mx.array]]
"""Of each layer, as its packing stores them."""


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
    sizes = EXACT

    def __init__(self, model: Any, room: Room = UNBOUNDED, packing: Packing = AS_COMPUTED) -> None:
        attention.route(model)
        self._model = model
        self._room = room
        self._packing = packing
        self._like = [packing.stored(layer) for layer in after_one_token(model, packing.open(model))]
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
        self._move_outgrown()
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

    def _move_outgrown(self) -> None:
        """From the last place on, so that the fewest rows take another's."""
        moving = [(block, row) for block in self._blocks.values() for row in reversed(block.outgrown())]
        for block, row in moving:
            length, arrays = block.row(row)
            copies = _copied(arrays)
            self.leave(row)
            self._add(row, length, copies)

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
            for stored, array in _pairs(self._layers, _copied(_cut(self._layers, last, length))):
                stored[index : index + 1, :, :length] = array
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


def _copied(arrays: Arrays) -> Arrays:
    """Evaluated: as long as anything still has to be read from a block, a write to it copies all of it."""
    copies = [[mx.contiguous(array) for array in layer] for layer in arrays]
    mx.eval(copies)
    return copies


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


class _Layer:
    """One layer's share of all blocks, in the shape that mlx-lm's models expect of a cache."""

    def __init__(self, kv: Blocks, layer: int) -> None:
        self._kv = kv
        self._layer = layer

    @property
    def offset(self) -> mx.array:
        return self._kv.offsets

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> Window | None:
        return stand_in(return_array=return_array, window=window_size)

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
