"""Numbers that are written into memory which is used again and again."""

from __future__ import annotations

from array import array

import mlx.core as mx
import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st

from mlxrpc_server.engine.given import MOST, Given, given

LENGTH = 64


@for_any(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=LENGTH // 4), max_size=30))
def test_each_is_what_was_given_however_often_the_memory_is_used(everything: list[list[int]]) -> None:
    give = Given(LENGTH)
    for numbers in everything:
        assert give(numbers, mx.int32).tolist() == numbers


def test_some_are_under_way_at_once() -> None:
    give = Given(LENGTH)
    for first in range(0, 40, 4):
        three = [give(range(first + place, first + place + 16), mx.int32) for place in range(3)]
        assert [one[0].item() for one in three] == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [([0, 2**32 - 1], mx.uint32), (array("Q", [2**48, 7]), mx.uint64), ([0, -1], mx.int32), ([True, False], mx.bool_)],
)
def test_numbers_of_all_kinds_come_through(numbers: list[int], dtype: mx.Dtype) -> None:
    for one in (given(numbers, dtype), Given(LENGTH)(numbers, dtype)):
        assert one.dtype == dtype
        assert one.tolist() == list(numbers)


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_none_and_very_many_are_given_too(count: int) -> None:
    assert given([3] * count, mx.int32).tolist() == [3] * count
