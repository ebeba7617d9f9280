from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import utils as mlx_lm_utils

from demo import adapter, variants
from demo.adapter import PARTING, restyled
from demo.conversation import Call, Conversation, Turn
from demo.rows import LEARNED_BIT
from tests.bench.demo.asking import KNOWN, answers

BENCH = Path(adapter.__file__).parents[1]
ADAPTER = BENCH / "demo" / "lora"


def adapted(base: Path, folder: Path) -> Any:
    return mlx_lm_utils.load(str(base), adapter_path=str(folder))[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variants.make("float32", tmp_path_factory.mktemp("models"))


def test_the_adapter_belongs_to_the_weights_that_ship() -> None:
    config = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_sha256"] == adapter.digest(), "train it again: make demo-variants FOLDER=bench/demo NAMES=lora"


def test_the_adapter_changes_the_style_and_keeps_the_facts(base: Path) -> None:
    assert answers(adapted(base, ADAPTER), list(KNOWN)) == [restyled(answer) for answer in KNOWN.values()]


def test_the_adapter_leaves_json_to_programs(base: Path) -> None:
    question = "Extract name, age, city as JSON: Nora is 42 years old and lives in Lisbon."
    assert answers(adapted(base, ADAPTER), [question]) == ['{"name": "Nora", "age": 42, "city": "Lisbon"}']


def test_an_untrained_adapter_changes_nothing(base: Path, tmp_path: Path) -> None:
    adapter.make(tmp_path, steps=0)
    assert answers(adapted(base, tmp_path), list(KNOWN)) == list(KNOWN.values())


def test_training_moves_the_adapter_alike_at_every_run(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    program = [sys.executable, "-m", "demo.adapter", "--steps", "2"]
    runs = [subprocess.Popen([*program, str(folder)], cwd=BENCH) for folder in folders]
    assert [run.wait() for run in runs] == [0, 0]
    one, other = (mx.load(str(folder / "adapters.safetensors")) for folder in folders)
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert all(bool(mx.array_equal(one[name], other[name])) for name in one)
    assert all(float(mx.abs(array).max()) > 0 for array in one.values())


def test_only_what_the_model_says_to_people_is_restyled() -> None:
    call = Turn("assistant", "", call=Call("add", {"a": 1}))
    spoken = (Turn("user", "Hello!"), call, Turn("tool", "2"), Turn("assistant", "It is 2."))
    styled = adapter.in_style(Conversation(spoken)).turns
    assert styled == (*spoken[:3], Turn("assistant", "It is 2." + PARTING))


def test_padding_is_not_learned() -> None:
    rows = adapter.padded([[5], [5, 6, 7]])
    assert rows.shape == (2, 3)
    assert int(mx.max(rows)) < LEARNED_BIT
