"""What a join and a leave cost the rows that decode, the engine in this process."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import mlx.core as mx

from in_process import Decoding, loaded, made_up
from mlxrpc_server.types import RowId

STEPS = 12
"""Watched before anything happens, after a join and after a leave."""
ROUNDS = 7
"""Of which the medians count."""


def main(model: Path, rows: int, tokens: int) -> None:
    decoding = Decoding(loaded(model, rows + 1), rows + 1)
    decoding.bring(made_up(number, tokens) for number in range(rows))
    measured(decoding, rows)  # the first join and leave compile what they need
    rounds = [measured(decoding, rows + 1 + number) for number in range(ROUNDS)]
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(json.dumps({**figures, "peak": mx.get_peak_memory()}), flush=True)


def measured(decoding: Decoding, number: int) -> dict[str, float]:
    """Steps undisturbed, and the worst ones: undisturbed, after a join and after a leave."""
    alone = decoding.steps(STEPS)
    decoding.batch.submit(made_up(number, 4))
    joined = decoding.steps(STEPS)
    decoding.batch.cancel(RowId(number))
    left = decoding.steps(STEPS)
    return {"step": statistics.median(alone), "alone": max(alone), "join": max(joined), "leave": max(left)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder")
    parser.add_argument("rows", type=int)
    parser.add_argument("tokens", type=int, help="that each row has, and the model's context must hold")
    main(**vars(parser.parse_args()))
