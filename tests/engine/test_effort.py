"""The account of what following a grammar costs, by a clock that is set by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.effort import MOST, SHARE, Effort
from tests.engine.running import HandClock


def spent(clock: HandClock, effort: Effort, seconds: float) -> Effort:
    clock.tick = seconds
    effort.token()
    effort.paid(lambda: None)
    return effort


@given(st.lists(st.floats(0, SHARE), max_size=2000))
def test_a_text_of_any_length_may_take_its_share(each: list[float]) -> None:
    clock = HandClock()
    effort = Effort(clock)
    assert not any(spent(clock, effort, seconds).too_much for seconds in each)


def test_what_is_taken_beyond_the_share_adds_up() -> None:
    clock = HandClock()
    effort = Effort(clock)
    tokens = 1
    while not spent(clock, effort, 6 * SHARE).too_much:
        tokens += 1
    assert tokens == pytest.approx(MOST / (5 * SHARE), abs=2)


def test_what_is_owed_is_paid_back_by_cheap_tokens() -> None:
    clock = HandClock()
    effort = spent(clock, Effort(clock), MOST + 10 * SHARE)
    assert effort.too_much
    for _ in range(12):
        spent(clock, effort, 0)
    assert not effort.too_much


def test_nothing_is_saved_up() -> None:
    clock = HandClock()
    effort = Effort(clock)
    for _ in range(1000):
        spent(clock, effort, 0)
    assert spent(clock, effort, MOST + SHARE).too_much


def test_the_first_that_takes_long_is_only_watched_for_it() -> None:
    clock = HandClock(MOST + 2 * SHARE)
    effort = Effort(clock, clock)
    effort.of(lambda: None)
    assert effort.watched
    assert not effort.too_much
    effort.of(lambda: None)
    assert effort.too_much


def test_who_is_quick_is_asked_by_a_glance_alone() -> None:
    dear, glance = HandClock(1), HandClock(SHARE / 2)
    effort = Effort(dear, glance)
    for _ in range(100):
        effort.of(lambda: None)
    assert not effort.watched
    assert dear() == 1
