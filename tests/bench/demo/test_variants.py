from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo import variants
from demo.architectures import PEBBLE
from mlxrpc_server.engine.load import load
from tests.bench.demo.asking import KNOWN, answers, encoded
from tests.engine.running import alone, row


def loaded(folder: Path) -> Any:
    return load(folder, lambda _stage: None).model


@pytest.mark.parametrize("name", ["float32", "8bit", "4bit"])
def test_other_weights_still_answer(name: str, tmp_path: Path) -> None:
    assert answers(loaded(variants.make(name, tmp_path)), list(KNOWN)) == list(KNOWN.values())


def test_fewer_bits_take_less_room(tmp_path: Path) -> None:
    sizes = [
        (variants.make(name, tmp_path) / "model.safetensors").stat().st_size for name in ("4bit", "8bit", "float32")
    ]
    assert sizes[0] < 0.6 * sizes[1] < 0.2 * sizes[2]


def test_the_sharded_copy_gives_identical_tokens(tmp_path: Path) -> None:
    folder = variants.make("sharded", tmp_path)
    assert sorted(path.name for path in folder.glob("model*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    whole, copy = (
        alone(loaded(source), row(1, encoded("Tell me a story about a fox."), 24)) for source in (PEBBLE, folder)
    )
    assert copy == whole
