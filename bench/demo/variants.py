"""Models for tests, made from the built-in one or around it: `python -m demo.variants FOLDER [NAME...]`.

FOLDER/NAME holds each: the built-in model in other weights (float32, 8bit, 4bit, sharded), or random weights of other
architectures in its vocabulary (llama, sliding, hybrid, recurrent, parallel).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model, quantize_model

from demo import architectures
from demo.architectures import PEBBLE, small_files
from demo.export import write_halves

GROUP = 64

Make = Callable[[Path], None]


def make(name: str, folder: Path) -> Path:
    """FOLDER/NAME, made again if it is there; without a GPU, for the same files everywhere."""
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    with mx.stream(mx.cpu):
        VARIANTS[name](made)
    return made


def in_float32(folder: Path) -> None:
    model, config = pebble()
    write(folder, model, config)


def quantized(bits: int, folder: Path) -> None:
    model, config = pebble()
    model, config = quantize_model(model, config, GROUP, bits)
    model.set_dtype(mx.bfloat16)  # the scales
    write(folder, model, config | {"dtype": "bfloat16"})


def sharded(folder: Path) -> None:
    """The very arrays that ship, in two files and their index."""
    model, config = load_model(PEBBLE, lazy=True)
    small_files(folder, config)
    write_halves(folder, arrays(model))


def pebble() -> tuple[Any, dict[str, Any]]:
    """In float32, which holds each of the shipped values exactly."""
    model, config = load_model(PEBBLE, lazy=True)
    model.set_dtype(mx.float32)  # the scales, before anything is multiplied by them
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    return dequantize_model(model), kept | {"dtype": "float32"}


def write(folder: Path, model: Any, config: dict[str, Any]) -> None:
    small_files(folder, config)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays(model), {"format": "mlx"})


def arrays(model: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


VARIANTS: dict[str, Make] = {
    "float32": in_float32,
    "8bit": partial(quantized, 8),
    "4bit": partial(quantized, 4),
    "sharded": sharded,
    **{name: partial(architectures.make, name) for name in architectures.ARCHITECTURES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*VARIANTS, []], metavar="NAME", help="all, if none is given")
    choices = parser.parse_args()
    for name in choices.names or VARIANTS:
        begin = time.monotonic()
        print(f"{make(name, choices.folder)}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
