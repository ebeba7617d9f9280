"""What another row and another token cost: `python bench/rows.py [MODEL] [--rows N] [--tokens N]`, the engine in this process.

Rows join those that decode until they are twice as many, up to the most, and then half of them leave and half again:
whoever doubts a line finds the same number of rows on the way back, as far away as may be. Then eight rows hold more and
more tokens, in turns. The last line holds one long row and seven short ones against their tokens' bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from in_process import Decoding, loaded, made_up
from mlxrpc_server import demo
from mlxrpc_server.engine.caches import sample
from mlxrpc_server.engine.load import Loaded

ROUNDS = 3
STEPS = 8
PROMPT = 64
SOME = 8
LONG, SHORT = 4000, 8


def main() -> None:
    chosen = arguments()
    model = loaded(chosen.model, max(chosen.rows, SOME))
    print(
        "| rows | tokens each | ms a step | ms a row | tokens/s | slowest step | bytes held, of their tokens' |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    climb(model, list(doubled(1, chosen.rows)))
    lengthen(model, list(doubled(128, chosen.tokens)))
    tell(SOME, f"{LONG:,} and seven of {SHORT}", *step(model, [LONG] + [SHORT] * (SOME - 1)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.source())
    parser.add_argument("--rows", type=int, default=256, help="the most")
    parser.add_argument("--tokens", type=int, default=512, help="the most that each of eight rows holds")
    return parser.parse_args()


def doubled(first: int, most: int) -> Iterator[int]:
    while first <= most:
        yield first
        first *= 2


def climb(model: Loaded, counts: list[int]) -> None:
    """Up and down again. Those that came first hold a little more by then: they went on while others joined."""
    decoding = Decoding(model, counts[-1])
    for count in counts:
        decoding.bring(made_up(number, PROMPT) for number in range(decoding.rows, count))
        tell(count, f"{decoding.tokens / count:.0f}", *measured(model, decoding))
    for count in reversed(counts[:-1]):
        decoding.dismiss(decoding.rows - count)
        tell(count, f"{decoding.tokens / count:.0f}", *measured(model, decoding))
    decoding.dismiss()


def lengthen(model: Loaded, lengths: list[int]) -> None:
    rounds = [[step(model, [held] * SOME) for held in lengths] for _ in range(ROUNDS)]
    for held, column in zip(lengths, zip(*rounds, strict=True), strict=True):
        tell(SOME, f"{held:,}", [second for seconds, _ in column for second in seconds], column[0][1])


def tell(rows: int, held: str, seconds: list[float], layout: float) -> None:
    """By the fastest step, for whatever else the machine does makes a step slower."""
    each = f"{1e3 * min(seconds):.1f} | {1e3 * min(seconds) / rows:.2f} | {rows / min(seconds):,.0f}"
    print(f"| {rows} | {held} | {each} | {1e3 * max(seconds):.1f} | {layout:.2f} |", flush=True)


def step(model: Loaded, lengths: list[int]) -> tuple[list[float], float]:
    decoding = Decoding(model, len(lengths))
    decoding.bring(made_up(number, length) for number, length in enumerate(lengths))
    figures = measured(model, decoding)
    decoding.dismiss()
    return figures


def measured(model: Loaded, decoding: Decoding) -> tuple[list[float], float]:
    """Each step's seconds, and what the layout takes for each byte that its rows need."""
    return decoding.steps(STEPS), decoding.batch.nbytes / (decoding.tokens * token_bytes(model.model))


def token_bytes(model: Any) -> int:
    """Of one token's keys and values in all layers, as mlx-lm itself stores them."""
    cache = sample(model)
    return sum(one.shape[1] * one.shape[3] * one.itemsize for layer in cache for one in (layer.keys, layer.values))


if __name__ == "__main__":
    main()
