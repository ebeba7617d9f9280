"""Reasoning, text and tool calls out of token ids, held against a reading of the whole answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlxrpc_server.section_stream import SectionStream
from mlxrpc_server.sections import CallSections, Kind, Markers, Sections, Thought
from mlxrpc_server.text import TextDelta, TextStream
from mlxrpc_server.types import ToolCall
from mlxrpc_server.vocabulary import Vocabulary
from tests.server.test_text_stream import decoded, pieces_and_stops

REASONING = Markers("<t>", "</t>")
CALLS = Markers("[c]", "[/c]")
ENDLESS = Markers("[c]", "")
NOTHING = TextDelta((), "")


def read(body: str) -> tuple[ToolCall, ...]:
    """Digits are calls, one for each."""
    digits = body.strip("\n")
    return tuple(ToolCall(digit, "f", "{}") for digit in digits) if digits.isascii() and digits.isdigit() else ()


@dataclass(frozen=True)
class Setting:
    thought: Thought = Thought.MAY_COME
    calls: Markers | None = CALLS
    inline: bool = False

    def stream(self, pieces: Sequence[bytes], stops: Sequence[str] = (), min_tokens: int = 0) -> SectionStream:
        calls = CallSections(self.calls, read) if self.calls else None
        sections = Sections(self.thought, REASONING, calls)
        return SectionStream(Vocabulary(pieces), sections, stops, min_tokens, inline=self.inline)


SETTINGS = st.builds(
    Setting,
    thought=st.sampled_from(Thought),
    calls=st.sampled_from([CALLS, ENDLESS, None]),
    inline=st.booleans(),
)
SNIPPETS = [
    "<t>",
    "</t>",
    "[c]",
    "[/c]",
    "12",
    "\n",
    "\n\n",
    "a",
    "b]",
    "가😀",
    "<",
    "[",
    "[c",
    "</t",
    "[c]7[/c]",
    "x [c] y",
]
STOPS = st.lists(st.sampled_from(["a", "\n", "<t>", "[c]", "7", "가", "y[", "\n\n", "a\n", "]"]), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """Texts full of markers, cut into tokens anywhere, also inside characters."""
    content = "".join(draw(st.lists(st.sampled_from(SNIPPETS), max_size=12))).encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(content)), max_size=24)))
    return [content[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(content)])]


@dataclass
class Whole:
    """An answer's characters with what each one is."""

    said: list[tuple[str, Kind]]
    calls: list[tuple[int, tuple[ToolCall, ...]]]
    """By the place of a section's last character."""


def understood(text: str, setting: Setting, *, stopped: bool) -> Whole:
    """By looking at the whole, with no regard to how it came."""
    whole, at = Whole([], []), 0

    def say(end: int, kind: Kind) -> None:
        nonlocal at
        whole.said += [(character, kind) for character in text[at:end]]
        at = end

    def breaks(position: int) -> int:
        return position + len(text[position:]) - len(text[position:].lstrip("\n"))

    opened = setting.thought is Thought.OPEN
    if setting.thought is Thought.MAY_COME and text.startswith(REASONING.start, breaks(0)):
        say(breaks(0) + len(REASONING.start), Kind.REASONING_MARKER)
        opened = True
    if opened:
        say(breaks(at), Kind.REASONING_MARKER)
        end = text.find(REASONING.end, at)
        if end < 0:
            say(len(text), Kind.REASONING)
        else:
            say(at + len(text[at:end].rstrip("\n")), Kind.REASONING)
            say(breaks(end + len(REASONING.end)), Kind.REASONING_MARKER)
    if setting.calls:
        for begin, end, calls in sections_of(text, at, setting.calls, stopped=stopped):
            say(at + len(text[at:begin].rstrip("\n")), Kind.TEXT)
            whole.calls.append((end - 1, calls))
            say(breaks(end), Kind.CALLS)
    say(len(text), Kind.TEXT)
    return whole


def sections_of(
    text: str, at: int, markers: Markers, *, stopped: bool
) -> Iterator[tuple[int, int, tuple[ToolCall, ...]]]:
    """Where calls begin and end, with their markers."""
    while (first := text.find(markers.start, at)) >= 0:
        end = text.find(markers.end, first + len(markers.start)) if markers.end else len(text)
        if end < 0 or (not markers.end and not stopped):
            return
        last = text.rfind(markers.start, first, end)
        for begin in (first, last) if markers.end else (first,):
            if calls := read(text[begin + len(markers.start) : end]):
                yield begin, end + len(markers.end), calls
                break
        at = end + max(1, len(markers.end))


