"""Some rows of a batch, and the way to their values and back. Knows arrays with one entry a row, whatever they mean."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


class Some:
    def __init__(self, chosen: Sequence[bool]) -> None:
        places = [place for place, is_chosen in enumerate(chosen) if is_chosen]
        self.count = len(places)
        self.all = len(places) == len(chosen)
        self.places = mx.array(places, dtype=mx.int32)

    def __bool__(self) -> bool:
        return self.count > 0

    def of(self, values: mx.array) -> mx.array:
        return values if self.all else values[self.places]

    def put(self, values: mx.array, changed: mx.array) -> mx.array:
        """All rows' values, with the changed ones in their places."""
        if self.all:
            return changed
        result = values.astype(changed.dtype)
        result[self.places] = changed
        return result


def column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]
