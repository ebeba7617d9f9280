"""Token ids into the text that may be sent, token by token.

Pure: no I/O, no clock, no loop. It knows a vocabulary and stop sequences, not models or requests.

The rules of a stream:
- A delta is a whole number of tokens and exactly their text.
- Bytes become characters as Python's incremental UTF-8 decoder makes them, U+FFFD for what can never be one.
- A token is held while it ends inside a character, or while its text may become a stop sequence; so are
  those after it.
- A match cuts the text where it begins. The token in which it begins is the last one reported.
- None begins within the tokens that there must be at least.
- Nothing depends on how the ids were divided into pushes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mlxrpc_server.characters import Characters
from mlxrpc_server.stops import StopMatcher
from mlxrpc_server.types import ToolCall
from mlxrpc_server.vocabulary import Vocabulary


class TextDelta(NamedTuple):
    """Whole tokens and exactly what they say; no tokens, no text."""

    token_ids: tuple[int, ...]
    text: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def joined(self, next: TextDelta) -> TextDelta:
        return TextDelta(
            self.token_ids + next.token_ids,
            self.text + next.text,
            self.reasoning + next.reasoning,
            self.calls + next.calls,
        )


class _Run:
    """Consecutive tokens that can only be sent together: all but the last end inside a character."""

    __slots__ = ("begun", "end", "parts", "start", "tokens")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.tokens: list[int] = []
        self.parts: list[str] = []
        self.begun: list[int] = []
        """Per token, how many characters of the whole text have at least their first byte by then."""

    def add(self, token: int, text: str, unfinished: int) -> None:
        self.end += len(text)
        self.tokens.append(token)
        self.parts.append(text)
        self.begun.append(self.end + unfinished)

    def skip(self, length: int) -> None:
        """Text that was sent without passing through here."""
        self.end += length
        self.start = self.end

    def until(self, position: int) -> tuple[list[int], str]:
        """The tokens up to the one that holds the character at `position`, and the text before it."""
        last = next(number for number, begun in enumerate(self.begun) if begun > position)
        return self.tokens[: last + 1], "".join(self.parts)[: position - self.start]


class TextStream:
    """One generation's ids on their way to text. The cost of a push is that of its own tokens."""

    def __init__(self, vocabulary: Vocabulary, stop_sequences: Sequence[str] = (), min_tokens: int = 0) -> None:
        self.token_count = 0
        """Tokens reported so far, replayed ones included."""
        self.reasoning_tokens = 0
        self.only_calls = False
        self._vocabulary = vocabulary
        self._stops = StopMatcher(stop_sequences)
        self._early = min_tokens if stop_sequences else 0
        """Tokens still to come in which no stop may begin."""
        self._early_end = 0
        """The end of the last character that such a token has begun."""
        self._characters = Characters(vocabulary)
        self._held: deque[_Run] = deque()
        self._run = _Run(0)
        self._replayed = 0

    @property
    def matched(self) -> str | None:
        """The stop sequence found."""
        return self._stops.matched

    def replay(self, token_ids: Sequence[int]) -> None:
        """Before the first push: these ids and all their complete text count as already sent."""
        for token in token_ids:
            self._take(token)
        self.token_count += len(token_ids)
        self._held.clear()
        self._run = _Run(self._run.end)
        self._replayed = self._run.end + self._characters.unfinished

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """What may be sent now. After a match further ids are ignored."""
        if (text := self._plain(token_ids)) is not None:
            self._run.skip(len(text))
            return self._report(TextDelta(tuple(token_ids), text))
        for token in token_ids:
            if self.matched is not None:
                break
            self._take(token)
        delta = self._release(self._stops.begin)
        return self._report(delta if self.matched is None else self._cut(delta))

    def finish(self, *, stopped: bool = False) -> TextDelta:
        """The rest, once no more ids come. An unfinished character is left out, its tokens are not."""
        self._held.append(self._run)
        self._run = _Run(self._run.end)
        return self._report(self._release(math.inf))

    def _plain(self, token_ids: Sequence[int]) -> str | None:
        """The tokens' text where nothing is held and each is whole characters, none of which may begin a stop.

        That is nearly always so, and costs a tenth of what _take does.
        """
        if self._held or self._run.tokens or self._early or not self._characters.whole:
            return None
        texts = []
        for token in token_ids:
            if (text := self._vocabulary.text(token)) is None:
                return None
            texts.append(text)
        whole = "".join(texts)
        return whole if self._stops.skip(whole) else None

    def _take(self, token: int) -> None:
        text, begin = self._characters.of(token), self._run.end
        unfinished = self._characters.unfinished
        self._run.add(token, text, unfinished)
        if self._early:
            self._early -= 1
            self._early_end = self._run.begun[-1]
        self._stops.feed(text, max(0, min(len(text), self._early_end - begin)))
        if not unfinished:
            self._held.append(self._run)
            self._run = _Run(self._run.end)

    def _release(self, limit: float) -> TextDelta:
        tokens: list[int] = []
        parts: list[str] = []
        while self._held and self._held[0].end <= limit:
            run = self._held.popleft()
            tokens += run.tokens
            parts += run.parts
        return TextDelta(tuple(tokens), "".join(parts))

    def _cut(self, before: TextDelta) -> TextDelta:
        """With what lies before the match. Replayed text stands, even where it is part of the match."""
        begin = self._stops.begin
        held = [run for run in (*self._held, self._run) if run.tokens]
        self._held.clear()
        self._run = _Run(self._run.end)
        if not held or begin < self._replayed:
            return before
        tokens, text = held[0].until(begin)
        return TextDelta(before.token_ids + tuple(tokens), before.text + text)

    def _report(self, delta: TextDelta) -> TextDelta:
        self.token_count += len(delta.token_ids)
        return delta
