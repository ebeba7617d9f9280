from __future__ import annotations

import codecs
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.text import TextDelta, TextStream
from mlxrpc_server.vocabulary import Vocabulary

PIECES = [
    b"",
    b"a",
    b"b",
    b"c",
    b"ab",
    b"bc",
    b"a b",
    "가".encode(),
    "가😀".encode(),
    b"\xea",
    b"\xb0",
    b"\x80",
]
PIECES += [
    b"\xf0\x9f",
    b"\x98\x80",
    b"a\xf0",
    b"\xff",
    b"\xed\xa0",
    b"\xed\xa0\x80",
    b"\xc0b",
    "é".encode(),
    b"\xcc\x81",
]

ANY = st.sampled_from(PIECES) | st.binary(max_size=4)
FEW = st.sampled_from([b"a", b"b", b"ab", b"", b"\xea", b"\xb0\x80", b"\xb0\x80a"])


Given = tuple[list[bytes], list[str]]


@st.composite
def pieces_and_stops(draw: st.DrawFn) -> Given:
    """Tokens, and stops of which some occur in their text."""
    pieces = draw(st.lists(ANY, max_size=12) | st.lists(FEW, max_size=12))
    text, _ = decoded(b"".join(pieces))
    own = st.builds(slice, st.integers(0, len(text)), st.integers(0, len(text))).map(text.__getitem__)
    stop = own.filter(bool) if text else st.nothing()
    return pieces, draw(st.lists(stop | st.text("ab가\ufffd", min_size=1, max_size=4), max_size=4))


