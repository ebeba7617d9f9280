"""What a join and a leave cost the rows that decode: `join_leave.py MODEL ROWS TOKENS`, the engine in this process."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import mlx.core as mx

from mlxrpc_server.engine import blas, load
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

STEPS = 12
"""Watched before anything happens, after a join and after a leave."""
ROUNDS = 7
"""Of which the medians count."""


def main(folder: Path, rows: int, tokens: int) -> None:
    installed = blas.install()
    loaded = load.load(folder, lambda _stage: None, blas=installed)
    batch = Batch(loaded.model, loaded.kv, max_rows=rows + 1, prefill_tokens=2048, clock=time.perf_counter)
    for number in range(rows):
        batch.submit(row(number, tokens))
    while not all_decode(batch, rows):
        pass
    measured(batch, rows)  # the first join and leave compile what they need
    rounds = [measured(batch, rows + 1 + number) for number in range(ROUNDS)]
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(json.dumps({**figures, "peak": mx.get_peak_memory()}), flush=True)


def measured(batch: Batch, number: int) -> dict[str, float]:
    """Steps undisturbed, and the worst ones: undisturbed, after a join and after a leave."""
    alone, joined, left = steps(batch), joining(batch, number), leaving(batch, number)
    return {"step": statistics.median(alone), "alone": max(alone), "join": max(joined), "leave": max(left)}


def row(number: int, tokens: int) -> Row:
    prompt = [(7919 * number + 31 * place) % 256 for place in range(tokens)]
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=number)
    return Row(RowId(number), prompt, [], sampling, 100_000, frozenset())


def all_decode(batch: Batch, rows: int) -> bool:
    return len({row for row, _ in batch.step().tokens}) >= rows


def joining(batch: Batch, number: int) -> list[float]:
    batch.submit(row(number, 4))
    return steps(batch)


def leaving(batch: Batch, number: int) -> list[float]:
    batch.cancel(RowId(number))
    return steps(batch)


def steps(batch: Batch) -> list[float]:
    """Seconds of each."""
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        batch.step()
        times.append(time.perf_counter() - begun)
    return times


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