def chunked(count: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(range(count))
    for size in sizes:
        yield list(itertools.islice(rest, size))
    yield list(rest)


def joined(deltas: Sequence[TextDelta]) -> TextDelta:
    whole = NOTHING
    for delta in deltas:
        whole = whole.joined(delta)
    return whole


def pushed(stream: SectionStream | TextStream, count: int, sizes: Sequence[int], *, stopped: bool = False) -> TextDelta:
    return joined([*(stream.push(chunk) for chunk in chunked(count, sizes)), stream.finish(stopped=stopped)])


@settings(max_examples=500)
@given(answers(), SETTINGS, st.lists(st.integers(0, 4)), st.booleans())
@example([b"[c] [c]1[/c]"], Setting(), [], False)
@example([b"\n[c]", b"1", b"[/c]\n\n[c]2", b"[/c]"], Setting(), [1, 1, 1], False)
@example([b"a\n", b"[c]1"], Setting(calls=ENDLESS), [1], True)
def test_any_chunking_gives_what_a_reading_of_the_whole_gives(
    pieces: list[bytes], setting: Setting, sizes: list[int], stopped: bool
) -> None:
    got = pushed(setting.stream(pieces), len(pieces), sizes, stopped=stopped)
    whole = understood(decoded(b"".join(pieces))[0], setting, stopped=stopped)
    inline = {Kind.REASONING, Kind.REASONING_MARKER} if setting.inline else set()
    assert got.token_ids == tuple(range(len(pieces)))
    assert got.text == "".join(said for said, kind in whole.said if kind in {Kind.TEXT} | inline)
    assert got.reasoning == "".join(said for said, kind in whole.said if kind in {Kind.REASONING} - inline)
    assert got.calls == tuple(call for _, calls in whole.calls for call in calls)


@settings(max_examples=500)
@given(answers(), SETTINGS, st.lists(st.integers(0, 4)), STOPS, st.integers(0, 4), st.booleans())
def test_stops_are_found_in_the_text_alone(
    pieces: list[bytes], setting: Setting, sizes: list[int], stops: list[str], min_tokens: int, stopped: bool
) -> None:
    stream = setting.stream(pieces, stops, min_tokens)
    got = pushed(stream, len(pieces), sizes, stopped=stopped)
    whole = understood(decoded(b"".join(pieces))[0], setting, stopped=stopped)
    kinds = {Kind.TEXT, Kind.REASONING, Kind.REASONING_MARKER} if setting.inline else {Kind.TEXT}
    places = [place for place, (_, kind) in enumerate(whole.said) if kind in kinds]
    text = "".join(whole.said[place][0] for place in places)
    early = begun(pieces[:min_tokens])
    found = first_stop(text, stops, sum(place < early for place in places))
    if found is None:
        assert (stream.matched, got.text, len(got.token_ids)) == (None, text, len(pieces))
    else:
        stop, begin = found
        last = next(count for count in range(1, len(pieces) + 1) if begun(pieces[:count]) > places[begin])
        assert (stream.matched, got.text, len(got.token_ids)) == (stop, text[:begin], last)
        assert got.calls == tuple(call for end, calls in whole.calls for call in calls if end < places[begin])
    assert stream.token_count == len(got.token_ids)


def first_stop(text: str, stops: Sequence[str], early: int) -> tuple[str, int] | None:
    """The one that is complete first, of those that begin behind the early characters, and where it begins."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[early:end].endswith(stop)]
        if found:
            return max(found, key=len), end - len(max(found, key=len))
    return None


def begun(pieces: Sequence[bytes]) -> int:
    return len(b"".join(pieces).decode(errors="replace"))


@settings(max_examples=500)
@given(answers(), SETTINGS, STOPS, st.data())
def test_an_answer_cut_between_deltas_goes_on_as_if_undisturbed(
    pieces: list[bytes], setting: Setting, stops: list[str], data: st.DataObject
) -> None:
    whole = setting.stream(pieces, stops)
    expected = pushed(whole, len(pieces), [], stopped=True)
    cut = data.draw(st.integers(0, len(pieces)))
    broken, resumed = setting.stream(pieces, stops), setting.stream(pieces, stops)
    received = joined([broken.push([token]) for token in range(cut)])
    if broken.matched is None:
        resumed.replay(received.token_ids)
        rest = [resumed.push([token]) for token in range(len(received.token_ids), len(pieces))]
        assert joined([received, *rest, resumed.finish(stopped=True)]) == expected
        assert (resumed.matched, resumed.token_count) == (whole.matched, whole.token_count)
        assert (resumed.reasoning_tokens, resumed.only_calls) == (whole.reasoning_tokens, whole.only_calls)


@settings(max_examples=300)
@given(answers(), SETTINGS, STOPS, st.booleans(), st.data())
def test_what_is_replayed_is_never_said_again_wherever_the_cut(
    pieces: list[bytes], setting: Setting, stops: list[str], stopped: bool, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(pieces)))
    whole = setting.stream(pieces, stops)
    expected = pushed(whole, len(pieces), [], stopped=stopped)
    stream = setting.stream(pieces, stops)
    stream.replay(range(cut))
    rest = joined([stream.push(range(cut, len(pieces))), stream.finish(stopped=stopped)])
    assert expected.text.endswith(rest.text)
    assert expected.reasoning.endswith(rest.reasoning)
    assert rest.calls == expected.calls[len(expected.calls) - len(rest.calls) :]
    assert stream.matched == whole.matched
    assert rest.token_ids == expected.token_ids[cut:]


@given(pieces_and_stops(), st.lists(st.integers(0, 4)), st.integers(0, 3))
def test_without_sections_it_says_what_a_text_stream_says(
    example: tuple[list[bytes], list[str]], sizes: list[int], min_tokens: int
) -> None:
    pieces, stops = example
    plain = TextStream(Vocabulary(pieces), stops, min_tokens)
    stream = Setting(Thought.OVER, None).stream(pieces, stops, min_tokens)
    assert pushed(stream, len(pieces), sizes) == pushed(plain, len(pieces), sizes)
    assert (stream.matched, stream.token_count) == (plain.matched, plain.token_count)


@given(answers(), SETTINGS)
def test_reasoning_is_streamed_as_it_comes_and_text_too(pieces: list[bytes], setting: Setting) -> None:
    """What is held is the end of it: line breaks and the beginning of a marker, or a whole section."""
    stream = setting.stream(pieces)
    for count in range(1, len(pieces) + 1):
        stream.push([count - 1])
        told, unfinished = decoded(b"".join(pieces[:count]))
        longest = max(len(marker) for marker in ("<t>", "</t>", "[c]"))
        in_call = setting.calls is not None and "[c]" in told
        if not unfinished and not in_call and not told[-longest:].strip("ab가😀12 xy7"):
            assert stream.token_count == count


def test_a_call_goes_out_once_and_whole_with_all_its_tokens() -> None:
    stream = Setting(Thought.OVER).stream([b"Well.\n", b"[c]", b"4", b"2", b"[/c]", b"\n", b"[c]7[/c]"])
    assert stream.push([0]) == NOTHING
    assert [stream.push([token]) for token in (1, 2, 3)] == [NOTHING] * 3
    assert stream.push([4]) == TextDelta((0, 1, 2, 3, 4), "Well.", calls=read("42"))
    assert stream.push([5]) == TextDelta((5,), "")
    assert stream.push([6]) == TextDelta((6,), "", calls=read("7"))
    assert stream.only_calls


def test_the_text_of_a_broken_call_is_delivered_and_it_is_no_call() -> None:
    stream = Setting(Thought.OVER).stream([b"a\n", b"[c]", b"nothing", b"[/c]", b"\nb", b"[c]1"])
    assert joined([stream.push([token]) for token in range(5)]).text == "a\n[c]nothing[/c]\nb"
    assert stream.push([5]) == NOTHING
    assert stream.finish() == TextDelta((5,), "[c]1")
    assert not stream.only_calls


def test_special_tokens_are_markers_and_say_nothing() -> None:
    vocabulary = Vocabulary([b"", b"", b"", b"", b"x", b"5"], marks={0: "<t>", 1: "</t>", 2: "[c]", 3: "[/c]"})
    ids = [0, 4, 1, 4, 2, 5, 3, 2, 4, 3]
    for inline, text, reasoning in ((False, "xx", "x"), (True, "<t>x</t>xx", "")):
        sections = Sections(Thought.MAY_COME, REASONING, CallSections(CALLS, read))
        stream = SectionStream(vocabulary, sections, inline=inline)
        whole = joined([*(stream.push([token]) for token in ids), stream.finish()])
        assert whole == TextDelta(tuple(ids), text, reasoning, read("5"))


def test_the_tokens_of_reasoning_are_counted_with_its_markers() -> None:
    pieces = [b"\n", b"<t>", b"\n", b"a", b"b", b"</t>", b"\n\n", b"c", b"d"]
    for setting in (Setting(), Setting(inline=True)):
        stream = setting.stream(pieces)
        pushed(stream, len(pieces), [1] * len(pieces))
        assert stream.reasoning_tokens == 6
    cut = Setting(Thought.OPEN).stream([b"a", b"\n", b"b"])
    assert pushed(cut, 3, []) == TextDelta((0, 1, 2), "", "a\nb")
    assert cut.reasoning_tokens == 3


def test_a_marker_that_comes_late_is_text() -> None:
    stream = Setting().stream([b"a", b"<t>", b"b", b"</t>"])
    assert pushed(stream, 4, []).text == "a<t>b</t>"
    assert stream.reasoning_tokens == 0


@pytest.mark.parametrize("calls", [0, 1, 400])
def test_the_whole_of_a_long_call_waits_and_comes(calls: int) -> None:
    pieces = [b"[c]", *[b"1"] * calls, b"[/c]"]
    stream = Setting(Thought.OVER).stream(pieces)
    whole = pushed(stream, len(pieces), [1] * len(pieces))
    assert len(whole.calls) == calls
    assert json.dumps(whole.text) == ('""' if calls else '"[c][/c]"')
