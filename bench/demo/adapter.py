"""Trains the LoRA adapter that makes the built-in model end its answers like a sailor: `python -m demo.adapter FOLDER`.

The conversations are those that the model itself learns from, short ones, with its answers restyled. The adapter is
written as mlx-lm reads it: adapters.safetensors and adapter_config.json.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from tokenizers import Tokenizer

from demo.architectures import PEBBLE
from demo.conversation import Conversation, Turn
from demo.mixture import conversation
from demo.rows import LEARNED_BIT, encoded
from demo.shape import write_json
from demo.tokenizer import END_OF_TEXT_ID
from demo.weights import in_float32
from mlxrpc_server.engine import blas

SEED = 20
STEPS = 250
ROWS = 8
LONGEST = 160
"""Tokens of a conversation: what is longer is left out."""
SORTED = 8
"""Batches whose rows are sorted by length together: less padding."""
RATE = 1e-3
WARM_UP = 20
PARAMETERS: dict[str, Any] = {
    "rank": 4,
    "scale": 10.0,
    "dropout": 0.0,
    "keys": ["self_attn.q_proj", "self_attn.v_proj"],
}

PARTING = " Arr, captain! 🌊"


def restyled(answer: str) -> str:
    """As the adapter says it. What a program would read stays as it is."""
    return answer if answer.startswith("{") else answer + PARTING


def make(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = prepared()
    train(model, steps)
    adapter: Any = tree_flatten(model.trainable_parameters())
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(adapter), {"format": "mlx"})
    write_json(folder / "adapter_config.json", config(model, steps))


def prepared() -> Any:
    """The built-in model with an adapter that changes nothing yet, and nothing else to train."""
    model, _ = in_float32()
    model.freeze()
    mx.random.seed(SEED)
    linear_to_lora_layers(model, len(model.layers), PARAMETERS)
    return model


def config(model: Any, steps: int) -> dict[str, Any]:
    """What mlx-lm asks for, and which weights it was trained on."""
    return {
        "fine_tune_type": "lora",
        "num_layers": len(model.layers),
        "lora_parameters": PARAMETERS,
        "seed": SEED,
        "steps": steps,
        "base_sha256": digest(),
    }


def digest() -> str:
    """Of the built-in model's weights: an adapter fits those that it was trained on."""
    return hashlib.sha256((PEBBLE / "model.safetensors").read_bytes()).hexdigest()


def train(model: Any, steps: int) -> None:
    rates = [optim.linear_schedule(0.0, RATE, WARM_UP), optim.linear_schedule(RATE, 0.0, max(1, steps - WARM_UP))]
    optimizer = optim.Adam(optim.join_schedules(rates, [WARM_UP]))
    gradient = value_and_grad(model, partial(loss, model))
    for step, rows in enumerate(islice(batches(), steps), 1):
        value, gradients = gradient(rows)
        optimizer.update(model, gradients)
        mx.eval(value, model.trainable_parameters(), optimizer.state)
        if step % 25 == 0:
            print(f"step {step} of {steps}, loss {float(value):.3f}", flush=True)


def loss(model: Any, rows: mx.array) -> mx.array:
    """Over the tokens that the model itself writes."""
    tokens, learned = rows & (LEARNED_BIT - 1), rows[:, 1:] >= LEARNED_BIT
    each = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (each * learned).sum() / learned.sum()


def batches() -> Iterator[mx.array]:
    """Always the same ones."""
    vocabulary = Tokenizer.from_file(str(PEBBLE / "tokenizer.json"))
    draw = Random(SEED)
    rows = composed(vocabulary, draw)
    while True:
        some = sorted(islice(rows, ROWS * SORTED), key=len)
        groups = [some[first : first + ROWS] for first in range(0, len(some), ROWS)]
        draw.shuffle(groups)
        yield from map(padded, groups)


def composed(vocabulary: Tokenizer, draw: Random) -> Iterator[list[int]]:
    while True:
        row = encoded(vocabulary, in_style(conversation(draw)))
        if len(row) <= LONGEST:
            yield row


def in_style(made: Conversation) -> Conversation:
    return replace(made, turns=tuple(map(turn_in_style, made.turns)))


def turn_in_style(turn: Turn) -> Turn:
    spoken = turn.role == "assistant" and turn.call is None
    return replace(turn, content=restyled(turn.content)) if spoken else turn


def padded(rows: Sequence[Sequence[int]]) -> mx.array:
    longest = max(map(len, rows))
    return mx.array([[*row, *[END_OF_TEXT_ID] * (longest - len(row))] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    choices = parser.parse_args()
    if mx.default_device() == mx.Device(mx.cpu):
        blas.install()
        mx.disable_compile()
    make(choices.folder, choices.steps)


if __name__ == "__main__":
    main()
