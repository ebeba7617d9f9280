from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.arrivals import poisson


@given(rate=st.floats(0.1, 50), seconds=st.floats(0, 20), seed=st.integers(0, 2**40))
def test_arrivals_are_in_order_and_within_the_time(rate: float, seconds: float, seed: int) -> None:
    times = poisson(rate, seconds, seed)
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)


def test_one_seed_gives_one_row_of_arrivals() -> None:
    assert poisson(4, 10, seed=7) == poisson(4, 10, seed=7)
    assert poisson(4, 10, seed=7) != poisson(4, 10, seed=8)


def test_arrivals_come_at_the_rate_and_as_irregularly_as_chance() -> None:
    times = poisson(50, 400, seed=1)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert spread == pytest.approx(1 / 50, rel=0.05)
