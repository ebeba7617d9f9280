"""Training on a CPU, at the smallest size: it learns, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from demo.architectures import PEBBLE
from demo.export import export
from demo.rows import LEARNED_BIT, Recipe, Row, batch
from demo.train import Run, loss
from mlxrpc_server.engine.load import load

STEPS = 6
LENGTH = 161


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Short ones, for speed."""
    recipe = Recipe(PEBBLE / "tokenizer.json", 1, 1_024)
    return [batch(recipe, number)[:, :LENGTH] for number in range(STEPS)]


def started(work: Path) -> Run:
    return Run(argparse.Namespace(work=work, steps=STEPS, minutes=1.0, size="tiny", rate=0.5, report_every=100))


def trained(run: Run, rows: list[Row]) -> Run:
    for each in rows:
        run.step(each)
    return run


def loss_on(run: Run, rows: Row) -> float:
    tokens = mx.array(rows.astype("int32"))
    ids, learned = tokens & (LEARNED_BIT - 1), (tokens[:, 1:] >= LEARNED_BIT).astype(mx.float32)
    return float(loss(run.model, run.weights, ids[:, :-1], ids[:, 1:], learned))


def flat(run: Run) -> dict[str, mx.array]:
    found: Any = tree_flatten(run.weights)
    return dict(found)


def test_a_few_steps_lower_the_loss(tmp_path: Path, rows: list[Row]) -> None:
    run = started(tmp_path)
    every = np.concatenate(rows)
    before = loss_on(run, every)
    trained(run, rows)
    assert loss_on(run, every) < before - 0.5


def test_training_goes_on_where_it_stopped(tmp_path: Path, rows: list[Row]) -> None:
    whole = flat(trained(started(tmp_path / "whole"), rows))
    (tmp_path / "parts").mkdir()
    trained(started(tmp_path / "parts"), rows[:3]).save()
    run = started(tmp_path / "parts")
    assert run.progress.step == 3
    parts = flat(trained(run, rows[3:]))
    assert all(bool(mx.allclose(parts[name], whole[name], atol=1e-6)) for name in whole)


def test_a_call_ends_at_its_limit_and_at_the_last_step(tmp_path: Path, rows: list[Row]) -> None:
    run = started(tmp_path)
    run.limit = 0.0
    run.go(iter(rows))
    assert run.progress.step == 0
    run.limit = 60.0
    run.go(islice(iter(rows), STEPS))
    assert run.progress.step == STEPS


def test_what_is_exported_can_be_served(tmp_path: Path) -> None:
    shutil.copy(PEBBLE / "tokenizer.json", tmp_path)
    started(tmp_path).save()
    export(tmp_path, tmp_path)
    sizes = [load(tmp_path / name, lambda _stage: None).parameter_count for name in ("bf16", "8bit")]
    assert sizes[0] == sizes[1] > 0
