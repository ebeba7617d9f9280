from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.table import milliseconds, number, table, times

WORD = st.text(st.characters(categories=["L", "N"]), max_size=9)


@given(rows=st.lists(st.tuples(WORD, WORD, WORD), max_size=5))
def test_every_line_of_a_table_has_the_same_width(rows: list[tuple[str, str, str]]) -> None:
    lines = table(("name", "of", "number"), rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(rows)


def test_numbers_stand_to_the_right() -> None:
    assert table(("a", "b", "tokens"), [("x", "y", "7")]).splitlines()[-1] == "| x   | y   |      7 |"


def test_what_was_not_measured_is_a_dash() -> None:
    nan = float("nan")
    assert [number(None), number(nan), milliseconds(None), times(nan, 2), times(1, None), times(1, 0)] == ["-"] * 6


def test_numbers_are_short() -> None:
    assert number(12345.6) == "12,346"
    assert milliseconds(0.0123) == "12.3"
    assert milliseconds(1.5) == "1,500"
    assert times(3, 2) == "1.50"
