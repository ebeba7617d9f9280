"""Numbers that are written into memory which is used again and again."""

from __future__ import annotations

from array import array

import mlx.core as mx
import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st

from mlxrpc_server.engine.given import SHARES, Given

LENGTH = 512
MOST = LENGTH // SHARES


@for_any(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2 * MOST), max_size=60))
def test_each_is_what_was_given_however_often_the_memory_is_used(everything: list[list[int]]) -> None:
    give = Given(LENGTH)
    for numbers in everything:
        assert give(numbers, mx.int32).tolist() == numbers


def test_what_two_steps_give_may_be_under_way_at_once() -> None:
    give, under_way = Given(LENGTH), 8
    for first in range(0, 100, under_way):
        these = [give(range(first + place, first + place + MOST), mx.int32) for place in range(under_way)]
        assert [one[0].item() for one in these] == list(range(first, first + under_way))


def test_what_was_copied_is_not_written_over() -> None:
    give = Given(LENGTH)
    first = give(range(MOST), mx.int32)
    mx.eval(first)
    for _ in range(2 * SHARES):
        mx.eval(give([7] * MOST, mx.int32))
    assert first.tolist() == list(range(MOST))


def test_very_many_are_an_array_of_their_own() -> None:
    give = Given(LENGTH)
    first = give(range(MOST), mx.int32)
    assert give([7] * LENGTH, mx.int32).tolist() == [7] * LENGTH
    assert first.tolist() == list(range(MOST))


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [([0, 2**32 - 1], mx.uint32), (array("Q", [2**48, 7]), mx.uint64), ([0, -1], mx.int32), ([True, False], mx.bool_)],
)
def test_numbers_of_all_kinds_come_through(numbers: list[int], dtype: mx.Dtype) -> None:
    one = Given(LENGTH)(numbers, dtype)
    assert one.dtype == dtype
    assert one.tolist() == list(numbers)
