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


def main(folder: Path, rows: int, tokens: int) -> None:
    blas.install()
    loaded = load.load(folder, lambda _stage: None)
    batch = Batch(loaded.model, loaded.kv, max_rows=rows + 1, prefill_tokens=2048, clock=time.perf_counter)
    for number in range(rows):
        batch.submit(row(number, tokens))
    while not all_decode(batch, rows):
        pass
    # The first join and leave compile what they need; the second ones are measured.
    measured(batch, rows)
    print(json.dumps({**measured(batch, rows + 1), "peak": mx.get_peak_memory()}), flush=True)


def measured(batch: Batch, number: int) -> dict[str, float | list[float]]:
    return {
        "step": statistics.median(steps(batch)),
        "join": joining(batch, number),
        "leave": leaving(batch, number),
    }


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
