"""Kernels of our own, as text that MLX compiles on the machine where they run. Each file says what it computes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

FOLDER = Path(__file__).parent


def cuda_kernel(names: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], call: str, shared: int = 0) -> Any:
    """What these `.cu` files have, called as `call` says, with so many bytes of shared memory beside what they declare.

    They are included and not copied: MLX goes through a kernel's whole text at every launch of it. Metal's compiler, below,
    finds no files.
    """
    files = [FOLDER / f"{name}.cu" for name in names]
    header = "".join(f'#include "{file}"\n' for file in files)
    return mx.fast.cuda_kernel(
        name=_named(files, call),
        input_names=list(inputs),
        output_names=list(outputs),
        header=header,
        source=call,
        shared_memory=shared,
    )


def metal_kernel(name: str, inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    file = FOLDER / f"{name}.metal"
    return mx.fast.metal_kernel(
        name=_named([file], call),
        input_names=list(inputs),
        output_names=list(outputs),
        header=f"{file.read_text()}\n",
        source=call,
    )


def _named(files: Sequence[Path], call: str) -> str:
    """MLX keeps compiled kernels by their names, on disk too, so the name carries the checksum of all that they are."""
    text = "".join(file.read_text() for file in files) + call
    return f"mlxrpc_{files[-1].stem}_{zlib.crc32(text.encode()):08x}"
