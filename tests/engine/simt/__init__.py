"""The CUDA kernels' own text, built for this machine's CPU where g++ is at hand: their logic without a GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxrpc_server.engine import kernels

HERE = Path(__file__).parent
AT_HAND = shutil.which("g++") is not None
DTYPES = {mx.float32: "f32", mx.bfloat16: "bf16"}


@functools.cache
def library() -> ctypes.CDLL:
    built = Path(tempfile.mkdtemp()) / "kernels.so"
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-fno-strict-aliasing",
        "-shared",
        "-fPIC",
        f"-I{kernels.FOLDER}",
        "-o",
        str(built),
    ]
    subprocess.run([*command, str(HERE / "kernels.cpp")], check=True)
    return ctypes.CDLL(str(built))


def memory(array: mx.array) -> np.ndarray[Any, Any]:
    """The array's numbers where C can read and write them; bfloat16 as its bits."""
    return np.ascontiguousarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def numbers(array: np.ndarray[Any, Any], dtype: mx.Dtype) -> mx.array:
    """What `memory` gave, as an array again."""
    return mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)


def call(name: str, *arguments: np.ndarray[Any, Any] | int) -> None:
    function = getattr(library(), name)
    function.restype = None
    function(*[ctypes.c_int(one) if isinstance(one, int) else ctypes.c_void_p(one.ctypes.data) for one in arguments])
