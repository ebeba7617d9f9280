"""Numbers that the host gives the device, without asking for memory while the device works.

MLX takes new memory for every array that is made of a list, and on a CUDA device that can wait for all that the device has
still to do. There the numbers are written into memory that was taken once, and the device copies them out of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

LENGTH = 1 << 21
"""Of the memory, in numbers."""

SHARES = 16
"""At most one of so many of the memory is given at once. A step gives a few times that at most, and two are under way: what
is written over has been copied."""

ALIGNED = 16
"""Numbers that lie in one line of a device's cache: none is written while its neighbours are read."""


class Given:
    """Memory that the host writes and the device reads, from its begin to its end and all over again."""

    def __init__(self, length: int = LENGTH) -> None:
        self._memory = mx.zeros((length,), mx.int64)
        mx.eval(self._memory)
        self._seen_by_host = np.array(self._memory, copy=False)
        self._next = 0

    def __call__(self, numbers: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """An array that is to be dispatched with this step or the next one: until then it is not copied."""
        if not 0 < len(numbers) <= self._memory.size // SHARES:
            return plain(numbers, dtype)
        begin = self._next if self._next + len(numbers) <= self._memory.size else 0
        end = begin + len(numbers)
        self._next = -(-end // ALIGNED) * ALIGNED
        self._seen_by_host[begin:end] = np.asarray(numbers, dtype=self._seen_by_host.dtype)
        return self._memory[begin:end].astype(dtype)


def given(numbers: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """As an array of one axis, for this step or the next one; of any dtype but int64, which would be no copy."""
    return _given()(numbers, dtype)


def plain(numbers: Sequence[int], dtype: mx.Dtype) -> mx.array:
    return mx.array(cast("Any", numbers), dtype=dtype)


@functools.cache
def _given() -> Callable[[Sequence[int], mx.Dtype], mx.array]:
    return Given() if mx.cuda.is_available() else plain
