"""Seconds and tokens: how many of a prompt a step may take."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.pace import MOST_PARTS, Pace

STEP = 0.004


class Costs(NamedTuple):
    """Seconds of each chunk, and of each token of it."""

    fixed: float
    per_token: float

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens


class Device:
    """Something with such costs, and a pace that has learnt them."""

    def __init__(self, costs: Costs, most: int = 8192) -> None:
        self.pace = Pace(most)
        self.seconds = costs.seconds

    def learn(self, decoding: int, joining: int, times: int = 60) -> int:
        """The budget that it settles at."""
        for _ in range(times):
            self.pace.decoded(STEP)
            tokens = self.pace.budget(decoding=decoding, joining=joining)
            self.pace.prefilled(tokens, self.seconds(tokens))
        return self.pace.budget(decoding=decoding, joining=joining)


GPU = Costs(0.003, 0.00001)
SLOW_GPU = Costs(0.012, 0.00001)
CPU = Costs(0.001, 0.0002)
devices = pytest.mark.parametrize("costs", [GPU, SLOW_GPU, CPU], ids=["GPU", "slow GPU", "CPU"])


def measured(most: int) -> Pace:
    """One that has seen a step and a short chunk."""
    pace = Pace(most)
    pace.decoded(0.01)
    pace.prefilled(32, 0.05)
    return pace


def test_before_anything_is_measured_chunks_are_short() -> None:
    assert Pace(2048).budget(decoding=0, joining=1) == Pace(2048).budget(decoding=3, joining=1) == Pace.UNMEASURED
    assert Pace(8).budget(decoding=0, joining=1) == 8


@pytest.mark.parametrize("costs", [GPU, CPU], ids=["GPU", "CPU"])
def test_beside_rows_a_step_takes_less_than_three_of_theirs(costs: Costs) -> None:
    device = Device(costs)
    chunk = device.seconds(device.learn(decoding=16, joining=1))
    assert 0.5 * STEP < chunk < 2 * STEP


def test_where_every_chunk_takes_long_it_is_worth_its_time() -> None:
    """Sixteen tokens would take nearly as long as five hundred."""
    device = Device(SLOW_GPU)
    tokens = device.learn(decoding=16, joining=1)
    assert tokens > 300
    assert device.seconds(tokens) < 2 * device.seconds(0)


@devices
def test_alone_a_chunk_takes_as_long_as_a_cancel_may_wait(costs: Costs) -> None:
    device = Device(costs)
    tokens = device.learn(decoding=0, joining=1)
    assert tokens == 8192 or 0.3 * Pace.SECONDS_ALONE < device.seconds(tokens) < 1.2 * Pace.SECONDS_ALONE


@devices
def test_the_more_rows_wait_to_begin_the_longer_others_wait_for_them(costs: Costs) -> None:
    few, many = Device(costs), Device(costs)
    assert many.learn(decoding=2, joining=14) > few.learn(decoding=2, joining=1)
    assert many.seconds(many.learn(decoding=2, joining=14)) < 2 * Pace.MOST_SECONDS


@given(
    fixed=st.floats(1e-5, 0.1),
    per_token=st.floats(1e-7, 0.01),
    decoding=st.integers(0, 128),
    joining=st.integers(1, 128),
    most=st.integers(1, 8192),
)
def test_a_chunk_is_never_longer_than_allowed_nor_so_short_that_it_never_ends(
    fixed: float, per_token: float, decoding: int, joining: int, most: int
) -> None:
    device = Device(Costs(fixed, per_token), most)
    assert min(Pace.FEWEST, most) <= device.learn(decoding, joining, times=8) <= most


def test_a_chunk_is_at_most_twice_as_long_as_any_before_it() -> None:
    pace = Pace(8192)
    pace.prefilled(100, 0.001)
    assert pace.budget(decoding=0, joining=1) == 200


def test_however_many_short_chunks_come_none_behind_them_is_long() -> None:
    device = Device(Costs(0.001, 0.002))
    device.learn(decoding=0, joining=1)
    budgets = [device.learn(decoding=16, joining=1, times=1) for _ in range(200)]
    assert set(budgets[-100:]) >= {Pace.FEWEST}
    assert max(budgets[20:]) <= 4 * Pace.FEWEST


def test_measures_that_say_nothing_leave_the_pace_as_it_was() -> None:
    pace = Pace(2048)
    pace.prefilled(3, 5.0)
    pace.prefilled(100, 0.0)
    pace.decoded(0.0)
    assert pace.budget(decoding=1, joining=1) == Pace.UNMEASURED


def test_of_a_step_with_both_the_rows_are_taken_off() -> None:
    whole, parts = measured(2048), measured(2048)
    whole.stepped(1024, 0.41)
    parts.prefilled(1024, 0.4)
    assert whole.budget(decoding=0, joining=1) == parts.budget(decoding=0, joining=1) < 2 * 1024


def test_another_pass_costs_the_tokens_that_its_time_is_worth() -> None:
    device = Device(GPU)
    device.learn(decoding=0, joining=1)
    assert device.pace.overhead == pytest.approx(GPU.fixed / GPU.per_token, rel=0.3)


@devices
def test_steps_that_share_a_chunk_take_no_longer_than_they_may(costs: Costs) -> None:
    device = Device(costs)
    device.learn(decoding=16, joining=1)
    crowd = {"decoding": 16, "joining": 1}
    tokens = device.pace.budget(**crowd, parts=MOST_PARTS)
    parts = device.pace.parts(tokens, **crowd)
    assert tokens >= device.pace.budget(**crowd)
    assert parts == MOST_PARTS or device.seconds(tokens) / parts < 2 * STEP


def test_a_chunk_whose_cost_nobody_knows_is_not_shared() -> None:
    assert Pace(2048).parts(64, decoding=3, joining=1) == 1


def test_what_is_cancelled_half_way_is_not_charged_to_the_next() -> None:
    cancelled, fresh = measured(8192), measured(8192)
    cancelled.stepped(0, 0.5)
    for pace in (cancelled, fresh):
        pace.stepped(None, 0.01)
        pace.stepped(1024, 0.41)
    assert cancelled.budget(decoding=0, joining=1) == fresh.budget(decoding=0, joining=1) < 2 * 1024


def test_what_a_shared_chunk_takes_is_what_its_steps_took_longer() -> None:
    shared, whole = measured(8192), measured(8192)
    for _ in range(2):
        for tokens in (0, 0, 1024):
            shared.stepped(tokens, 0.14)
        whole.prefilled(1024, 0.39)
    assert shared.budget(decoding=0, joining=1) == whole.budget(decoding=0, joining=1) < 2 * 1024
    assert shared.parts(64, decoding=9, joining=1) == whole.parts(64, decoding=9, joining=1)
