"""Kernels of our own, as text that MLX compiles on the machine where they run. Each file says what it computes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

FOLDER = Path(__file__).parent


def cuda_kernel(name: str, inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    """The function `name` of the file of that name, called as `call` says.

    MLX keeps compiled kernels on disk by their names alone, so the name carries the text's checksum.
    """
    text = (FOLDER / f"{name}.cu").read_text()
    return mx.fast.cuda_kernel(
        name=f"mlxrpc_{name}_{zlib.crc32((text + call).encode()):08x}",
        input_names=list(inputs),
        output_names=list(outputs),
        header=text,
        source=call,
    )
