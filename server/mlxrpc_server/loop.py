"""The event loop that the server runs on, and how its garbage collector is set. Knows nothing of what runs there."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any

COLLECT_AFTER = 10_000
"""New objects. Python's own 700 collects at every few steps of a full batch, and hardly anything is ever found."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run does."""
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def settle() -> None:
    """What is there by now is there to stay: a full collection would look at it for 50 ms and find nothing."""
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """libuv's loop takes a fifth off what a streamed message costs. Without it asyncio's own serves as well."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
