"""What log-probabilities cost: `python bench/logprobs.py [MODEL] [--rows N]`, the engine in this process.

The same rows decode in turns without them and with the five likeliest of each token, and each turn is compared with
the one beside it: whatever else the machine does, it does to both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import mlx.core as mx

from mlxrpc_server import demo
from mlxrpc_server.engine import blas, load
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

TOP = 5
ROUNDS = 15
STEPS = 10
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.source())
    parser.add_argument("--rows", type=int, default=32)
    chosen = parser.parse_args()
    if mx.default_device() == mx.Device(mx.cpu):
        installed = blas.install()
        mx.disable_compile()  # as the worker does there
    loaded = load.load(chosen.model, lambda _stage: None, blas=installed)
    pairs = [
        [step_seconds(loaded.model, loaded.kv, chosen.rows, logprobs) for logprobs in (-1, TOP)] for _ in range(ROUNDS)
    ]
    without, with_them = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(before / after for before, after in pairs)
    print(
        f"{chosen.rows} rows, {loaded.vocabulary_size:,} ids: {without:.2f} ms a step without, {with_them:.2f} ms with"
        f" the top {TOP}: {ratio:.3f} of the tokens/s, the median of {ROUNDS} rounds"
    )


def step_seconds(model: object, kv: KV, rows: int, logprobs: int) -> float:
    """The median step's, once all rows decode."""
    batch = Batch(model, kv, max_rows=rows, prefill_tokens=2048, clock=time.perf_counter)
    for number in range(rows):
        batch.submit(row(number, logprobs))
    while len(batch.step().tokens) < rows:
        pass
    times = [seconds(batch) for _ in range(WARM_UP + STEPS)]
    for number in range(rows):
        batch.cancel(RowId(number))
    while not batch.idle:
        batch.step()
    return statistics.median(times[WARM_UP:])


def row(number: int, logprobs: int) -> Row:
    prompt = [(7919 * number + 31 * place) % 256 for place in range(16)]
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=number)
    return Row(RowId(number), prompt, [], sampling, 100_000, frozenset(), logprobs=logprobs)


def seconds(batch: Batch) -> float:
    begun = time.perf_counter()
    batch.step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
