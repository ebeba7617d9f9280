"""A row's caches as mlx-lm makes them: what they look like, what they take, and copies of them. Knows no layout."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from mlxrpc_server.engine.kv import Beginnings
from mlxrpc_server.engine.prefix import Kept


def sample(model: Any) -> list[Any]:
    """A row's caches behind its first token. Nothing evaluates them: they tell shapes."""
    return after_one_token(model, make_prompt_cache(model))


def after_one_token(model: Any, cache: list[Any]) -> list[Any]:
    model(mx.array([[0]]), cache=cache)
    return cache


@dataclass(frozen=True, slots=True)
class Price:
    """What one cache takes of a row."""

    fixed: int
    column: float = 0.0
    most_columns: float = float("inf")

    def of(self, columns: int) -> float:
        return self.fixed + self.column * min(columns, self.most_columns)


def price(cache: Any) -> Price:
    """By what it took for its first token: a state stays as it is, keys and values grow, some of them to an end."""
    keys = getattr(cache, "keys", None)
    if keys is None:
        return Price(cache.nbytes)
    columns = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    most = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    return Price(0, cache.nbytes / columns, float("inf") if most is None else most)


def snapshot(caches: Sequence[Any]) -> Kept:
    """A row's caches as they are now, whatever becomes of them."""
    copies = copy.deepcopy(list(caches))
    for cache in flat(copies):
        if type(cache) is KVCache:
            keys, values, length = cache.state
            cache.state = mx.contiguous(keys[..., :length, :]), mx.contiguous(values[..., :length, :]), length
    state: Any = tree_flatten([cache.state for cache in copies])
    arrays = [value for _, value in state if isinstance(value, mx.array)]
    return Kept(copies, sum(array.nbytes for array in arrays), arrays)


def opened(model: Any, kept: Beginnings) -> list[Any]:
    """A row's caches: new ones, or a copy of what was kept of another."""
    if not any(kept):
        return make_prompt_cache(model)
    ((one,),) = kept
    caches: list[Any] = copy.deepcopy(one.content)
    return caches


def flat(caches: Sequence[Any]) -> Iterator[Any]:
    """With nested ones in the place of their nest."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from flat(cache.caches)
        else:
            yield cache
