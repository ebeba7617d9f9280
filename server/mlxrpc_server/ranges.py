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
    "min_tokens_to_keep": Range(1, math.inf),
    "xtc_probability": Range(0, 1),
    "xtc_threshold": Range(0, 0.5),
    "repetition_penalty": Range(0, 100, above=True),
    "repetition_context_size": Range(0, math.inf),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
}
BIAS = Range(-100, 100)

OFFERED = ("temperature", "top_p", "top_k", "min_p")

NOT_OFFERED = {
    "min_tokens_to_keep": 1,
    "xtc_probability": 0,
    "xtc_threshold": 0.1,
    "repetition_penalty": 1,
    "repetition_context_size": 20,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Settings that no engine here honours yet, each with the value that means what unset means: that one is always accepted."""


def from_file(name: str, value: Any) -> float:
    """A setting as JSON or TOML has it; raises ValueError with the end of a sentence that the name begins."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    if value not in SAMPLING[name]:
        raise ValueError(f"must be {SAMPLING[name]}")
    if name != "top_k":
        return float(value)
    if value != int(value):
        raise ValueError("must be a whole number")
    return int(value)
