"""Kernels of our own, as text that MLX compiles on the machine where they run. Each file says what it computes."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

FOLDER = Path(__file__).parent


def cuda_kernel(names: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], call: str, shared: int = 0) -> Any:
    """What these `.cu` files have, called as `call` says, with so many bytes of shared memory beside what they declare."""
    made = functools.partial(mx.fast.cuda_kernel, shared_memory=shared)
    return _kernel(made, [f"{name}.cu" for name in names], inputs, outputs, call)


def metal_kernel(name: str, inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    return _kernel(mx.fast.metal_kernel, [f"{name}.metal"], inputs, outputs, call)


def _kernel(made: Any, files: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], call: str) -> Any:
    """MLX keeps compiled kernels on disk by their names alone, so the name carries the text's checksum."""
    text = "\n".join(shortened((FOLDER / file).read_text()) for file in files)
    return made(
        name=f"mlxrpc_{Path(files[-1]).stem}_{zlib.crc32((text + call).encode()):08x}",
        input_names=list(inputs),
        output_names=list(outputs),
        header=f"{text}\n",
        source=call,
    )


def shortened(text: str) -> str:
    """Without comments and indentation: MLX goes through a kernel's whole text at every call of it."""
    lines = (line.strip() for line in re.sub("//.*", "", text).splitlines())
    return "\n".join(filter(None, lines))
