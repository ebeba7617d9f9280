"""How many tokens a long text has at least, told from its beginning.

It knows characters and counts; no tokenizer, no model.
"""

from __future__ import annotations

from collections.abc import Callable

PIECE = 64 * 1024
"""Characters that are encoded at a time: some milliseconds and megabytes."""

CUT = 256
"""Tokens of a piece that may be there for its two ends alone. Tokenizers that give a word up as unknown do so where it
has more than a hundred characters: what a cut leaves of one comes to fewer tokens than that."""

DOUBT = 2
"""Where nothing parts words, a cut can change how all that follows is put together. Half of what the pieces come to is
far below what that has ever been seen to change."""

LIKELY = 8
"""Characters for each token: with fewer a text may well fit, and is encoded once and whole."""


def is_suspicious(text: str, most: int) -> bool:
    """Whether the text is so long that it can hardly be `most` tokens."""
    return len(text) > max(PIECE, LIKELY * most)


def least(text: str, enough: int, count: Callable[[str], int]) -> int:
    """A number of tokens that the text certainly has; the text is looked at only until that is `enough`.

    Added tokens can swallow all spaces beside them: those at a piece's ends are not counted.
    """
    counted = 0
    for begin in range(0, len(text), PIECE):
        piece = text[begin : begin + PIECE].strip()
        counted += max(0, count(piece) - CUT)
        if counted >= DOUBT * enough:
            break
    return counted // DOUBT
