"""Writes what a training left in WORK as model folders: `python -m demo.export WORK FOLDER`.

FOLDER/bf16 in two files, and FOLDER/8bit, the one that ships.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import qwen3
from mlx_lm.utils import quantize_model

from demo.shape import SIZES, config, generation_config, tokenizer_config, write_json

GROUP, BITS = 64, 8


def export(work: Path, folder: Path) -> None:
    weights, notes = trained(work / "checkpoint.safetensors")
    settings = config(size_of(weights))
    model = qwen3.Model(qwen3.ModelArgs.from_dict(settings))  # type: ignore[no-untyped-call]
    model.load_weights(list(weights.items()))
    small_files(work, folder / "bf16", settings)
    write_halves(folder / "bf16", weights)
    (folder / "bf16" / "progress.json").write_text(notes["progress"] + "\n")
    model, quantized = quantize_model(model, settings, GROUP, BITS)
    small_files(work, folder / "8bit", quantized)
    arrays: Any = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "8bit" / "model.safetensors"), arrays, {"format": "mlx"})


def trained(checkpoint: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The weights in bfloat16, without the optimizer's state, and the notes on the training."""
    loaded: Any = mx.load(str(checkpoint), return_metadata=True)
    arrays, notes = loaded
    weights = tree_unflatten(list(arrays.items()))["weights"]
    flat: Any = tree_flatten(weights)
    return {name: array.astype(mx.bfloat16) for name, array in flat}, notes


def size_of(weights: dict[str, mx.array]) -> str:
    hidden = weights["model.norm.weight"].size
    return next(name for name, size in SIZES.items() if size["hidden_size"] == hidden)


def small_files(work: Path, folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "tokenizer.json", folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", generation_config())


def write_halves(folder: Path, weights: dict[str, mx.array]) -> None:
    names = sorted(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    places: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in half}, {"format": "mlx"})
        places |= dict.fromkeys(half, file)
    size = sum(array.nbytes for array in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
