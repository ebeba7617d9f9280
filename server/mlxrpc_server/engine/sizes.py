"""The sizes that arrays come in, where every new one is dear.

On CUDA a prefill of a size that has not been there before takes some 60 ms longer than the next one like it, most of it
cuDNN's planning of the attention, and a decoding step is traced anew for each number of rows. So prompts are padded there to
one of few widths, and rows to one of few numbers; the chunks of a long prompt are all alike, so that the next one begins at
few places. Elsewhere each comes as it is. Arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NARROWEST = 16
NARROWEST_REST = 512
LEAST_PAGES = 1024
"""Of a row, as many as nearly all have: a wider table is another size of step."""

LONGEST = 2048
"""Tokens of a row's chunk: where attention is not fused, its memory grows with their square."""


def power_up(count: int) -> int:
    return 1 << (count - 1).bit_length()


def half_power_up(count: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = power_up(count)
    return power // 4 * 3 if count <= power // 4 * 3 else power


def wide(tokens: int) -> int:
    """A quarter more at most, where it is not narrow."""
    step = max(NARROWEST, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step


def rest(tokens: int) -> int:
    return max(NARROWEST_REST, power_up(tokens))


def whole(_tokens: int) -> int:
    return LONGEST


def many(pages: int) -> int:
    return max(LEAST_PAGES, power_up(pages))


def as_it_is(count: int) -> int:
    return count


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a number that is not 0 becomes."""

    rows: Callable[[int], int]
    """That are prefilled together."""
    width: Callable[[int], int]
    """Of a prompt's last chunk, where it is the first one too."""
    rest: Callable[[int], int]
    """Of a last chunk behind others, or behind what was kept."""
    chunk: Callable[[int], int]
    """Of the chunks before it, where a step has time for so many tokens; they may be longer: then steps share one."""
    decoding: Callable[[int], int]
    """Rows that decode together."""
    pages: Callable[[int], int]
    """Of a row in the table that a step reads."""
    beginning: int
    """A row begins behind a multiple of so many tokens of what is kept: to compute the rest again is cheaper."""


EXACT = Sizes(as_it_is, as_it_is, as_it_is, as_it_is, as_it_is, as_it_is, 1)
FEW = Sizes(power_up, wide, rest, whole, half_power_up, many, 256)
