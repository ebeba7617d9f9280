from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.stops import StopMatcher

texts = st.text("ab", max_size=40) | st.text("abc가", max_size=40)
sequences = st.lists(st.text("ab", min_size=3, max_size=9) | st.text("abc가", min_size=1, max_size=6), max_size=6)


def first_match(text: str, stops: Sequence[str]) -> tuple[str | None, int]:
    """By looking at every prefix: the match and its end."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return max(found, key=len), end
    return None, len(text)


def longest_start_of_a_stop(text: str, stops: Sequence[str]) -> int:
    starts = {stop[:length] for stop in stops for length in range(len(stop))}
    return max((len(start) for start in starts if text.endswith(start)), default=0)


@given(texts, sequences)
def test_the_first_complete_and_then_the_longest_sequence_is_found(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    matcher.feed(text)
    matched, end = first_match(text, stops)
    assert matcher.matched == matched
    if matched is not None:
        assert matcher.begin == end - len(matched)


@given(texts, sequences)
def test_what_may_become_a_stop_is_told_from_its_earliest_beginning(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    matcher.feed(text)
    if matcher.matched is None:
        assert matcher.begin == len(text) - longest_start_of_a_stop(text, stops)


@given(st.lists(texts), sequences)
def test_the_division_of_the_text_changes_nothing(parts: list[str], stops: list[str]) -> None:
    divided, whole = StopMatcher(stops), StopMatcher(stops)
    for part in parts:
        divided.feed(part)
    whole.feed("".join(parts))
    assert (divided.matched, divided.begin) == (whole.matched, whole.begin)


@pytest.mark.parametrize(
    ("text", "matched", "begin"),
    [("abc", "ab", 0), ("xbc", "bc", 1), ("aab", "ab", 1), ("xbxa", None, 3), ("xaxb", None, 3)],
)
def test_sequences_that_begin_and_end_inside_each_other(text: str, matched: str | None, begin: int) -> None:
    matcher = StopMatcher(["ab", "abc", "bc"])
    matcher.feed(text)
    assert (matcher.matched, matcher.begin) == (matched, begin)


def test_what_failed_once_may_fail_again_before_it_fits() -> None:
    matcher = StopMatcher(["aabaac", "aabb", "aba"])
    matcher.feed("aabaaba")
    assert (matcher.matched, matcher.begin) == ("aba", 1)
    matcher = StopMatcher(["aaac", "b"])
    matcher.feed("aaab")
    assert (matcher.matched, matcher.begin) == ("b", 3)


def test_of_two_sequences_complete_at_once_the_longer_is_found() -> None:
    matcher = StopMatcher(["c", "bc", "abc"])
    matcher.feed("xabc")
    assert (matcher.matched, matcher.begin) == ("abc", 1)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopMatcher(["a", ""])
