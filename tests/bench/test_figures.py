from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.exchange import CUT, Answer, Ask
from serving.figures import Figures, Spread, decode_rate, figures, gaps, middle, quantile

ASK = Ask("abc", (1, 2, 3), max_tokens=4)


def answer(
    *times: float, stream: int = 0, begun: float = 0.0, ended: float = 9.0, error: str = "", counted: int | None = 4
) -> Answer:
    """With one token at each of the times."""
    counts = {"prompt_tokens": 3, "completion_tokens": counted}
    return Answer(ASK, stream, begun, [(time, 1) for time in times], ended, error=error, **counts)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), part=st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_covers_its_part(values: Sequence[float], part: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, part)
    assert sum(value <= found for value in ordered) >= part * len(ordered)
    assert sum(value < found for value in ordered) < part * len(ordered)


def test_the_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(quantile([], 0.5))


def test_requests_count_as_asked_only_with_the_tokens_and_the_prompt_that_were_asked_for() -> None:
    answers = [answer(1), answer(1, counted=3), answer(1, error="UNAVAILABLE", counted=None)]
    measured = figures(answers)
    assert (measured.requests, measured.as_asked, measured.failed, measured.cut) == (3, 1, 1, 0)
    assert measured.errors == ("1 times UNAVAILABLE",)


def test_a_prompt_of_another_length_is_not_as_asked() -> None:
    other = answer(1)
    other.prompt_tokens = 4
    assert not other.as_asked


def test_tokens_are_the_servers_count_and_where_it_gave_none_what_was_heard() -> None:
    assert answer(1, 2, counted=4).tokens == 4
    assert answer(1, 2, counted=None).tokens == 2


def test_a_request_that_was_cut_before_its_first_token_counts_with_the_time_it_had_waited() -> None:
    measured = figures([answer(begun=1.0, ended=6.0, error=CUT, counted=None)])
    assert measured.first == Spread(5.0, 5.0)
    assert measured.cut == 1


def test_gaps_are_between_the_messages_of_one_stream() -> None:
    assert gaps(answer(1, 3, 6)) == [2, 3]
    assert gaps(answer(1)) == []


def test_the_rate_runs_from_the_first_begin_to_the_last_end() -> None:
    measured = figures([answer(1, begun=1.0, ended=3.0), answer(2, begun=2.0, ended=5.0)])
    assert measured.rate == pytest.approx(8 / 4)


def test_decoding_is_measured_while_all_streams_decode() -> None:
    early = answer(1, 2, 3, 4, stream=0)
    late = answer(2, 2.5, 3, 3.5, 4, 5, stream=1)
    # From 2, when the later one has its first token, to 4, when the earlier one has its last: 2 and 4 tokens.
    assert decode_rate([early, late]) == pytest.approx(6 / 2)


def test_without_a_time_in_which_all_streams_decode_there_is_no_such_rate() -> None:
    assert math.isnan(decode_rate([answer(1, 2, stream=0), answer(3, 4, stream=1)]))
    assert math.isnan(decode_rate([answer(1, 2, stream=0), answer(stream=1)]))
    assert math.isnan(decode_rate([]))


def test_rounds_are_summed_where_they_count_and_halved_where_they_time() -> None:
    rounds: list[Figures] = [
        figures([answer(first, first + 1, ended=10.0)], memory=size) for first, size in ((1, 5), (3, 9), (8, 7))
    ]
    all_of_them = middle(rounds)
    assert (all_of_them.tokens, all_of_them.requests, all_of_them.memory) == (12, 3, 9)
    assert all_of_them.rate == pytest.approx(12 / 30)
    assert all_of_them.first.p50 == 3
