"""Token ids into text, reasoning and tool calls, for answers that may have sections.

Pure, with the rules of `text`, and these in addition:
- Stop sequences are looked for in what becomes the text, and nowhere else.
- A token is held while it is not told what its characters are: a call goes out whole, with all its tokens.
- Special tokens can be markers, though they have no text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mlxrpc_server.characters import Characters
from mlxrpc_server.sections import Kind, Sections, Span
from mlxrpc_server.stops import StopMatcher
from mlxrpc_server.text import TextDelta
from mlxrpc_server.types import ToolCall
from mlxrpc_server.vocabulary import Vocabulary


class _Part(NamedTuple):
    """What a token says, from one span."""

    at: int
    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def text_before(self, position: float) -> str:
        return self.text if position == math.inf else self.text[: int(position) - self.at]


class _Token:
    """One on its way. Positions count the characters of the whole answer, special tokens' marks included."""

    __slots__ = ("begun", "characters", "end", "id", "is_mark", "parts", "replayed", "start")

    def __init__(self, id: int, start: int, characters: str, unfinished: int, *, is_mark: bool) -> None:
        self.id = id
        self.start = start
        self.end = start + len(characters)
        self.characters = characters
        self.is_mark = is_mark
        self.begun = self.end + unfinished
        """How many characters have at least their first byte by then."""
        self.replayed = False
        self.parts: list[_Part] = []


