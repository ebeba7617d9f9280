"""Seconds and tokens: how many of a prompt a step may take."""

from __future__ import annotations

from mlxrpc_server.engine.pace import Pace


def measured(most: int = 2048) -> Pace:
    """A thousand tokens a second, and ten milliseconds for a step of the rows."""
    pace = Pace(most)
    pace.prefilled(1000, 1.0)
    pace.decoded(0.01)
    return pace


def test_before_anything_is_measured_chunks_are_short() -> None:
    assert Pace(2048).budget(beside_rows=False) == Pace(2048).budget(beside_rows=True) == Pace.UNMEASURED
    assert Pace(8).budget(beside_rows=False) == 8


def test_beside_rows_a_chunk_takes_little_longer_than_they_do() -> None:
    assert measured().budget(beside_rows=True) == 17
    assert measured().budget(beside_rows=False) == 500


def test_beside_slow_rows_a_chunk_is_no_longer_than_people_notice() -> None:
    pace = measured()
    for _ in range(50):
        pace.decoded(2.0)
    assert pace.budget(beside_rows=True) == 100


def test_beside_fast_rows_a_chunk_is_still_worth_its_step() -> None:
    pace = measured()
    for _ in range(50):
        pace.decoded(0.0001)
    pace.prefilled(10_000, 1.0)
    assert pace.budget(beside_rows=True) == 18


def test_chunks_are_never_longer_than_allowed_nor_so_short_that_they_never_end() -> None:
    fast, slow = measured(128), Pace(128)
    fast.prefilled(10_000, 0.001)
    assert fast.budget(beside_rows=False) == 128
    slow.prefilled(100, 1000.0)
    assert slow.budget(beside_rows=True) == Pace.FEWEST


def test_measures_that_say_nothing_leave_the_pace_as_it_was() -> None:
    pace = measured()
    pace.prefilled(3, 5.0)
    pace.prefilled(100, 0.0)
    pace.decoded(0.0)
    assert pace.budget(beside_rows=False) == 500
    assert pace.budget(beside_rows=True) == 17


def test_of_a_step_with_both_the_rows_are_taken_off() -> None:
    pace, parts = measured(), measured()
    pace.stepped(64, 0.11)
    parts.prefilled(64, 0.1)
    assert pace.budget(beside_rows=False) == parts.budget(beside_rows=False)


def test_a_step_without_a_prefill_measures_the_rows() -> None:
    pace, parts = measured(), measured()
    pace.stepped(0, 0.02)
    parts.decoded(0.02)
    assert pace.budget(beside_rows=True) == parts.budget(beside_rows=True)
