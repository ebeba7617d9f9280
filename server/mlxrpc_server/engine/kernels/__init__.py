"""Kernels of our own, as text that MLX compiles on the machine where they run. Each file says what it computes."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

FOLDER = Path(__file__).parent


def cuda_kernel(name: str, inputs: Sequence[str], outputs: Sequence[str], call: str, shared: int = 0) -> Any:
    """What `name.cu` has, called as `call` says, with so many bytes of shared memory beside what it declares."""
    made = functools.partial(mx.fast.cuda_kernel, shared_memory=shared)
    return _kernel(made, f"{name}.cu", inputs, outputs, call)


def metal_kernel(name: str, inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    return _kernel(mx.fast.metal_kernel, f"{name}.metal", inputs, outputs, call)


def _kernel(made: Any, file: str, inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    """MLX keeps compiled kernels on disk by their names alone, so the name carries the text's checksum."""
    text = (FOLDER / file).read_text()
    return made(
        name=f"mlxrpc_{Path(file).stem}_{zlib.crc32((text + call).encode()):08x}",
        input_names=list(inputs),
        output_names=list(outputs),
        header=text,
        source=call,
    )
