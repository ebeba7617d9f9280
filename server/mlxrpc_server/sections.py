"""The parts of an answer, told apart by the markers around them: reasoning, then text, with tool calls in it.

Pure: characters in, spans out. It knows markers and positions; nothing of tokens, and of tools only how to ask
whether a section is a call.

The rules, none of which depends on how the characters were divided:
- Reasoning comes first or not at all; its marker later on is text.
- Line breaks around a marker belong to it.
- A section that holds no call is text, and so is one that is never closed.
- Where a call's opening marker comes twice before one closing marker, the last one may be the one that counts.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mlxrpc_server.types import ToolCall


class Kind(enum.Enum):
    TEXT = enum.auto()
    REASONING = enum.auto()
    REASONING_MARKER = enum.auto()
    CALLS = enum.auto()
    """A whole section with its markers."""
    BREAKS = enum.auto()
    """The line breaks behind such a section."""


@dataclass(frozen=True, slots=True)
class Markers:
    start: str
    end: str
    """Empty: the section lasts as long as the answer."""


@dataclass(frozen=True, slots=True)
class CallSections:
    """How calls are marked, and what reads the text between the markers: the calls in it, none where it is none."""

    markers: Markers
    read: Callable[[str], tuple[ToolCall, ...]]


NO_MARKERS = Markers("", "")
NO_CALLS = CallSections(NO_MARKERS, lambda _body: ())


class Thought(enum.Enum):
    """Where an answer stands when it begins."""

    MAY_COME = enum.auto()
    OPEN = enum.auto()
    """The prompt has opened it."""
    OVER = enum.auto()


class Span(NamedTuple):
    """What the characters are from where the last span ended up to `end`."""

    end: int
    kind: Kind
    calls: tuple[ToolCall, ...] = ()


class Sections:
    """One answer's characters. Those that are not told yet are as few as can be."""

    def __init__(self, thought: Thought, reasoning: Markers | None, calls: CallSections | None) -> None:
        self.reasoning_begin = -1 if reasoning is not None and thought is Thought.OPEN else None
        """Once there is any: before the answer, where the prompt has opened it."""
        self.reasoning_end: int | None = None
        self.has_calls = False
        self.has_broken_calls = False
        self._reasoning = reasoning or NO_MARKERS
        self._calls = calls or NO_CALLS
        self._untold = ""
        self._at = 0
        self._body = 0
        self._searched = 0
        self._spans: list[Span] = []
        self._look = self._opening(thought if reasoning else Thought.OVER)

    def feed(self, text: str) -> list[Span]:
        self._untold += text
        while self._untold and self._look():
            pass
        return self._told()

    def finish(self, *, stopped: bool) -> list[Span]:
        """What is left. `stopped`: the model itself has ended, so that a section without an end may be whole."""
        if self._look == self._in_call:
            self._end_in_call(stopped=stopped)
        self._tell(len(self._untold), Kind.REASONING if self._look == self._in_reasoning else Kind.TEXT)
        return self._told()

    def plain(self, text: str) -> Kind | None:
        """What the text is, where nothing is untold and no marker can begin in it; the caller then skips it."""
        if self._untold:
            return None
        if self._look == self._in_text:
            marker = self._calls.markers.start
            return Kind.TEXT if not marker or (marker[0] not in text and "\n" not in text) else None
        if self._look == self._in_reasoning:
            return Kind.REASONING if self._reasoning.end[0] not in text and "\n" not in text else None
        return None

    def skip(self, length: int) -> None:
        self._at += length

    def _opening(self, thought: Thought) -> Callable[[], bool]:
        match thought:
            case Thought.MAY_COME:
                return self._before
            case Thought.OPEN:
                return self._behind_opening
            case Thought.OVER:
                return self._in_text

    def _before(self) -> bool:
        """Where reasoning may come."""
        rest = self._untold.lstrip("\n")
        start = self._reasoning.start
        if rest.startswith(start):
            self.reasoning_begin = self._at
            self._tell(len(self._untold) - len(rest) + len(start), Kind.REASONING_MARKER)
            self._look = self._behind_opening
            return True
        if start.startswith(rest):
            return False
        self._look = self._in_text
        return True

    def _behind_opening(self) -> bool:
        return self._breaks(Kind.REASONING_MARKER, self._in_reasoning)

    def _in_reasoning(self) -> bool:
        end = self._reasoning.end
        place = self._untold.find(end)
        if place < 0:
            self._tell(_safe(self._untold, end), Kind.REASONING)
            return False
        body = len(self._untold[:place].rstrip("\n"))
        self._tell(body, Kind.REASONING)
        self._tell(place - body + len(end), Kind.REASONING_MARKER)
        self.reasoning_end = self._at
        self._look = self._behind_reasoning
        return True

    def _behind_reasoning(self) -> bool:
        return self._breaks(Kind.REASONING_MARKER, self._in_text)

    def _in_text(self) -> bool:
        start = self._calls.markers.start
        if not start:
            self._tell(len(self._untold), Kind.TEXT)
            return False
        place = self._untold.find(start)
        if place < 0:
            self._tell(_safe(self._untold, start), Kind.TEXT)
            return False
        self._open_call(place)
        return True

    def _open_call(self, place: int) -> None:
        """The marker stands at that place; the line breaks before it wait with it."""
        before = len(self._untold[:place].rstrip("\n"))
        self._tell(before, Kind.TEXT)
        self._body = self._searched = place - before + len(self._calls.markers.start)
        self._look = self._in_call

    def _in_call(self) -> bool:
        end = self._calls.markers.end
        place = self._untold.find(end, self._searched) if end else -1
        if place < 0:
            self._searched = max(self._body, len(self._untold) - len(end) + 1)
            return False
        if not self._read_call(place, place + len(end)):
            self._not_a_call(place, place + len(end))
        return True

    def _read_call(self, place: int, end: int) -> bool:
        """Whether there are calls between the opening marker and that place."""
        calls = self._calls.read(self._untold[self._body : place])
        if calls:
            self.has_calls = True
            self._tell(end, Kind.CALLS, calls)
            self._look = self._behind_call
        return bool(calls)

    def _not_a_call(self, place: int, end: int) -> None:
        again = self._untold.rfind(self._calls.markers.start, self._body, place)
        if again >= 0:
            self._open_call(again)
            return
        self.has_broken_calls = True
        self._tell(end, Kind.TEXT)
        self._look = self._in_text

    def _behind_call(self) -> bool:
        return self._breaks(Kind.BREAKS, self._in_text)

    def _end_in_call(self, *, stopped: bool) -> None:
        lasts = not self._calls.markers.end
        if not (lasts and stopped and self._read_call(len(self._untold), len(self._untold))):
            self.has_broken_calls = True

    def _breaks(self, kind: Kind, then: Callable[[], bool]) -> bool:
        rest = self._untold.lstrip("\n")
        self._tell(len(self._untold) - len(rest), kind)
        if rest:
            self._look = then
        return bool(rest)

    def _tell(self, length: int, kind: Kind, calls: tuple[ToolCall, ...] = ()) -> None:
        if length:
            self._at += length
            self._untold = self._untold[length:]
            self._spans.append(Span(self._at, kind, calls))

    def _told(self) -> list[Span]:
        spans, self._spans = self._spans, []
        return spans


def _safe(text: str, marker: str) -> int:
    """How much of the text cannot belong to the marker, whatever follows: it is not in the text as a whole."""
    most = min(len(marker) - 1, len(text))
    begun = next((length for length in range(most, 0, -1) if text.endswith(marker[:length])), 0)
    return len(text[: len(text) - begun].rstrip("\n"))
