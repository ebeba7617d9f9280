"""The one seam through which rows of our own layout reach the attention of mlx-lm's models.

A model of mlx-lm 0.32 hands what its cache's `update_and_fetch` returned to `scaled_dot_product_attention`, a global
of its own module, and offers no other place to say how the rows lie. Knows no layout: those say it themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
from mlx_lm.models import base

from mlxrpc_server.engine import exponentials
from mlxrpc_server.engine.reroute import reroute

NAME = "scaled_dot_product_attention"


@runtime_checkable
class Stored(Protocol):
    """What a cache of ours gives to its model in place of the keys."""

    def attend(self, queries: mx.array, scale: float, mask: Any) -> mx.array:
        """Of each row's one query over all that the row holds; the mask is what the cache's `make_mask` gave."""


@dataclass(frozen=True, slots=True)
class Window:
    """Stands for a mask: a layer that sees so many tokens of each row, from the last one backwards."""

    tokens: int


def stand_in(*, return_array: bool, window: int | None) -> Window | None:
    """What `make_mask` gives in place of a mask; none where a layer sees all of each row."""
    if return_array:
        raise NotImplementedError("rows that are stored together have no mask in common")
    return None if window is None else Window(window)


def route(model: Any) -> None:
    """From now on the model's attention asks what is stored. Whatever is not `Stored` goes mlx-lm's own way, but for
    prompts on a CPU."""
    reroute(model, NAME, base.scaled_dot_product_attention, _attention)


def _attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    if isinstance(keys, Stored):
        if sinks is not None:
            raise NotImplementedError("rows that are stored together have no attention sinks")
        return keys.attend(queries, scale, mask)
    if isinstance(keys, mx.array) and exponentials.suits(queries, mask, sinks):
        return exponentials.attend(queries, keys, values, scale)
    attended: mx.array = base.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
    return attended
