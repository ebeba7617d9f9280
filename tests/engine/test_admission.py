"""Who runs: judged by rows' lengths and their order alone, without a model."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.admission import Admission
from mlxrpc_server.engine.row import MOST_SETBACKS, Row
from tests.engine.running import row

ROOM = 40


def admission(*lengths: int, max_rows: int = 8, room: int = ROOM) -> Admission:
    rows = Admission(lambda each: len(each) < 2 or sum(each) <= room, max_rows)
    for number, length in enumerate(lengths):
        wait(rows, row(number, [1] * length))
    return rows


def wait(rows: Admission, one: Row) -> None:
    rows.arrive(one)
    rows.waiting.append(one)


def numbers(rows: list[Row]) -> list[int]:
    return [one.id for one in rows]


def test_rows_are_admitted_in_order_as_far_as_there_is_room() -> None:
    rows = admission(10, 10, 10, 10)
    rows.admit()
    assert numbers(rows.running) == [0, 1, 2]


def test_a_short_row_does_not_overtake_a_long_one() -> None:
    rows = admission(20, 30, 1)
    rows.admit()
    assert numbers(rows.running) == [0]


def test_so_many_rows_run_and_no_more() -> None:
    rows = admission(1, 1, 1, max_rows=2)
    rows.admit()
    assert numbers(rows.running) == [0, 1]


def test_the_youngest_is_one_too_many_and_waits_in_front() -> None:
    rows = admission(10, 10, 10, 15)
    rows.admit()
    rows.running[0].produced += [1] * 15
    youngest = rows.one_too_many()
    assert youngest is not None
    assert youngest.id == 2
    rows.send_back(youngest)
    assert rows.one_too_many() is None
    assert numbers(list(rows.waiting)) == [2, 3]


def test_a_suspect_runs_alone_and_before_all_others() -> None:
    rows = admission(1, 1, 1)
    rows.admit()
    suspect = rows.running[1]
    rows.send_back(suspect)
    suspect.setbacks = MOST_SETBACKS
    assert numbers(rows.unsuspected) == [0, 2]
    for one in rows.unsuspected:
        rows.send_back(one)
    rows.admit()
    assert rows.running == [suspect]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, ROOM - 1), min_size=1, max_size=12), st.integers(1, 5), st.randoms())
def test_whoever_comes_is_served_in_the_end(lengths: list[int], max_rows: int, chance: Random) -> None:
    """The oldest that runs never goes back, whatever happens to the others."""
    rows = admission(*lengths, max_rows=max_rows)
    served: list[int] = []
    while rows.everyone:
        while (youngest := rows.one_too_many()) is not None:
            rows.send_back(youngest)
        rows.admit()
        assert 0 < len(rows.running) <= max_rows
        for one in rows.running:
            one.produced += [1] * chance.randint(0, 1)
        oldest = min(rows.running, key=lambda one: one.arrival)
        if oldest.length >= ROOM or chance.random() < 0.5:
            rows.remove(oldest)
            served.append(oldest.id)
    assert sorted(served) == list(range(len(lengths)))
