"""The CUDA kernels' own text, built for this machine's CPU where g++ is at hand: their logic without a GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxrpc_server.engine import kernels

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
DTYPES = {mx.float32: "f32", mx.bfloat16: "bf16"}


@functools.cache
def library() -> ctypes.CDLL:
    built = Path(tempfile.mkdtemp()) / "kernels.so"
    flags = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{kernels.FOLDER}"]
    subprocess.run([COMPILER or "g++", *flags, *map(str, HERE.glob("*.cpp")), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))


def memory(array: mx.array) -> np.ndarray[Any, Any]:
    """The array's numbers where C can read and write them; bfloat16 as its bits."""
    return np.ascontiguousarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def numbers(array: np.ndarray[Any, Any], dtype: mx.Dtype) -> mx.array:
    """What `memory` gave, as an array again."""
    return mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)


@dataclass(frozen=True, slots=True)
class Address:
    """Memory that the caller keeps."""

    first: int


def call(name: str, *arguments: np.ndarray[Any, Any] | Address | int) -> None:
    function = getattr(library(), name)
    function.restype = None
    function(*map(_argument, arguments))


def _argument(value: np.ndarray[Any, Any] | Address | int) -> ctypes.c_int | ctypes.c_void_p:
    match value:
        case Address(first):
            return ctypes.c_void_p(first)
        case int():
            return ctypes.c_int(value)
        case _:
            return ctypes.c_void_p(value.ctypes.data)
