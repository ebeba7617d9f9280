"""The fused draw: filters, noise and choice of every row in one launch on a CUDA device.

Gives what `engine/sampling.py` gives in many passes, but for the last bits of float32. Knows no penalties.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxrpc_server.engine.given import given
from mlxrpc_server.engine.kernels import cuda_kernel
from mlxrpc_server.types import Sampling

THREADS, FEWER_THREADS = 1024, 512
"""For a row. The compiler gives each thread more registers on devices from compute capability 10 on."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The rows' settings, four numbers to a row and array, as the kernel reads them."""

    numbers: mx.array
    """Temperature, where 0 is greedy; top_p; min_p; unused."""
    settings: mx.array
    """top_k, where 0 is off; the low and the high half of the seed; unused."""


def suits(dtype: mx.Dtype) -> bool:
    """Whether logits of this dtype can be drawn from here."""
    on_cuda = mx.default_device() == mx.Device(mx.gpu) and mx.cuda.is_available()
    return on_cuda and dtype in (mx.float32, mx.float16, mx.bfloat16)


def columns(rows: Sequence[Sampling], coldest: float) -> Columns:
    """Temperatures between 0 and `coldest` draw as that."""
    numbers = [[row.temperature and max(row.temperature, coldest), row.top_p, row.min_p, 0.0] for row in rows]
    bits = np.array(numbers, np.float32).view(np.int32).ravel().tolist()
    settings = [one for row in rows for one in (max(row.top_k, 0), row.seed & 0xFFFFFFFF, row.seed >> 32, 0)]
    return Columns(given(bits, mx.int32).view(mx.float32), given(settings, mx.uint32))


def draw(logits: mx.array, positions: mx.array, columns: Columns) -> mx.array:
    """One token for each row of `logits` [rows, vocabulary], lazily; `positions` are those of the tokens drawn."""
    rows, threads = logits.shape[0], _threads()
    tokens: mx.array = _kernel()(
        inputs=[logits, positions.astype(mx.uint32), columns.numbers, columns.settings],
        template=[("T", logits.dtype)],
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(rows,)],
        output_dtypes=[mx.uint32],
    )[0]
    return tokens


@functools.cache
def _threads() -> int:
    return THREADS if int(mx.device_info()["compute_capability_major"]) < 10 else FEWER_THREADS


@functools.cache
def _kernel() -> Any:
    return cuda_kernel(
        ("draw",),
        inputs=("logits", "positions", "numbers", "settings"),
        outputs=("tokens",),
        call="mlxrpc::draw<T>(logits, logits_shape[1], positions, numbers, settings, tokens);",
    )
