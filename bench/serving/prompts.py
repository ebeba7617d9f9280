"""Prompts of an exact number of tokens, the same for the same seed. Knows a tokenizer, and no model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from serving.exchange import Ask, Sampling

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
TRIES = 50


@dataclass(frozen=True, slots=True)
class Prompts:
    tokenizer: Tokenizer

    @classmethod
    def of(cls, model: Path) -> Prompts:
        return cls(Tokenizer.from_file(str(model / "tokenizer.json")))

    def ask(self, tokens: int, max_tokens: int, seed: int, sampling: Sampling) -> Ask:
        """No two seeds begin alike, so that no server's prefix cache helps it."""
        draw, count = random.Random(seed), tokens // 4 + 1
        for _ in range(TRIES):
            ids = self._ids(words(draw, count))[:tokens]
            if len(ids) < tokens:
                count *= 2
            elif self._ids(text := self.tokenizer.decode(ids)) == ids:
                return Ask(text, tuple(ids), max_tokens, sampling)
        raise ValueError(f"no text of exactly {tokens} tokens was found in {TRIES} tries")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def words(draw: random.Random, count: int) -> str:
    """Made-up ones."""
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(count))
