"""Each row in a cache of mlx-lm's own, decoded one after another: right for every model, batched for none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlxrpc_server.engine.caches import flat, opened, price, sample, snapshot
from mlxrpc_server.engine.kv import Beginnings
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.room import UNBOUNDED, Room
from mlxrpc_server.engine.sizes import EXACT
from mlxrpc_server.types import RowId


class Lanes:
    joint = False
    ahead = False
    whole = True
    sizes = EXACT

    def __init__(self, model: Any, room: Room = UNBOUNDED) -> None:
        self._model = model
        self._room = room
        self._rows: dict[RowId, list[Any]] = {}
        self._prices = [price(cache) for cache in flat(sample(model))]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for row in self._rows.values() for cache in row)

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        return self._room.holds(lengths, sum(map(self._bytes, lengths)), beside)

    def _bytes(self, length: int) -> float:
        return sum(price.of(stepped_as_mlx_lm(length)) for price in self._prices)

    def open(self, kept: Beginnings = ()) -> list[Any]:
        return opened(self._model, kept)

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        return snapshot(self._rows[row])

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


def stepped_as_mlx_lm(length: int) -> int:
    return -(-length // KVCache.step) * int(KVCache.step)
