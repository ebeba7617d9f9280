"""What another row and another token cost: `python bench/rows.py [MODEL] [--rows N] [--tokens N]`, the engine in this process.

Rows double up to the most, and then the tokens that eight rows hold; steps of all sizes take turns, so that whatever else
the machine does, it does to all. The last line holds one long row and seven short ones against their tokens' bytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxrpc_server import demo
from mlxrpc_server.engine import blas, load
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.caches import sample
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

ROUNDS = 3
STEPS = 6
SOME = 8
LONG, SHORT = 4000, 8


def main() -> None:
    chosen = arguments()
    installed = blas.install()
    if mx.default_device() == mx.Device(mx.cpu):
        mx.disable_compile()  # as the worker does there
    loaded = load.load(chosen.model, lambda _stage: None, blas=installed)
    shapes = [(rows, 64) for rows in doubled(1, chosen.rows)] + [(SOME, held) for held in doubled(128, chosen.tokens)]
    rounds = [[step(loaded, [held] * rows) for rows, held in shapes] for _ in range(ROUNDS)]
    print(
        "| rows | tokens each | ms a step | tokens/s | bytes held, of their tokens' |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    for (rows, held), column in zip(shapes, zip(*rounds, strict=True), strict=True):
        tell(rows, f"{held:,}", statistics.median(seconds for seconds, _ in column), column[0][1])
    tell(SOME, f"{LONG:,} and seven of {SHORT}", *step(loaded, [LONG] + [SHORT] * (SOME - 1)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.source())
    parser.add_argument("--rows", type=int, default=32, help="the most")
    parser.add_argument("--tokens", type=int, default=512, help="the most that each of eight rows holds")
    return parser.parse_args()


def doubled(first: int, most: int) -> Iterator[int]:
    while first <= most:
        yield first
        first *= 2


def tell(rows: int, held: str, seconds: float, layout: float) -> None:
    print(f"| {rows} | {held} | {1e3 * seconds:.1f} | {rows / seconds:,.0f} | {layout:.2f} |", flush=True)


def step(loaded: Any, lengths: list[int]) -> tuple[float, float]:
    """The median step's seconds once all rows decode, and what the layout takes for each byte that they need."""
    batch = Batch(loaded.model, loaded.kv, max_rows=len(lengths), prefill_tokens=4096, clock=time.perf_counter)
    for number, length in enumerate(lengths):
        prompt = [(7919 * number + 31 * place) % 256 for place in range(length)]
        sampling = Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=number)
        batch.submit(Row(RowId(number), prompt, [], sampling, 100_000, frozenset()))
    held = sum(lengths)
    while (told := len(batch.step().tokens)) < len(lengths):
        held += told  # those that are there already go on
    times = [seconds(batch) for _ in range(STEPS)]
    layout = batch.nbytes / ((held + len(lengths) * (1 + STEPS)) * token_bytes(loaded.model))
    for number in range(len(lengths)):
        batch.cancel(RowId(number))
    while not batch.idle:
        batch.step()
    return statistics.median(times), layout


def seconds(batch: Batch) -> float:
    begun = time.perf_counter()
    batch.step()
    return time.perf_counter() - begun


def token_bytes(model: Any) -> int:
    """Of one token's keys and values in all layers, as mlx-lm itself stores them."""
    cache = sample(model)
    return sum(one.shape[1] * one.shape[3] * one.itemsize for layer in cache for one in (layer.keys, layer.values))


if __name__ == "__main__":
    main()
