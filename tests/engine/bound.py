"""Rows under constraints, over a small model and a vocabulary of single characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxrpc_server.constraints import grammar
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.constraint import Grammars, Guide
from mlxrpc_server.engine.effort import Effort
from mlxrpc_server.engine.masks import Masks
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import Constraint, ConstraintKind, Sampling
from tests.engine import tiny
from tests.engine.running import HandClock, Run, row

MODEL = tiny.attention()

END = 94
THINK, ANSWER = 92, 93
SPELLING = [bytes([code]) for code in range(0x20, 0x7F) if chr(code) not in "@`~"] + [b""] * 3
"""One less than the logits: models are often padded. The last three say nothing."""

GRAMMARS = Grammars(SPELLING)


def regex(expression: str) -> wire.Constraint:
    return wire.Constraint(grammar(Constraint(ConstraintKind.REGEX, expression)))


def begun(bound: wire.Constraint, produced: Sequence[int] = (), grammars: Grammars = GRAMMARS) -> Guide:
    return grammars.begin(bound, produced).result()


def bound_row(
    number: int, bound: wire.Constraint, produced: Sequence[int] = (), grammars: Grammars = GRAMMARS, **settings: Any
) -> Row:
    given: dict[str, Any] = {"max_tokens": 40, "stop_ids": [END], "sampling": warm(number)} | settings
    return row(number, [3, 4, 5], produced=produced, guide=begun(bound, produced, grammars), **given)


def costly(seconds: float) -> Grammars:
    """All that is done with one of these takes so long, by its clock."""
    clock = HandClock(seconds)
    return Grammars(SPELLING, lambda: Effort(clock, clock))


def warm(seed: int) -> Sampling:
    return Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=seed)


def run(*rows: Row, **settings: Any) -> Run:
    batch = Run(MODEL, **settings)
    for one in rows:
        batch.batch.submit(one)
    return batch.to_end()


def spelled(tokens: Sequence[int]) -> str:
    return b"".join(SPELLING[token] for token in tokens).decode()


def ids(text: str) -> list[int]:
    return [SPELLING.index(character.encode()) for character in text]


def allowed(masks: Masks, width: int = tiny.VOCABULARY) -> set[int]:
    logits = masks.apply(mx.zeros((1, width)))
    return {token for token, logit in enumerate(np.array(logits[0])) if logit == 0}
