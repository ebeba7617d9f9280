"""Keeps rows from ending too early: until a row has as many tokens as it must have, none that ends it can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxrpc_server.engine.row import Row


class Minimum:
    """The rows that may not end yet. Costs nothing once there are none."""

    def __init__(self, rows: Sequence[Row]) -> None:
        early = [(place, row) for place, row in enumerate(rows) if row.early and row.stop_ids]
        self._early = [row for _, row in early]
        longest = max([len(row.stop_ids) for row in self._early], default=0)
        self._rows = mx.array([place for place, _ in early], dtype=mx.int32)[:, None]
        self._ids = mx.array([_filled_up(row.stop_ids, longest) for row in self._early], dtype=mx.int32)

    def apply(self, logits: mx.array) -> mx.array:
        """The logits of all rows, for the tokens that are drawn next."""
        early = [row.early for row in self._early]
        if not any(early):
            return logits
        flat = logits.reshape(-1)
        places = self._rows * logits.shape[-1] + self._ids
        kept = mx.where(mx.array(early)[:, None], -mx.inf, flat[places])
        return mx.put_along_axis(flat, places.reshape(-1), kept.reshape(-1), axis=0).reshape(logits.shape)


def _filled_up(ids: frozenset[int], length: int) -> list[int]:
    """With one of its own: it is written twice, with the same value."""
    given = sorted(ids)
    return given + given[:1] * (length - len(given))
