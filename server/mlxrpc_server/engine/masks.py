"""What each row of a batch may say next, as masks on the logits. Made on the host, while the device computes these.

Knows rows' guides and their stop tokens; of a mask's bits, one for each of the model's words and one for the end behind.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from mlxrpc_server.engine.constraint import Guide
from mlxrpc_server.engine.some import Some
from mlxrpc_server.engine.wire import Left

LONG = 0.01
"""Seconds for the masks of a step, after which it is to be found out whose they were."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A row as masks see it."""

    guide: Guide | None
    """None where it may say anything."""
    stop_ids: Collection[int]


class Masks:
    def __init__(self, readers: Sequence[Reader], clock: Callable[[], float] = time.perf_counter) -> None:
        self._guided = [(place, one.guide, one.stop_ids) for place, one in enumerate(readers) if one.guide is not None]
        self._some = Some([one.guide is not None for one in readers])
        self._clock = clock
        self.ended: dict[int, Left] = {}
        """The places of rows that have nothing left to say, and why."""
        if self._guided:
            self._words = self._guided[0][1].words
            self._bits = np.full((len(self._guided), self._words // 32 + 1), 0xFFFFFFFF, dtype=np.uint32)
            self._fill()

    def apply(self, logits: mx.array) -> mx.array:
        if not self._guided:
            return logits
        allowed = _fitted(_expanded(mx.array(self._bits))[:, : self._words], logits.shape[-1])
        return self._some.put(logits, mx.where(allowed, self._some.of(logits), -mx.inf))

    def _fill(self) -> None:
        bound = [(guide, number) for number, (_, guide, _) in enumerate(self._guided) if not guide.free]
        watched = [one for one in bound if one[0].effort.watched]
        self._fill_together([one for one in bound if not one[0].effort.watched])
        self._fill_apart(watched)
        for bits, (place, guide, stop_ids) in zip(self._bits, self._guided, strict=True):
            if (ended := self._settle(bits, guide, stop_ids)) is not None:
                self.ended[place] = ended

    def _fill_together(self, bound: Sequence[tuple[Guide, int]]) -> None:
        """In llguidance's threads, which cost next to nothing and do not tell how long each row took."""
        if not bound:
            return
        begun = self._clock()
        matchers = [(guide.matcher, number) for guide, number in bound]
        fill_next_token_bitmask_par(_executor(), matchers, self._bits.view(np.int32))
        if self._clock() - begun > LONG:
            for guide, _ in bound:
                guide.effort.watched = True

    def _fill_apart(self, bound: Sequence[tuple[Guide, int]]) -> None:
        """In threads of our own, each row on its own account."""
        bits = self._bits.view(np.int32)

        def fill(guide: Guide, number: int) -> None:
            guide.effort.watched = False
            guide.effort.paid(lambda: fill_next_token_bitmask(guide.matcher, bits, number))

        if bound:
            list(_threads().map(fill, *zip(*bound, strict=True)))

    def _settle(self, bits: NDArray[np.uint32], guide: Guide, stop_ids: Collection[int]) -> Left | None:
        """Stop tokens may be drawn where the text may end, and there alone."""
        if not guide.free and guide.stuck():
            return _opened(bits, Left.CONSTRAINT_BROKEN)
        may_end = not guide.free and _has(bits, self._words)
        for token in (self._words, *stop_ids):
            _set(bits, token, allowed=False)
        if not bits.any():
            guide.fault = "" if may_end else "no token of the model may stand there"
            return _opened(bits, Left.CONSTRAINT_COMPLETE if may_end else Left.CONSTRAINT_BROKEN)
        for token in (*guide.besides, *(stop_ids if may_end else ())):
            _set(bits, token, allowed=True)
        return None


@functools.cache
def _executor() -> LLExecutor:
    """Threads for the masks of a step: llguidance takes most of the machine's processors, up to 32."""
    return LLExecutor()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """For the few that are slow; llguidance lets go of the interpreter while it makes a mask."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="masks")


def _opened(bits: NDArray[np.uint32], ended: Left) -> Left:
    """A row that has ended rides in this step still, and whatever it draws is dropped: only never from nothing."""
    bits.fill(0xFFFFFFFF)
    return ended


def _has(bits: NDArray[np.uint32], token: int) -> bool:
    return bool(bits[token // 32] >> np.uint32(token % 32) & np.uint32(1))


def _set(bits: NDArray[np.uint32], token: int, *, allowed: bool) -> None:
    if token // 32 < len(bits):
        bit = np.uint32(1 << token % 32)
        bits[token // 32] = bits[token // 32] | bit if allowed else bits[token // 32] & ~bit


def _expanded(bits: mx.array) -> mx.array:
    """[rows, words] into [rows, 32 words] of booleans."""
    places = mx.arange(32, dtype=mx.uint32)
    return (((bits[:, :, None] >> places) & 1) > 0).reshape(bits.shape[0], -1)


def _fitted(allowed: mx.array, width: int) -> mx.array:
    """To the logits' width: a model may have more of them than its tokenizer has tokens, or fewer."""
    missing = width - allowed.shape[-1]
    return mx.pad(allowed, [(0, 0), (0, missing)]) if missing > 0 else allowed[:, :width]
