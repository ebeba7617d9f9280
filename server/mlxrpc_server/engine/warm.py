"""Runs made-up rows through the batch that will serve, so that no request waits for what a device compiles at its first use.

Knows which sizes serving meets: prompts of every width alone, short ones together, long ones in chunks, alone and beside
rows that decode, every number of those, for as many steps as make a step compiled; greedy rows and rows with every filter,
with log-probabilities and without. The batch has measured by then how long a step and a prompt take.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.often import OFTEN
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sizes import FEW, LONGEST, Sizes, power_up
from mlxrpc_server.types import RowId, Sampling

log = logging.getLogger(__name__)

LONG, SHORT = 600, 40
TOKENS = OFTEN + 16
LOGPROBS = 5
SAMPLINGS = (
    Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=1),
    Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0),
    Sampling(temperature=1.0, top_p=1.0, top_k=40, min_p=0.05, seed=2),
    Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=3, repetition_penalty=1.1, presence_penalty=0.1),
)

WIDEST_TOGETHER = 256
MOST_TOGETHER = 4096
"""Tokens of rows that are prefilled together."""
LONG_PROMPT = 4 * LONGEST
BESIDE, BESIDE_TOKENS = 16, 128
"""Rows that decode while a long prompt comes, and how many tokens each."""


def warmed(make: Callable[[], Batch], model: Any, kv: KV, *, max_rows: int) -> Batch:
    """One to serve with. A device that is too small for all of it serves all the same: the layout is empty in any case."""
    begun, batch = time.perf_counter(), make()
    try:
        warm(batch, model, kv, max_rows=max_rows)
    except Exception:  # whatever MLX and a model's own code raise: memory, most of all
        log.warning("the warm-up failed: requests will wait for what it lacks", exc_info=True)
        kv.clear()
        mx.clear_cache()
        return make()
    log.info("what requests will meet has run once", extra={"seconds": round(time.perf_counter() - begun, 3)})
    return batch


def warm(batch: Batch, model: Any, kv: KV, *, max_rows: int) -> None:
    """Leaves the layout empty."""
    if kv.sizes is FEW:
        for rows, widths in prefills(max_rows):
            _prefill(model, kv, rows, widths)
    for rows in row_counts(kv.sizes, max_rows):
        for number in range(rows):
            batch.submit(made_up(number, LONG if rows == 1 else SHORT + number % 7))
        _to_end(batch)
    if kv.sizes is FEW and max_rows > 1:
        for _ in range(2):
            _long_beside(batch, min(BESIDE, max_rows - 1))


def _to_end(batch: Batch) -> None:
    while not batch.idle:
        batch.step()


def _long_beside(batch: Batch, rows: int) -> None:
    """A long prompt beside rows that decode: never is more under way at once, and never more memory taken for that."""
    for number in range(rows):
        batch.submit(made_up(number, SHORT + number % 7, BESIDE_TOKENS))
    batch.step()
    batch.submit(made_up(rows, LONG_PROMPT, 1))
    _to_end(batch)


def prefills(max_rows: int) -> Iterator[tuple[int, list[int]]]:
    """Rows, and the widths of their chunks one behind the other."""
    for width in _widths(LONGEST):
        yield 1, [width]
    for rows in sorted({power_up(count) for count in range(2, max_rows + 1)}):
        for width in _widths(min(WIDEST_TOGETHER, MOST_TOGETHER // rows)):
            yield rows, [width]
    for before in range(LONGEST, LONG_PROMPT, LONGEST):
        for width in sorted({FEW.rest(tokens) for tokens in range(1, LONGEST + 1)}):
            yield 1, [*[LONGEST] * (before // LONGEST), width]


def _widths(most: int) -> list[int]:
    return sorted({FEW.width(tokens) for tokens in range(1, most + 1)})


def _prefill(model: Any, kv: KV, rows: int, widths: list[int]) -> None:
    cache = kv.open()
    for width in widths:
        model(mx.zeros((rows, width), mx.int32), cache=cache)
        mx.eval([layer.state for layer in cache])


def made_up(number: int, length: int, tokens: int = TOKENS) -> Row:
    """From ids that every vocabulary has."""
    return Row(
        id=RowId(number),
        prompt=[(7 * number + 3 * place) % 64 for place in range(length)],
        produced=[],
        sampling=SAMPLINGS[number % len(SAMPLINGS)],
        max_tokens=tokens,
        stop_ids=frozenset({0}),
        logprobs=LOGPROBS if number % 2 else -1,
        min_tokens=tokens,
        bypass=True,
    )


def row_counts(sizes: Sizes, most: int) -> list[int]:
    """Every number of rows that decodes, or where that may be any, every power of two and the most: products are computed
    in another way for few rows than for many."""
    number = sizes.decoding if sizes is FEW else power_up
    return sorted({min(most, number(count)) for count in range(1, most + 1)})
