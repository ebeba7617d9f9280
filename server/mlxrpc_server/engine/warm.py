"""Runs made-up rows through a model's layout, so that no request waits for what a device compiles at its first use.

Knows which shapes serving meets: few rows and many, short prompts together and long ones in chunks, greedy rows and
rows with every filter, with log-probabilities and without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

LONG, SHORT = 600, 40
TOKENS = 3
LOGPROBS = 5
SAMPLINGS = (
    Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=1),
    Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0),
    Sampling(temperature=1.0, top_p=1.0, top_k=40, min_p=0.05, seed=2),
    Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=3, repetition_penalty=1.1, presence_penalty=0.1),
)


def warm(model: Any, kv: KV, *, max_rows: int, prefill_tokens: int) -> None:
    """Leaves the layout empty."""
    for rows in row_counts(max_rows):
        batch = Batch(model, kv, max_rows=max_rows, prefill_tokens=prefill_tokens, clock=time.perf_counter)
        for number in range(rows):
            batch.submit(made_up(number))
        while not batch.idle:
            batch.step()


def made_up(number: int) -> Row:
    """From ids that every vocabulary has."""
    length = SHORT + number % 7 if number else LONG
    return Row(
        id=RowId(number),
        prompt=[(7 * number + 3 * place) % 64 for place in range(length)],
        produced=[],
        sampling=SAMPLINGS[number % len(SAMPLINGS)],
        max_tokens=TOKENS,
        stop_ids=frozenset({0}),
        logprobs=LOGPROBS if number % 2 else -1,
        min_tokens=TOKENS,
    )


def row_counts(most: int) -> Iterator[int]:
    """Every power of two, since products are computed in another way for few rows than for many."""
    rows = 1
    while rows < most:
        yield rows
        rows *= 2
    yield most
