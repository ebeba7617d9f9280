"""Which layout suits a model, by what its caches are. Knows the layouts, and no rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mlx_lm.models.cache import KVCache

from mlxrpc_server.engine import merged, quantized, quick
from mlxrpc_server.engine.blocks import Blocks
from mlxrpc_server.engine.caches import sample
from mlxrpc_server.engine.kernels import product, stores
from mlxrpc_server.engine.kernels.cuda import CudaStore
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.paged import Form
from mlxrpc_server.engine.room import UNBOUNDED, Room

log = logging.getLogger(__name__)


def layouts(
    model: Any,
    room: Room = UNBOUNDED,
    kv_bits: int | None = None,
    *,
    metal_kernels: bool = False,
    plain_products: bool = False,
) -> Iterator[KV]:
    """What may suit the model, best first; the last one suits every model, unless it has to be in so many bits."""
    caches = sample(model)
    plain = all(type(cache) is KVCache and cache.keys is not None for cache in caches)
    if kv_bits is not None:
        if plain and (packing := quantized.packing(caches, kv_bits)):
            yield Blocks(model, room, packing)
        return
    if pages := stores.layout(model, caches, room, metal_kernels=metal_kernels):
        if not plain_products and product.available() and _quickened(model, pages.form):
            yield pages
            quick.remove(model)
            pages.clear()
        yield pages
    if plain:
        yield Blocks(model, room)
    if merged.suits(caches):
        yield merged.Merged(model, caches, room)
    yield Lanes(model, room)


def _quickened(model: Any, form: Form) -> bool:
    """Whether the model's blocks take their steps in few launches from now on."""
    turns = quick.install(model, form.head_size)
    if turns and all(stores.agrees(CudaStore, form, turn) for turn in {turn.kind: turn for turn in turns}.values()):
        log.info("blocks take their steps in few launches", extra={"blocks": len(turns)})
        return True
    quick.remove(model)
    return False
