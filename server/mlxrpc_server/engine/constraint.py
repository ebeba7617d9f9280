"""What constrained rows may say next: compiled grammars, one guide a row, and the masks that guides put on logits.

Knows what each token id says in bytes, and llguidance; nothing of schemas or requests, which came to grammars in the
server process. Grammars are compiled in a thread of their own, because large ones take seconds.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from mlxrpc_server.deep import deep_thread
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.some import Some
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.matchers import matcher_of, without_state

MOST_COMPILED = 64
"""Grammars that are kept; one takes from some kilobytes to a few megabytes."""

MOST_BREAKS = 2
"""Tokens of line breaks that are let in behind the end of thinking."""

END = b"<end>"
"""A token of llguidance's alone, behind those of the model: its bit says that the text may end here."""


class Broken(Exception):
    """A constraint that cannot be followed any further; `str()` says why."""


class Grammars:
    """The grammars of one model's rows, compiled; those used last are kept."""

    def __init__(self, spelling: Sequence[bytes]) -> None:
        self.spelling = spelling
        self.words = len(spelling)
        self._breaks = frozenset(token for token, said in enumerate(spelling) if said and not said.strip(b"\n"))
        self._thread = deep_thread("grammars")
        self._tokenizer = self._thread.submit(_tokenizer, spelling)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, constraint: wire.Constraint, produced: Sequence[int]) -> Future[Guide]:
        """A guide for a row that has produced these tokens. Raises Broken where they, or the grammar, cannot be."""
        return self._thread.submit(self._begun, constraint, list(produced))

    @property
    def compiled(self) -> int:
        return len(self._compiled)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begun(self, constraint: wire.Constraint, produced: Sequence[int]) -> Guide:
        matcher = self._matcher(constraint.grammar)
        guide = Guide(matcher, self.words, constraint.after, constraint.opening, self._breaks)
        for place, token in enumerate(produced):
            guide.follow(token)
            if guide.fault:
                raise Broken(f"token {place} of those produced before cannot stand there: {guide.fault}")
        return guide

    def _matcher(self, grammar: str) -> LLMatcher:
        """At the grammar's beginning; its copies share what they find out about the vocabulary."""
        if grammar not in self._compiled:
            matcher = matcher_of(self._tokenizer.result(), grammar)
            if matcher.is_error():
                raise Broken(first_line(matcher.get_error()))
            self._compiled[grammar] = matcher
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar].deep_copy()


class Guide:
    """One row's place in its grammar.

    What comes before `after`, a sequence of tokens, is free: always, or where `opening` is the row's first token. Line
    breaks behind it belong to it: a model that learned to write them says something else without.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        words: int,
        after: Sequence[int] = (),
        opening: int | None = None,
        breaks: Collection[int] = (),
    ) -> None:
        self.matcher = matcher
        self.words = words
        self.fault = ""
        """Why it cannot go on."""
        self.opening = opening if after else None
        self._breaks = breaks
        self._breaks_left = 0
        self.free = bool(after) and opening is None
        self._after = list(after)
        self._seen = deque[int](maxlen=len(self._after))

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return not self.free and not self.fault and self.matcher.is_stopped() and self.matcher.is_accepting()

    @property
    def besides(self) -> Collection[int]:
        """What the next token may be beside what the grammar says."""
        if self.opening is not None:
            return (self.opening,)
        return self._breaks if self._breaks_left else ()

    def follow(self, token: int) -> None:
        opening, self.opening = self.opening, None
        if self.free:
            self._seen.append(token)
            self.free = list(self._seen) != self._after
            self._breaks_left = 0 if self.free else MOST_BREAKS
        elif token == opening:
            self.free = True
        elif self._breaks_left and token in self._breaks:
            self._breaks_left -= 1
        else:
            self._breaks_left = 0
            if not self.matcher.consume_token(token):
                self.fault = first_line(self.matcher.get_error()) or "nothing may follow the text"


@dataclass(frozen=True, slots=True)
class Reader:
    """A row as masks see it."""

    guide: Guide | None
    """None where it may say anything."""
    stop_ids: Collection[int]


class Masks:
    """What each of a batch's rows may say next. Made on the host, while the device computes the logits."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._guided = [(place, one.guide, one.stop_ids) for place, one in enumerate(readers) if one.guide is not None]
        self._some = Some([one.guide is not None for one in readers])
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
        bound = [(guide.matcher, number) for number, (_, guide, _) in enumerate(self._guided) if not guide.free]
        if bound:
            fill_next_token_bitmask_par(_executor(), bound, self._bits.view(np.int32))
        for bits, (place, guide, stop_ids) in zip(self._bits, self._guided, strict=True):
            if (ended := self._settle(bits, guide, stop_ids)) is not None:
                self.ended[place] = ended

    def _settle(self, bits: NDArray[np.uint32], guide: Guide, stop_ids: Collection[int]) -> Left | None:
        """Stop tokens may be drawn where the text may end, and there alone."""
        if not guide.free and guide.matcher.is_error():
            guide.fault = first_line(guide.matcher.get_error())
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


def first_line(error: str) -> str:
    return without_state(error).split("\n")[0]


def _tokenizer(spelling: Sequence[bytes]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Words(spelling)))


class _Words:
    """A vocabulary, as llguidance asks for it. It encodes nothing: grammars here leave the choice of tokens to the model."""

    bos_token_id = None

    def __init__(self, spelling: Sequence[bytes]) -> None:
        self.tokens = [*spelling, END]
        self.eos_token_id = len(spelling)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        return []


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
