"""Work that a thread does for the event loop, one piece at a time, short pieces before long ones.

It knows how long a piece is said to be, not what it does.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

YIELDS = 20e-6
"""Seconds for each character, about five times what encoding one takes: whoever comes later than that waits behind."""


@dataclass(order=True, slots=True)
class _Piece:
    due: float
    number: int
    work: Callable[[], Any] | None = field(compare=False)
    """None once its caller has left, so that a long text does not stay until its turn."""
    answer: asyncio.Future[Any] = field(compare=False)


class Turns:
    """Never occupies more than one of the executor's threads, whoever gives up and whenever.

    A long piece lets those before it that are shorter and come within a time in proportion to its length; so it holds
    up few, and nobody for ever.
    """

    def __init__(self, threads: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = threads
        self._clock = clock
        self._numbers = itertools.count()
        self._waiting: list[_Piece] = []
        self._running: asyncio.Future[Any] | None = None

    async def take(self, work: Callable[[], T], length: int) -> T:
        """A caller that gives up before its turn leaves nothing behind; in its turn, the next waits for the thread."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        piece = _Piece(self._clock() + length * YIELDS, next(self._numbers), work, answer)
        heapq.heappush(self._waiting, piece)
        self._next()
        try:
            return await answer
        finally:
            piece.work = None

    def close(self) -> None:
        """Whoever still waits is cancelled."""
        for piece in self._waiting:
            piece.answer.cancel()
        self._waiting.clear()

    def _next(self) -> None:
        while self._waiting and self._running is None:
            piece = heapq.heappop(self._waiting)
            if piece.work is not None and not piece.answer.done():
                self._running = asyncio.get_running_loop().run_in_executor(self._threads, piece.work)
                self._running.add_done_callback(partial(self._done, piece.answer))

    def _done(self, answer: asyncio.Future[Any], running: asyncio.Future[Any]) -> None:
        self._running = None
        _hand_over(running, answer)
        self._next()


def _hand_over(done: asyncio.Future[Any], answer: asyncio.Future[Any]) -> None:
    """To a caller that may be gone; what became of the work is looked at in any case, or asyncio complains."""
    if done.cancelled():
        answer.cancel()
        return
    error = done.exception()
    if answer.done():
        return
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)
