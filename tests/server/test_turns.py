"""Whose work a thread does next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from mlxrpc_server.turns import YIELDS, Turns

PATIENCE = 30.0
"""Seconds until a test that waits for what never comes gives up."""


class Busy:
    """Turns whose thread is at work until the test lets it go on, and a clock that the test sets."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.turns = Turns(threads, lambda: self.now)
        self._gate = threading.Event()
        self._first = asyncio.create_task(self.turns.take(self._held, 0))

    def ask(self, name: str, length: int) -> asyncio.Task[None]:
        return asyncio.create_task(self.turns.take(partial(self.order.append, name), length))

    async def settle(self, *asked: asyncio.Task[None]) -> list[str]:
        self._gate.set()
        await asyncio.gather(self._first, *asked)
        return self.order

    def _held(self) -> None:
        assert self._gate.wait(PATIENCE)


@pytest.fixture
async def busy() -> AsyncIterator[Busy]:
    with ThreadPoolExecutor(4) as threads:
        busy = Busy(threads)
        await asyncio.sleep(0)
        yield busy
        await busy.settle()


async def test_of_equal_length_the_first_comes_first(busy: Busy) -> None:
    assert await busy.settle(*(busy.ask(name, 10) for name in "abc")) == ["a", "b", "c"]


async def test_a_short_piece_goes_before_a_long_one_that_waits(busy: Busy) -> None:
    asked = [busy.ask("long", 1_000_000), busy.ask("short", 10)]
    assert await busy.settle(*asked) == ["short", "long"]


async def test_a_long_piece_lets_others_before_it_only_for_a_time(busy: Busy) -> None:
    asked = [busy.ask("long", 1_000_000)]
    for name, when in (("soon", 0.9), ("late", 1.1)):
        await asyncio.sleep(0)
        busy.now = when * 1_000_000 * YIELDS
        asked.append(busy.ask(name, 10))
    assert await busy.settle(*asked) == ["soon", "long", "late"]


async def test_a_caller_that_gives_up_before_its_turn_is_passed_over(busy: Busy) -> None:
    gone, stays = busy.ask("gone", 10), busy.ask("stays", 10)
    await asyncio.sleep(0)
    gone.cancel()
    assert await busy.settle(stays) == ["stays"]
    assert gone.cancelled()


async def test_a_failure_reaches_its_caller_and_the_next_goes_on(busy: Busy) -> None:
    failing = asyncio.create_task(busy.turns.take(partial(int, "x"), 0))
    after = busy.ask("after", 10)
    assert await busy.settle(after) == ["after"]
    with pytest.raises(ValueError, match="invalid literal"):
        await failing


async def test_whoever_waits_at_the_end_is_cancelled(busy: Busy) -> None:
    waiting = busy.ask("waiting", 10)
    await asyncio.sleep(0)
    busy.turns.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await busy.settle() == []
