"""Who holds which page, what rows cost, and into which parts they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.pages import (
    AHEAD,
    LONGEST_PART,
    SHORTEST_PART,
    SIZE,
    Pages,
    fit,
    needed,
    part_tokens,
    parts_of,
)
from mlxrpc_server.engine.room import Room
from mlxrpc_server.types import RowId


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40))
def test_no_page_is_anyones_twice_and_none_is_left_out(script: list[tuple[int, int]]) -> None:
    """A pair gives a row so many pages, or takes them back where there are none to give."""
    pages, rows = Pages(), {RowId(row) for row, _ in script}
    held: set[RowId] = set()
    for number, count in script:
        row = RowId(number)
        if count:
            pages.give(row, count)
            held.add(row)
        elif row in held:
            pages.take_back(row)
            held.remove(row)
        given_out = [page for one in rows & held for page in pages.of(one)]
        assert len(given_out) == len(set(given_out)) == pages.used
        assert pages.end == max(given_out, default=-1) + 1


def test_the_lowest_free_page_is_given_first() -> None:
    pages = Pages()
    for row in range(3):
        pages.give(RowId(row), 2)
    pages.take_back(RowId(0))
    pages.give(RowId(3), 3)
    assert list(pages.of(RowId(3))) == [0, 1, 6]


@given(st.integers(0, 10_000))
def test_a_row_has_room_for_some_steps_and_for_less_than_a_page_more(length: int) -> None:
    room = needed(length) * SIZE - length
    assert AHEAD <= room < AHEAD + SIZE


def test_rows_fit_by_whole_slabs_and_one_alone_always() -> None:
    one = needed(5)
    room = Room(rows=8, bytes=4 * one * 100)
    assert fit([5, 5], 100, 4 * one, room)
    assert not fit([5, 5], 100, 8 * one, room)
    assert fit([1_000_000], 100, 8 * one, room)


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [([160], 128), ([160] * 64, 256), ([2048] * 8, 640), ([32_000], 1024), ([160] * 120 + [8000], 512)],
)
def test_many_rows_are_cut_less_than_few(lengths: list[int], tokens: int) -> None:
    assert part_tokens(lengths, kv_heads=8) == tokens


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=50), st.integers(1, 64))
def test_rows_of_any_length_have_no_more_parts_than_others(lengths: list[int], kv_heads: int) -> None:
    tokens, parts = part_tokens(lengths, kv_heads), parts_of(len(lengths), kv_heads)
    assert tokens % SHORTEST_PART == 0
    assert sum(length // tokens + 1 for length in lengths) <= parts
    shorter = min(tokens - SHORTEST_PART, tokens * 8 // 9 // SHORTEST_PART * SHORTEST_PART)
    assert tokens <= LONGEST_PART or sum(length // shorter + 1 for length in lengths) > parts