def decoded(content: bytes) -> tuple[str, bool]:
    """The characters, and whether another one has begun."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content)
    return text, bool(decoder.getstate()[0])


@dataclass
class Expected:
    tokens: list[int]
    text: str
    matched: str | None
    begin: int


def expected(pieces: Sequence[bytes], stops: Sequence[str], min_tokens: int = 0) -> Expected:
    """The whole stream, by looking at every prefix of its text."""
    everything, _ = decoded(b"".join(pieces))
    early = begun(pieces[:min_tokens])
    for end in range(len(everything) + 1):
        found = [stop for stop in stops if everything[early:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            begin = end - len(stop)
            last = next(count for count in range(1, len(pieces) + 1) if begun(pieces[:count]) > begin)
            return Expected(list(range(last)), everything[:begin], stop, begin)
    return Expected(list(range(len(pieces))), everything, None, len(everything))


def begun(pieces: Sequence[bytes]) -> int:
    """How many characters have at least a first byte, were nothing to follow."""
    return len(b"".join(pieces).decode(errors="replace"))


def sendable(pieces: Sequence[bytes], stops: Sequence[str]) -> int:
    """How many tokens may be sent before a match, by trying every number of them."""
    text, _ = decoded(b"".join(pieces))
    starts = {stop[:length] for stop in stops for length in range(len(stop))}
    safe = len(text) - max((len(start) for start in starts if text.endswith(start)), default=0)
    prefixes = [(count, *decoded(b"".join(pieces[:count]))) for count in range(len(pieces) + 1)]
    return max(count for count, head, unfinished in prefixes if not unfinished and len(head) <= safe)


def chunks(ids: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(ids)
    for size in sizes:
        yield list(itertools.islice(rest, size))
    yield list(rest)


def joined(deltas: Sequence[TextDelta]) -> tuple[list[int], str]:
    return [token for delta in deltas for token in delta.token_ids], "".join(delta.text for delta in deltas)


def stream_of(pieces: Sequence[bytes], stops: Sequence[str] = (), min_tokens: int = 0) -> TextStream:
    return TextStream(Vocabulary(pieces), stops, min_tokens)


@given(pieces_and_stops(), st.lists(st.integers(0, 4)))
def test_any_chunking_gives_the_whole(example: Given, sizes: list[int]) -> None:
    pieces, stops = example
    stream = stream_of(pieces, stops)
    deltas = [stream.push(chunk) for chunk in chunks(range(len(pieces)), sizes)]
    whole = expected(pieces, stops)
    assert joined([*deltas, stream.finish()]) == (whole.tokens, whole.text)
    assert stream.matched == whole.matched
    assert stream.token_count == len(whole.tokens)


@given(pieces_and_stops(), st.integers(0, 6), st.integers(0, 12), st.lists(st.integers(0, 4)))
def test_no_stop_begins_within_the_tokens_that_there_must_be(
    example: Given, min_tokens: int, cut: int, sizes: list[int]
) -> None:
    pieces, stops = example
    whole = expected(pieces, stops, min_tokens)
    stream, resumed = stream_of(pieces, stops, min_tokens), stream_of(pieces, stops, min_tokens)
    deltas = [stream.push(chunk) for chunk in chunks(range(len(pieces)), sizes)]
    assert joined([*deltas, stream.finish()]) == (whole.tokens, whole.text)
    received = stream_of(pieces, stops, min_tokens).push(range(min(cut, len(whole.tokens))))
    resumed.replay(received.token_ids)
    rest = [resumed.push([token]) for token in range(len(received.token_ids), len(pieces))]
    assert joined([received, *rest, resumed.finish()]) == (whole.tokens, whole.text)
    assert stream.matched == resumed.matched == whole.matched


def test_early_text_is_not_held_back_and_a_character_begins_where_its_first_byte_is() -> None:
    stream = stream_of([b"a", b"a\xea", b"\xb0\x80", b"a", "가".encode(), b"b"], ["가", "aa"], 2)
    deltas = [stream.push([token]) for token in range(6)]
    assert deltas[0] == TextDelta((0,), "a")
    assert deltas[1:3] == [TextDelta((), ""), TextDelta((1, 2), "a가")]
    assert joined(deltas) == ([0, 1, 2, 3, 4], "aa가a")
    assert stream.matched == "가"


@given(st.lists(st.binary(max_size=6), max_size=12))
def test_the_text_is_what_the_incremental_decoder_makes_of_the_bytes(pieces: list[bytes]) -> None:
    stream = stream_of(pieces)
    _, text = joined([stream.push(range(len(pieces))), stream.finish()])
    assert text == decoded(b"".join(pieces))[0]


@given(pieces_and_stops())
def test_each_delta_is_exactly_its_tokens(example: Given) -> None:
    pieces, stops = example
    stream = stream_of(pieces, stops)
    for token in range(len(pieces)):
        delta = stream.push([token])
        if stream.matched is None:
            own = b"".join(pieces[token] for token in delta.token_ids)
            assert decoded(own) == (delta.text, False)


@given(pieces_and_stops())
def test_no_more_is_held_than_must_be(example: Given) -> None:
    pieces, stops = example
    stream = stream_of(pieces, stops)
    for count in range(1, len(pieces) + 1):
        stream.push([count - 1])
        if stream.matched is None:
            assert stream.token_count == sendable(pieces[:count], stops)


@given(pieces_and_stops())
def test_without_tokens_there_is_no_text(example: Given) -> None:
    pieces, stops = example
    stream = stream_of(pieces, stops)
    deltas = [stream.push([token]) for token in range(len(pieces))]
    assert all(delta.token_ids or not delta.text for delta in [*deltas, stream.finish()])


def test_every_stop_is_found_at_every_byte_whatever_the_tokens() -> None:
    text = "x가x😀 bé"
    content = text.encode()
    substrings = {text[begin:end] for begin, end in itertools.combinations(range(len(text) + 1), 2)}
    for first, second in itertools.combinations(range(len(content) + 1), 2):
        pieces = [content[:first], content[first:second], content[second:]]
        for stop in substrings:
            stream = stream_of(pieces, [stop])
            got = joined([stream.push([token]) for token in range(3)])
            whole = expected(pieces, [stop])
            assert (*got, stream.matched) == (whole.tokens, whole.text, stop)
            assert whole.text == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("pieces", "tokens", "text", "matched"),
    [
        ([b"abc"], [0], "", "ab"),
        ([b"xa", b"bc"], [0], "x", "ab"),
        ([b"x", b"b", b"c", b"y"], [0, 1], "x", "bc"),
        ([b"xab", b"c"], [0], "x", "ab"),
        ([b"aa", b"ab"], [0, 1], "aa", "ab"),
        ([b"xb", b"", b"c"], [0], "x", "bc"),
    ],
)
def test_stops_that_overlap(pieces: list[bytes], tokens: list[int], text: str, matched: str) -> None:
    stream = stream_of(pieces, ["ab", "abc", "bc"])
    assert joined([stream.push([token]) for token in range(len(pieces))]) == (tokens, text)
    assert stream.matched == matched


def test_after_a_match_nothing_more_is_sent() -> None:
    stream = stream_of([b"a", b"b", b"c"], ["b"])
    assert stream.push([0, 1, 2]) == TextDelta((0, 1), "a")
    assert stream.push([2, 2]) == stream.finish() == TextDelta((), "")
    assert stream.token_count == 2


def test_a_stop_that_begins_inside_a_split_character_ends_with_the_token_of_its_first_byte() -> None:
    stream = stream_of([b"x\xea", b"\xb0", b"\x80b"], ["가b"])
    assert stream.push([0, 1, 2]) == TextDelta((0,), "x")


def test_half_a_surrogate_in_utf_8_is_two_characters_and_both_begin_in_its_token() -> None:
    stream = stream_of([b"\xed\xa0", b"x"], ["\ufffdx"])
    assert stream.push([0]) == TextDelta((), "")
    assert stream.push([1]) == TextDelta((0,), "\ufffd")


def test_special_tokens_are_sent_at_once_and_without_text() -> None:
    stream = stream_of([b"", b"a"], ["ab"])
    assert stream.push([0, 7]) == TextDelta((0, 7), "")
    assert stream.push([1, 0]) == TextDelta((), "")
    assert stream.finish() == TextDelta((1, 0), "a")


def test_finish_keeps_the_token_of_an_unfinished_character_and_drops_its_bytes() -> None:
    stream = stream_of([b"a\xf0\x9f"], [])
    assert stream.push([0]) == TextDelta((), "")
    assert stream.finish() == TextDelta((0,), "a")
    assert stream.finish() == TextDelta((), "")


def test_the_first_token_that_says_something_is_spelt_as_an_opening() -> None:
    vocabulary = Vocabulary([b" a", b"", b" "], {0: b"a", 2: b""})
    stream = TextStream(vocabulary)
    assert stream.push([1, 0, 0]).text == "a a"
    resumed = TextStream(vocabulary)
    resumed.replay([1, 2])
    assert resumed.push([0]).text == " a"


@given(pieces_and_stops(), st.data())
def test_a_stream_cut_between_deltas_goes_on_as_if_undisturbed(example: Given, data: st.DataObject) -> None:
    pieces, stops = example
    cut = data.draw(st.integers(0, len(pieces)))
    broken, resumed = stream_of(pieces, stops), stream_of(pieces, stops)
    received = broken.push(range(cut))
    resumed.replay(received.token_ids)
    rest = [resumed.push([token]) for token in range(len(received.token_ids), len(pieces))]
    whole = expected(pieces, stops)
    if broken.matched is None:
        assert joined([received, *rest, resumed.finish()]) == (whole.tokens, whole.text)
        assert (resumed.matched, resumed.token_count) == (whole.matched, len(whole.tokens))


@given(pieces_and_stops(), st.data())
def test_text_once_replayed_stands_wherever_the_cut(example: Given, data: st.DataObject) -> None:
    pieces, stops = example
    cut = data.draw(st.integers(0, len(pieces)))
    stream = stream_of(pieces, stops)
    stream.replay(range(cut))
    sent, _ = decoded(b"".join(pieces[:cut]))
    tokens, text = joined([stream.push(range(cut, len(pieces))), stream.finish()])
    whole = expected(pieces, stops)
    assert stream.matched == whole.matched
    assert stream.token_count == cut + len(tokens)
    if whole.matched is not None and whole.begin < begun(pieces[:cut]):
        assert (tokens, text) == ([], "")
    else:
        assert (list(range(cut)) + tokens, sent + text) == (whole.tokens, whole.text)


@pytest.mark.parametrize(
    ("replayed", "pushed", "stop"),
    [
        ([b"xa"], [b"b", b"y"], "ab"),
        ([b"x\xea"], [b"\xb0\x80", b"b"], "가b"),
        ([b"xab"], [b"y"], "ab"),
        ([b"x\xea"], [b"\xb0\x80b"], "가"),
    ],
)
def test_nothing_follows_a_stop_that_began_in_replayed_tokens(
    replayed: list[bytes], pushed: list[bytes], stop: str
) -> None:
    stream = stream_of(replayed + pushed, [stop])
    stream.replay(range(len(replayed)))
    ids = range(len(replayed), len(replayed + pushed))
    assert joined([*(stream.push([token]) for token in ids), stream.finish()]) == ([], "")
    assert (stream.matched, stream.token_count) == (stop, len(replayed))


def lines_run(pieces: Sequence[bytes], ids: Sequence[int], stops: Sequence[str]) -> int:
    """Python lines executed by pushing the ids one by one."""
    stream, lines = stream_of(pieces, stops), 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for token in ids:
            stream.push([token])
    finally:
        sys.settrace(before)
    assert stream.matched is None
    return lines


@pytest.mark.parametrize(
    ("pieces", "first", "stops"),
    [
        ([b"a", b"a"], 0, []),
        ([b"a", b"a"], 0, ["a" * 255 + "b"]),
        ([b"ab", b"ab"], 0, ["ab" * 100 + "c", "ba" * 100 + "c", "b" + "ab" * 100 + "c"]),
        ([b"\xf0\x9f", b""], 1, []),
    ],
)
def test_the_cost_grows_with_the_tokens_and_not_faster(pieces: list[bytes], first: int, stops: list[str]) -> None:
    short, long = ([0] + [first] * count for count in (400, 1600))
    assert lines_run(pieces, long, stops) < 4.4 * lines_run(pieces, short, stops)
