"""One question with its answer, and what a skill is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo.conversation import Schema, Turn


@dataclass(frozen=True, slots=True)
class Exchange:
    turns: tuple[Turn, ...]
    tools: tuple[Schema, ...] = ()
    words: tuple[str, ...] = ()
    """For stories: what has to occur in them."""


Compose = Callable[[Random, bool | None], Exchange]
"""Makes an exchange that is held out, or is not, or (None) either."""


def exchange(question: str, answer: str, reasoning: str) -> Exchange:
    return Exchange((Turn("user", question), Turn("assistant", answer, reasoning)))
