"""Tables as Markdown, readable as plain text too. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first two columns to the left, the others, which are numbers, to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = [("-" * width if left(column) else "-" * (width - 1) + ":") for column, width in enumerate(widths)]
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(_cells(line, widths)) + " |" for line in lines)


def left(column: int) -> bool:
    return column < 2


def _cells(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if left(column) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def number(value: float | None, digits: int = 0) -> str:
    """With a dash for what was not measured."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    return number(value, 1 if value is not None and value < 100 else 0)


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return number(1000 * seconds, 1 if seconds < 0.1 else 0)


def times(part: float, whole: float | None) -> str:
    """How many times the one is the other."""
    if not whole or math.isnan(whole) or math.isnan(part):
        return "-"
    return number(part / whole, 2)
