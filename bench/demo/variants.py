"""Models for tests, made from the built-in one or around it: `python -m demo.variants FOLDER [NAME...]`.

FOLDER/NAME holds each: the built-in model in other weights (float32, 8bit, 4bit, sharded), an adapter for it (lora,
minutes of training; demo/lora is the one for the weights that ship), or random weights of other architectures in its
vocabulary (llama, sliding, hybrid, recurrent, parallel).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import quantize_model

from demo import architectures, weights
from demo.architectures import small_files
from demo.export import write_halves

GROUP = 64

Make = Callable[[Path], None]


def make(name: str, folder: Path) -> Path:
    """FOLDER/NAME, made again if it is there; without a GPU, for the same files everywhere."""
    made = folder.absolute() / name
    made.mkdir(parents=True, exist_ok=True)
    with mx.stream(mx.cpu):
        VARIANTS[name](made)
    return made


def in_float32(folder: Path) -> None:
    model, config = weights.in_float32()
    write(folder, model, config)


def quantized(bits: int, folder: Path) -> None:
    model, config = weights.in_float32()
    model, config = quantize_model(model, config, GROUP, bits)
    model.set_dtype(mx.bfloat16)  # the scales
    write(folder, model, config | {"dtype": "bfloat16"})


def sharded(folder: Path) -> None:
    """The very arrays that ship, in two files and their index."""
    model, config = weights.as_shipped()
    small_files(folder, config)
    write_halves(folder, weights.arrays(model))


def lora(folder: Path) -> None:
    """By a process of its own, which may change the BLAS that it uses."""
    subprocess.run([sys.executable, "-m", "demo.adapter", str(folder)], cwd=Path(__file__).parents[1], check=True)


def write(folder: Path, model: Any, config: dict[str, Any]) -> None:
    small_files(folder, config)
    mx.save_safetensors(str(folder / "model.safetensors"), weights.arrays(model), {"format": "mlx"})


VARIANTS: dict[str, Make] = {
    "float32": in_float32,
    "8bit": partial(quantized, 8),
    "4bit": partial(quantized, 4),
    "sharded": sharded,
    "lora": lora,
    **{name: partial(architectures.make, name) for name in architectures.ARCHITECTURES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)}; all, if none is given")
    choices = parser.parse_args()
    for name in set(choices.names) - set(VARIANTS):
        parser.error(f"there is no {name}")
    for name in choices.names or VARIANTS:
        begin = time.monotonic()
        print(f"{make(name, choices.folder)}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