class SectionStream:
    """One generation's ids on their way out. Takes the place of a TextStream."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        sections: Sections,
        stop_sequences: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        inline: bool = False,
    ) -> None:
        self.token_count = 0
        self.reasoning_tokens = 0
        """Those of the reported ones that belong to the reasoning or its markers."""
        self._vocabulary = vocabulary
        self._sections = sections
        self._stops = StopMatcher(stop_sequences)
        self._text_kinds = {Kind.TEXT, Kind.REASONING, Kind.REASONING_MARKER} if inline else {Kind.TEXT}
        self._early = min_tokens
        """Tokens still to come in which no stop may begin."""
        self._early_end = 0
        """Where the first character lies that such a token has not begun."""
        self._characters = Characters(vocabulary)
        self._position = 0
        self._told = 0
        self._replayed = 0
        self._held: deque[list[_Token]] = deque()
        """Each item goes out as one: all its tokens but the last end inside a character."""
        self._run: list[_Token] = []
        self._untold: deque[_Token] = deque()
        """The last of the held ones: what they say is not known to its end."""
        self._texts: deque[tuple[int, int]] = deque()
        """Where pieces of the text begin, in the text and in the whole, for all that is held."""
        self._text_length = 0

    @property
    def matched(self) -> str | None:
        """The stop sequence found."""
        return self._stops.matched

    @property
    def only_calls(self) -> bool:
        """Whether tools are called, and no section broke."""
        return self._sections.has_calls and not self._sections.has_broken_calls

    def replay(self, token_ids: Sequence[int]) -> None:
        """Before the first push: these ids and all their complete text count as already sent."""
        for token in token_ids:
            self._take(token)
        for held in self._all_held():
            held.replayed = True
        self.token_count += len(token_ids)
        self._replayed = self._position + self._characters.unfinished
        self._release(self._limit())

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """What may be sent now. After a match further ids are ignored."""
        if (delta := self._plain(token_ids)) is not None:
            self.token_count += len(token_ids)
            return delta
        for token in token_ids:
            if self.matched is not None:
                break
            self._take(token)
        return self._sendable()

    def finish(self, *, stopped: bool = False) -> TextDelta:
        """The rest, once no more ids come. `stopped`: the model ended by itself."""
        if self.matched is None:
            self._hear(self._sections.finish(stopped=stopped))
            self._held.append(self._run)
            self._run = []
        return self._sendable(last=True)

    def _plain(self, token_ids: Sequence[int]) -> TextDelta | None:
        """The whole delta where nothing is held and no token can begin anything; that is nearly always so."""
        if self._held or self._run or self._early or not self._characters.whole:
            return None
        texts = []
        for token in token_ids:
            text = self._vocabulary.text(token)
            if text is None or token in self._vocabulary.marks:
                return None
            texts.append(text)
        whole = "".join(texts)
        kind = self._sections.plain(whole)
        if kind is None or (kind in self._text_kinds and not self._stops.skip(whole)):
            return None
        self._pass(whole, kind)
        self.reasoning_tokens += len(token_ids) if kind is Kind.REASONING else 0
        return (
            TextDelta(tuple(token_ids), whole) if kind in self._text_kinds else TextDelta(tuple(token_ids), "", whole)
        )

    def _pass(self, text: str, kind: Kind) -> None:
        """Text that goes out without having been held."""
        self._sections.skip(len(text))
        self._position += len(text)
        self._told = self._position
        if kind in self._text_kinds:
            self._text_length += len(text)

    def _take(self, token: int) -> None:
        mark = self._vocabulary.marks.get(token, "")
        characters = mark or self._characters.of(token)
        unfinished = self._characters.unfinished
        taken = _Token(token, self._position, characters, unfinished, is_mark=bool(mark))
        self._position = taken.end
        if self._early:
            self._early -= 1
            self._early_end = taken.begun
        self._run.append(taken)
        if not unfinished:
            self._held.append(self._run)
            self._run = []
        self._untold.append(taken)
        self._hear(self._sections.feed(characters))

    def _hear(self, spans: Sequence[Span]) -> None:
        """Shares out among the tokens what has been told of their characters."""
        for span in spans:
            while self._told < span.end:
                self._share(span)
        while self._untold and self._untold[0].end <= self._told:
            self._untold.popleft()

    def _share(self, span: Span) -> None:
        """To the first token that has characters left."""
        token = self._untold[0]
        if token.end <= self._told:
            self._untold.popleft()
            return
        begin, self._told = self._told, min(span.end, token.end)
        said = token.characters[begin - token.start : self._told - token.start]
        if token.is_mark and not (span.kind is Kind.REASONING_MARKER and span.kind in self._text_kinds):
            said = ""
        if span.kind in self._text_kinds:
            self._say(token, begin, said)
        elif span.kind is Kind.REASONING:
            token.parts.append(_Part(begin, reasoning=said))
        elif span.kind is Kind.CALLS and self._told == span.end:
            token.parts.append(_Part(begin, calls=span.calls))

    def _say(self, token: _Token, begin: int, said: str) -> None:
        token.parts.append(_Part(begin, text=said))
        self._texts.append((self._text_length, begin))
        self._text_length += len(said)
        self._stops.feed(said, max(0, min(len(said), self._early_end - begin)))

    def _limit(self) -> int:
        """The position up to which everything is told, and can be no stop sequence."""
        return self._told if self._stops.begin >= self._text_length else self._place(self._stops.begin)

    def _place(self, position: int) -> int:
        """Of a character of the text, in the whole."""
        return next(
            (begin + position - text for text, begin in reversed(self._texts) if text <= position), self._replayed
        )

    def _sendable(self, *, last: bool = False) -> TextDelta:
        if self.matched is None:
            return self._release(math.inf if last else self._limit())
        match = self._place(self._stops.begin)
        before = self._release(match)
        held = self._all_held()
        self._drop_held()
        if match < self._replayed or not held:
            return before
        its = next((number for number, token in enumerate(held) if token.begun > match), len(held) - 1)
        return before.joined(self._report(held[: its + 1], match))

    def _release(self, limit: float) -> TextDelta:
        """The tokens that end by then, and with a character."""
        released: list[_Token] = []
        while self._held and (not self._held[0] or self._held[0][-1].end <= limit):
            released += self._held.popleft()
        self._forget_texts()
        return self._report(released, math.inf)

    def _all_held(self) -> list[_Token]:
        return [token for run in (*self._held, self._run) for token in run]

    def _drop_held(self) -> None:
        self._held.clear()
        self._run = []
        self._untold.clear()

    def _forget_texts(self) -> None:
        """Those before what is held: no stop sequence that is not yet found begins there."""
        first = self._held[0] if self._held else self._run
        begin = first[0].start if first else self._told
        while len(self._texts) > 1 and self._texts[1][1] <= begin:
            self._texts.popleft()

    def _report(self, tokens: Sequence[_Token], before: float) -> TextDelta:
        """What the new ones among them say, up to that position."""
        self.reasoning_tokens += sum(self._is_reasoning(token) for token in tokens)
        new = [token for token in tokens if not token.replayed]
        self.token_count += len(new)
        parts = [part for token in new for part in token.parts if part.at < before]
        return TextDelta(
            tuple([token.id for token in new]),
            "".join([part.text_before(before) for part in parts]),
            "".join([part.reasoning for part in parts]),
            tuple([call for part in parts for call in part.calls]),
        )

    def _is_reasoning(self, token: _Token) -> bool:
        """A token that says nothing belongs to what goes on around it."""
        begin, end = self._sections.reasoning_begin, self._sections.reasoning_end
        return begin is not None and begin < token.end and (end is None or token.start < end)
