"""Shapes within a number of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.room import COLUMN_STEP, EMPTY, SHORT_STEP, Room, Shape, kind, tight, tight_cells

lengths = st.lists(st.integers(0, 5 * COLUMN_STEP), min_size=1, max_size=20)
rooms = st.builds(Room, rows=st.just(20), bytes=st.integers(0, 60 * COLUMN_STEP * 3))
CELL_BYTES = 3


def bytes_of(shape: Shape) -> int:
    return shape.cells * CELL_BYTES


@given(room=rooms, visits=st.lists(lengths, max_size=6))
def test_a_block_holds_its_rows_within_the_bytes_and_twice_what_is_needed(room: Room, visits: list[list[int]]) -> None:
    held = EMPTY
    for visit in visits:
        held = room.shape(held, visit, 0, CELL_BYTES)
        need = tight(visit)
        assert need.rows <= held.rows <= 2 * need.rows
        assert need.columns <= held.columns <= 2 * need.columns
        if bytes_of(need) <= room.bytes:
            assert bytes_of(held) <= room.bytes


@given(room=rooms, visit=lengths)
def test_rows_fit_where_their_smallest_blocks_do(room: Room, visit: list[int]) -> None:
    assert room.fits(visit, CELL_BYTES) == (len(visit) == 1 or tight_cells(visit) * CELL_BYTES <= room.bytes)


@given(visit=lengths)
def test_blocks_waste_less_than_half_beside_a_step_for_each_row(visit: list[int]) -> None:
    steps = sum(COLUMN_STEP if length > COLUMN_STEP else 2 * SHORT_STEP for length in visit)
    assert sum(visit) <= tight_cells(visit) <= 2 * sum(visit) + steps


@given(length=st.integers(0, 100_000))
def test_rows_of_a_block_differ_by_less_than_a_factor_of_two(length: int) -> None:
    assert kind(length) <= kind(length + 1) <= kind(length) + 1
    assert length <= 2 * SHORT_STEP or kind(2 * length) == kind(length) + 1


def test_rows_grow_by_half_up_to_the_most_that_there_will_be() -> None:
    room, held, seen = Room(rows=8, bytes=1 << 40), EMPTY, []
    for rows in range(1, 9):
        held = room.shape(held, [1] * rows, 0, CELL_BYTES)
        seen.append(held.rows)
    assert seen == [1, 2, 3, 4, 6, 6, 8, 8]


def test_rows_do_not_grow_by_more_than_they_need_where_the_bytes_are_short() -> None:
    room = Room(rows=8, bytes=4 * SHORT_STEP * CELL_BYTES)
    held = Shape(2, SHORT_STEP)
    assert room.shape(held, [1, 1, 1], 0, CELL_BYTES) == Shape(3, SHORT_STEP)
    assert room.shape(Shape(4, SHORT_STEP), [1] * 5, 0, CELL_BYTES) == Shape(5, SHORT_STEP)
    assert room.shape(Shape(3, SHORT_STEP), [1] * 3, 2 * SHORT_STEP, CELL_BYTES) == Shape(3, SHORT_STEP)


def test_a_block_shrinks_only_when_it_is_more_than_twice_too_large() -> None:
    room = Room(rows=8, bytes=1 << 40)
    held = Shape(8, 4 * COLUMN_STEP)
    assert room.shape(held, [2 * COLUMN_STEP] * 4, 0, CELL_BYTES) == held
    assert room.shape(held, [COLUMN_STEP] * 4, 0, CELL_BYTES) == Shape(8, COLUMN_STEP)
    assert room.shape(held, [2 * COLUMN_STEP] * 3, 0, CELL_BYTES) == Shape(3, 4 * COLUMN_STEP)
