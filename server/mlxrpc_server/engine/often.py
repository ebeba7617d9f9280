"""A function that is compiled for arguments of some shapes once those have come so often that it pays.

Tracing takes as long as some steps, and what is traced is good for these shapes alone. Knows keys and calls; neither
models nor rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import mlx.core as mx

OFTEN = 16
"""Calls with one key before it is compiled: tracing saves its own time again in about so many."""

MOST = 256
"""Keys that are kept. Beyond them all begins anew: what is still needed comes often enough to be there again soon."""


class Often:
    def __init__(self, function: Callable[..., Any], compile_: Callable[..., Any] = mx.compile) -> None:
        self._function = function
        self._compile = compile_
        self._calls: Counter[Hashable] = Counter()
        self._compiled: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, key: Hashable, *arguments: Any) -> Any:
        """The key tells everything that the function takes from elsewhere than from its arguments' values."""
        if key in self._compiled:
            return self._compiled[key](*arguments)
        if len(self._calls) >= MOST:
            self._calls.clear()
            self._compiled.clear()
        self._calls[key] += 1
        if self._calls[key] > OFTEN:
            self._compiled[key] = self._compile(self._function)
            return self._compiled[key](*arguments)
        return self._function(*arguments)
