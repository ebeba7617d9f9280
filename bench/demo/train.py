"""Trains the model: `python -m demo.train WORK`, again to go on where it stopped.

WORK holds the tokenizer and the checkpoint; --minutes ends a call early. The schedule counts steps, so that runs
agree however they are divided. Weights are kept in float32; a GPU computes with them in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models import qwen3

from demo import tokenizer
from demo.rows import LEARNED_BIT, Recipe, Row, stream
from demo.shape import new_model, parameter_count
from mlxrpc_server.engine import blas

SEED = 20
STEPS = 11_000
WARM_UP = 300
FLOOR = 0.01
CLIP = 1.0
ON_CPU = mx.default_device() == mx.Device(mx.cpu)
COMPUTED = mx.float32 if ON_CPU else mx.bfloat16

Weights = dict[str, Any]


@dataclass
class Progress:
    """How far the training is, over all calls."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    peak: float
    steps: int

    def done(self, progress: Progress) -> float:
        """From 0 to 1."""
        return progress.step / self.steps

    def rate(self, progress: Progress) -> float:
        """Up in a straight line, then down in one."""
        warm = min(1.0, (progress.step + 1) / WARM_UP)
        return self.peak * warm * max(FLOOR, 1 - self.done(progress))


def main() -> None:
    choices = arguments()
    if ON_CPU:
        blas.install()
        mx.disable_compile()  # it costs seconds of a compiler there, and saves nothing that can be measured
    work: Path = choices.work
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = work / "tokenizer.json"
    if not vocabulary.exists():
        tokenizer.train().save(str(vocabulary))
    run = Run(choices)
    recipe = Recipe(vocabulary, SEED, choices.batch_tokens)
    with stream(recipe, run.progress.step, choices.processes) as batches:
        run.go(batches)
    run.save()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="full")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most so long in this call")
    parser.add_argument("--steps", type=int, default=STEPS, help="the length of the whole schedule")
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    return parser.parse_args()


class Run:
    """One call's share of the training."""

    def __init__(self, choices: argparse.Namespace) -> None:
        self.plan = Plan(choices.rate, choices.steps)
        self.limit = choices.minutes * 60
        self.work: Path = choices.work
        self.report_every: int = choices.report_every
        self.model = new_model(choices.size, SEED)
        self.optimizer = optim.AdamW(choices.rate, betas=[0.9, 0.95], weight_decay=0.05, bias_correction=True)
        self.progress = Progress()
        self.running: mx.array | None = None
        self.weights: Weights = tree_map(lambda array: array.astype(mx.float32), self.model.parameters())
        self.optimizer.init(self.weights)
        self.resume()
        self.gradient = mx.value_and_grad(partial(loss, self.model))
        print(f"{parameter_count(self.model):,} parameters, from step {self.progress.step}", flush=True)

    def go(self, batches: Any) -> None:
        begin = last = saved = time.monotonic()
        losses: dict[int, list[mx.array]] = {}
        waited = 0.0
        while last - begin < self.limit and self.plan.done(self.progress) < 1:
            asked = time.monotonic()
            rows = next(batches)
            waited += time.monotonic() - asked
            losses.setdefault(rows.shape[1] - 1, []).append(self.step(rows))
            now = time.monotonic()
            self.progress.seconds += now - last
            last = now
            if self.progress.step % self.report_every == 0:
                self.report(losses, waited)
                losses, waited = {}, 0.0
            if now - saved > 90:
                self.save()
                saved = now

    def step(self, rows: Row) -> mx.array:
        entries = mx.array(rows.astype(np.int32))
        tokens = entries & (LEARNED_BIT - 1)
        learned = (entries[:, 1:] >= LEARNED_BIT).astype(mx.float32)
        value, gradients = self.gradient(self.weights, tokens[:, :-1], tokens[:, 1:], learned)
        gradients, _ = optim.clip_grad_norm(gradients, CLIP)  # type: ignore[no-untyped-call]
        self.optimizer.learning_rate = self.plan.rate(self.progress)
        self.weights = self.optimizer.apply_gradients(gradients, self.weights)
        mx.async_eval(value, self.weights, self.optimizer.state)  # type: ignore[no-untyped-call]
        if self.running is not None:
            mx.eval(self.running)  # one step ahead of the device, not more
        self.running = value
        self.progress.step += 1
        self.progress.tokens += rows.shape[0] * (rows.shape[1] - 1)
        return value

    def report(self, losses: dict[int, list[mx.array]], waited: float) -> None:
        means = ", ".join(
            f"{length}: {float(mx.mean(mx.stack(values))):.4f}" for length, values in sorted(losses.items())
        )
        done, rate = self.plan.done(self.progress), self.plan.rate(self.progress)
        speed = self.progress.tokens / self.progress.seconds
        print(
            f"step {self.progress.step} ({done:.1%}) loss {means} rate {rate:.2e} "
            f"{self.progress.tokens / 1e6:.0f}M tokens, {speed / 1e3:.0f}k/s, waited {waited:.1f} s for data",
            flush=True,
        )

    def save(self) -> None:
        new = self.work / "new.safetensors"
        state = {"weights": self.weights, "optimizer": self.optimizer.state}
        notes = {"progress": json.dumps(asdict(self.progress))}
        mx.save_safetensors(str(new), dict(tree_flatten(state)), notes)
        new.replace(self.checkpoint)

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        loaded: Any = mx.load(str(self.checkpoint), return_metadata=True)
        arrays, notes = loaded
        state = tree_unflatten(list(arrays.items()))
        self.weights, self.optimizer.state = state["weights"], state["optimizer"]
        self.progress = Progress(**json.loads(notes["progress"]))

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.safetensors"


def loss(model: qwen3.Model, weights: Weights, tokens: mx.array, targets: mx.array, learned: mx.array) -> mx.array:
    """Over the learned tokens alone."""
    model.update(tree_map(lambda array: array.astype(COMPUTED), weights))
    scores = model(tokens).astype(mx.float32)
    each = nn.losses.cross_entropy(scores, targets)
    return (each * learned).sum() / mx.maximum(learned.sum(), 1)


if __name__ == "__main__":
    main()
