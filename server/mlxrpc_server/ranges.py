"""What each sampling setting may be: one table for requests, for the operator's configuration and for models' own files.

It knows the contract's numbers, nothing of who chose a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    above: bool = False
    """Whether `low` itself is outside."""

    def __contains__(self, value: float) -> bool:
        """Never true of NaN."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        high = f"{self.high:,}"
        return f"above {self.low:g} and at most {high}" if self.above else f"{self.low:g} to {high}"


SAMPLING = {
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(0, 2**32 - 1),
    "min_p": Range(0, 1),
    "min_tokens_to_keep": Range(1, 2**32 - 1),
    "xtc_probability": Range(0, 1),
    "xtc_threshold": Range(0, 0.5),
    "repetition_penalty": Range(0, 100, above=True),
    "repetition_context_size": Range(0, 2**32 - 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
}
BIAS = Range(-100, 100)
MOST_BIASES = 1024

_WHOLE = ("top_k", "repetition_context_size", "min_tokens_to_keep")


def from_file(name: str, value: Any) -> float:
    """A setting as JSON or TOML has it; raises ValueError with the end of a sentence that the name begins."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    if value not in SAMPLING[name]:
        raise ValueError(f"must be {SAMPLING[name]}")
    if name not in _WHOLE:
        return float(value)
    if value != int(value):
        raise ValueError("must be a whole number")
    return int(value)


def biases_from_file(table: Any) -> tuple[tuple[int, float], ...]:
    """Token ids, which TOML has as keys and so as text, and their biases."""
    if not isinstance(table, dict) or len(table) > MOST_BIASES:
        raise ValueError(f"must be a table of at most {MOST_BIASES:,} token ids")
    return tuple(sorted((_token(key), _bias(value)) for key, value in table.items()))


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise ValueError(f"must have token ids for keys, not {key!r}")
    return int(key)


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in BIAS:
        raise ValueError(f"must have numbers, {BIAS}")
    return float(value)
