"""The limit: `raw_loop.py MODEL` steps a static batch as fast as one process can, with no server around it.

All rows are equally long, so there is no mask; none joins or leaves; nothing is detokenized or sent. One step of
look-ahead. Products are MLX's own. Reads cells as lines of JSON from its input, and answers each with a line of figures.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxrpc_server.engine import device, load
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling

CHUNK = 512

WARM_UP, FEWEST = 4, 12
"""Steps: that do not count, and that do."""

Draw = Callable[[mx.array, int], mx.array]


def main(folder: Path) -> None:
    device.prepare()
    model = load.load(folder, lambda _stage: None, plain_products=True).model
    print(json.dumps({"device": str(mx.default_device())}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(model, **json.loads(line))), flush=True)


def measured(model: Any, *, rows: int, prompt: int, tokens: int, most: float) -> dict[str, float]:
    """Tokens a second of decoding alone, greedy and sampled; prefill in seconds."""
    prompts = mx.random.randint(0, 256, (rows, prompt))
    greedy = decoded(model, prompts, tokens, most, lambda logits, _position: mx.argmax(logits, axis=-1))
    sampled = decoded(model, prompts, tokens, most, sampling(rows))
    mx.clear_cache()
    return {"greedy": greedy[1], "sampled": sampled[1], "prefill": sampled[0]}


def sampling(rows: int) -> Draw:
    draws = Draws([Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=row) for row in range(rows)])

    def draw(logits: mx.array, position: int) -> mx.array:
        return draws.draw(logits, mx.full((rows,), position, dtype=mx.uint32))

    return draw


def decoded(model: Any, prompts: mx.array, tokens: int, most: float, draw: Draw) -> tuple[float, float]:
    """Prefill's seconds, and tokens a second from there, by the median step after a few that warm up."""
    cache, begun = make_prompt_cache(model), time.perf_counter()
    prefill(model, prompts[:, :-1], cache)
    position = prompts.shape[1]
    token = draw(model(prompts[:, -1:], cache=cache)[:, -1], position)
    mx.eval(token)
    read = [time.perf_counter()]
    prefilled = read[0] - begun
    while len(read) <= WARM_UP + max(tokens, FEWEST) and read[-1] < begun + prefilled + most:
        position += 1
        following = draw(model(token[:, None], cache=cache)[:, -1], position)
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        token.tolist()
        token = following
        read.append(time.perf_counter())
    mx.eval(token)
    steps = [later - sooner for sooner, later in pairwise(read)]
    return prefilled, prompts.shape[0] / statistics.median(steps[WARM_UP:] or steps)


def prefill(model: Any, prompts: mx.array, cache: list[Any]) -> None:
    """In chunks, of which nobody asks for logits: those of all places at once would not fit."""
    for start in range(0, prompts.shape[1], CHUNK):
        model(prompts[:, start : start + CHUNK], cache=cache)
        mx.eval([layer.state for layer in cache])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
