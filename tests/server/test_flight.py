"""A request's record: what it tells, and what a new worker is told of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mlxrpc_server.engine import wire
from mlxrpc_server.errors import Unavailable
from mlxrpc_server.flight import Flight, News, Orders
from mlxrpc_server.types import Cache, LogProbs, RowId, Sampling

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=5)
ORDERS = Orders(prompt=(1, 2, 3), sampling=SAMPLING, max_tokens=9, stop_ids=frozenset({8, 7}))
NOW = 100.0
DIED = Unavailable("ENGINE_DIED", "it died", 1.0)


def flight(*produced: int) -> Flight:
    return Flight(RowId(4), ORDERS, produced, NOW)


def test_its_submission_is_all_that_a_worker_needs() -> None:
    expected = wire.Submit(RowId(4), [1, 2, 3], [], SAMPLING, 9, [7, 8])
    assert flight().submission() == expected


def test_its_submission_says_what_is_asked_of_the_tokens() -> None:
    one = Flight(RowId(4), replace(ORDERS, logprobs=0, min_tokens=3), (), NOW)
    assert (one.submission().logprobs, one.submission().min_tokens) == (0, 3)


def test_its_submission_says_whose_beginnings_it_may_share() -> None:
    one = Flight(RowId(4), replace(ORDERS, cache=Cache("a", bypass=True)), (), NOW)
    assert (one.submission().tenant, one.submission().bypass) == ("a", True)


def test_what_was_known_when_it_first_began_is_told_and_need_not_be_waited_for() -> None:
    one = flight()
    assert (one.cached, one.to_prefill) == (None, 3)
    one.begin_behind(2)
    assert (one.cached, one.to_prefill) == (2, 1)
    one.submission()
    one.begin_behind(0)
    assert (one.cached, one.to_prefill) == (2, 3)


def test_log_probabilities_wait_until_they_are_told_through_a_new_submission_too() -> None:
    one = flight(50)
    first, second = LogProbs(-1.0), LogProbs(-2.0, (3,), (-0.5,))
    one.append(60, NOW, first)
    one.submission()
    one.append(61, NOW, second)
    assert list(one.logprobs) == [first, second]


def test_a_later_submission_carries_the_tokens_that_it_has() -> None:
    one = flight(50)
    one.append(60, NOW)
    assert one.submission().produced == [50, 60]
    one.append(70, NOW)
    assert one.submission().produced == [50, 60, 70]


async def test_news_tells_each_token_once_and_none_that_it_was_resumed_with() -> None:
    one = flight(50)
    one.append(60, NOW)
    one.append(61, NOW)
    assert await one.news() == News([60, 61], 0, None)
    one.append(62, NOW)
    assert await one.news() == News([62], 0, None)


async def test_news_waits_until_there_is_any() -> None:
    one = flight()
    waiting = asyncio.create_task(one.news())
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    one.advance(2, NOW)
    assert await waiting == News([], 2, None)


async def test_the_last_token_and_the_end_are_told_together() -> None:
    one = flight()
    one.append(60, NOW)
    one.leave(wire.Left.LENGTH)
    assert await one.news() == News([60], 0, wire.Left.LENGTH)
    assert await one.news() == News([], 0, wire.Left.LENGTH)
    assert one.ended


async def test_tokens_before_an_error_are_told_before_it_is_raised() -> None:
    one = flight()
    one.append(60, NOW)
    one.fail(DIED)
    assert await one.news() == News([60], 0, None)
    for _ in range(2):
        with pytest.raises(Unavailable, match="it died"):
            await one.news()


async def test_a_flight_that_has_left_cannot_fail() -> None:
    one = flight()
    one.leave(wire.Left.LENGTH)
    one.fail(DIED)
    assert (await one.news()).left is wire.Left.LENGTH


async def test_the_first_error_stays() -> None:
    one = flight()
    one.fail(DIED)
    one.fail(Unavailable("DRAINING", "later", 1.0))
    with pytest.raises(Unavailable, match="it died"):
        await one.news()


async def test_what_never_began_is_refused_before_anything_is_told() -> None:
    one = flight()
    one.fail(DIED)
    with pytest.raises(Unavailable):
        await one.begun()


async def test_what_began_is_told_to_its_error() -> None:
    one = flight()
    one.advance(1, NOW)
    one.fail(DIED)
    await one.begun()
    with pytest.raises(Unavailable):
        await one.news()


async def test_waiting_for_its_beginning_takes_no_news_away() -> None:
    one = flight()
    one.append(60, NOW)
    await one.begun()
    assert (await one.news()).tokens == [60]


def test_deaths_count_until_a_token_is_gained() -> None:
    one = flight()
    one.submission()
    assert [one.crashed(), one.crashed()] == [1, 2]
    one.submission()
    one.append(60, NOW)
    assert one.crashed() == 0
    one.submission()
    assert one.crashed() == 1


def test_progress_in_prefill_is_no_token() -> None:
    one = flight()
    one.submission()
    one.advance(3, NOW)
    assert one.crashed() == 1


def test_what_stands_before_the_next_token_is_the_rest_of_the_prompt() -> None:
    one = flight()
    one.submission()
    assert one.to_prefill == 3
    one.advance(2, NOW)
    assert one.to_prefill == 1
    one.append(60, NOW)
    assert one.to_prefill == 0
    one.submission()
    assert one.to_prefill == 3


def test_its_times_are_taken_once() -> None:
    one = flight()
    one.advance(2, 103.0, seconds=1.0)
    one.append(60, 104.0)
    one.append(61, 106.0)
    assert (one.submitted_at, one.began_at, one.first_token_at, one.last_token_at) == (100.0, 102.0, 104.0, 106.0)


def test_it_began_no_earlier_than_it_was_submitted() -> None:
    one = flight()
    one.advance(2, 104.0, seconds=50.0)
    assert one.began_at == 100.0
