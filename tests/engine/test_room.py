"""Shapes within a number of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.room import COLUMN_STEP, EMPTY, Room, Shape, tight

lengths = st.lists(st.integers(0, 5 * COLUMN_STEP), min_size=1, max_size=20)
rooms = st.builds(Room, rows=st.just(20), bytes=st.integers(0, 60 * COLUMN_STEP * 3))
CELL_BYTES = 3


def bytes_of(shape: Shape) -> int:
    return shape.cells * CELL_BYTES


@given(room=rooms, visits=st.lists(lengths, max_size=6))
def test_every_shape_holds_its_rows_within_the_bytes_and_twice_what_is_needed(
    room: Room, visits: list[list[int]]
) -> None:
    held = EMPTY
    for visit in visits:
        held = room.shape(held, visit, CELL_BYTES)
        need = tight(visit)
        assert need.rows <= held.rows <= max(2 * need.rows, 1)
        assert need.columns <= held.columns <= 2 * need.columns
        if room.fits(visit, CELL_BYTES) and len(visit) > 1:
            assert bytes_of(held) <= room.bytes
        assert held.columns % COLUMN_STEP == 0


@given(room=rooms, visit=lengths)
def test_rows_fit_where_their_smallest_shape_does(room: Room, visit: list[int]) -> None:
    assert room.fits(visit, CELL_BYTES) == (len(visit) == 1 or bytes_of(tight(visit)) <= room.bytes)


def test_rows_double_up_to_the_most_that_there_will_be() -> None:
    room, held, seen = Room(rows=6, bytes=1 << 40), EMPTY, []
    for rows in range(1, 7):
        held = room.shape(held, [1] * rows, CELL_BYTES)
        seen.append(held.rows)
    assert seen == [1, 2, 4, 4, 6, 6]


def test_rows_do_not_double_where_the_bytes_are_short() -> None:
    room = Room(rows=8, bytes=3 * COLUMN_STEP * CELL_BYTES)
    assert room.shape(Shape(2, COLUMN_STEP), [1, 1, 1], CELL_BYTES) == Shape(3, COLUMN_STEP)


def test_a_shape_shrinks_only_when_it_is_more_than_twice_too_large() -> None:
    room = Room(rows=8, bytes=1 << 40)
    held = Shape(8, 4 * COLUMN_STEP)
    assert room.shape(held, [2 * COLUMN_STEP] * 4, CELL_BYTES) == held
    assert room.shape(held, [COLUMN_STEP] * 4, CELL_BYTES) == Shape(8, COLUMN_STEP)
    assert room.shape(held, [2 * COLUMN_STEP] * 3, CELL_BYTES) == Shape(3, 4 * COLUMN_STEP)
