"""Keeps a model's matrices in panels of a few outputs each, which is how a CPU reads them fastest for few rows.

MLX asks OpenBLAS for one large product, and OpenBLAS copies the whole matrix into an order of its own before it
multiplies a row with it. Small products it takes as they lie, where it knows how to: a panel is a matrix of one. Knows
what is called on a `Linear` and on an `Embedding`, and nothing else of models.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear

from mlxrpc_server.engine import device

log = logging.getLogger(__name__)

CORE = "SkylakeX"
"""OpenBLAS's name for machines with AVX-512, for which it has kernels for small products. Elsewhere it copies a panel
like any matrix, once for each turn of rows, and all takes up to a fifth longer: measured with Haswell's kernels."""

WIDTH = 64
"""Outputs of a panel: four of the widest registers, in which OpenBLAS's kernels for small products work."""

SMALL = 1_000_000
"""Multiplications up to which OpenBLAS takes a product as small."""

TURN = 8
"""Rows of a small product, where that many still make one. As many more in it were no faster, at any number of rows."""

MANY = 64
"""Rows from which two cores take half of the panels each: a prompt's, that is. With fewer, a half is done nearly as soon
as the other core has begun; rows that decode leave that one to the server. A panel's product is the same on either core.
"""

PROBE = (5, 2, 9, 3)
"""Ids that every vocabulary has."""

TOLERANCE = 1e-3
"""How far logits may move, as a part of the largest: sums are taken in another order."""


def pay(blas: str) -> bool:
    """Whether it is one that takes small products as they lie; as `blas.install` names it."""
    return blas.endswith(CORE)


def install(model: Any) -> int:
    """Lays out every matrix that can be; gives how many. For a model whose weights are at hand.

    None where the model then gives other logits: some of mlx-lm's read a weight past its module.
    """
    expected = _logits(model)
    modules = _suited(model)
    for module in modules:
        _lay_out(module)
    if not modules or _same(model, expected):
        return len(modules)
    _take_back(modules)
    log.warning("the model's matrices stay as they are, which is slower: it does not give the same from panels")
    return 0


def _suited(model: Any) -> list[Any]:
    tied = bool(getattr(getattr(model, "args", None), "tie_word_embeddings", False))
    return [module for module in model.modules() if _suits(module, tied=tied)]


def _suits(module: Any, *, tied: bool) -> bool:
    """An embedding only looks its rows up, and needs no panels, unless it is the matrix of the logits as well."""
    if type(module) is Linear or (tied and type(module) is Embedding):
        return bool(module.weight.dtype == mx.float32 and module.weight.shape[0] % WIDTH == 0)
    return False


def _lay_out(module: Any) -> None:
    """In place, for models keep their modules under names and in lists, and so the weights keep theirs."""
    module.weight = panels(module.weight)
    # One by one, for the old and the new weights of all would take twice the memory.
    mx.eval(module.weight)
    module.__class__ = PanelLinear if type(module) is Linear else PanelEmbedding


def _take_back(modules: Iterable[Any]) -> None:
    for module in modules:
        module.weight = matrix(module.weight)
        mx.eval(module.weight)
        module.__class__ = Linear if type(module) is PanelLinear else Embedding


def _logits(model: Any) -> mx.array:
    logits: mx.array = model(mx.array([PROBE]))
    mx.eval(logits)
    return logits


def _same(model: Any, expected: mx.array) -> bool:
    try:
        logits = _logits(model)
    except Exception:  # whatever a model's own code and MLX raise on a weight of another shape
        log.warning("the model does not take its matrices in panels", exc_info=True)
        return False
    return logits.shape == expected.shape and bool(
        (mx.abs(logits - expected).max() <= TOLERANCE * mx.abs(expected).max()).item()
    )


def panels(weight: mx.array) -> mx.array:
    """From outputs x inputs to panels x inputs x outputs of a panel."""
    outputs, inputs = weight.shape
    return mx.contiguous(weight.reshape(outputs // WIDTH, WIDTH, inputs).swapaxes(1, 2))


def matrix(weight: mx.array) -> mx.array:
    """And back."""
    count, inputs, width = weight.shape
    return mx.contiguous(weight.swapaxes(1, 2).reshape(count * width, inputs))


def product(rows: mx.array, weight: mx.array) -> mx.array:
    """Of many vectors, whatever shape they have together, with a matrix in panels."""
    if math.prod(rows.shape[:-1]) < MANY or (beside := _beside()) is None:
        return of_one_core(rows, weight)
    return of_two_cores(rows, weight, beside)


def of_two_cores(rows: mx.array, weight: mx.array, beside: mx.Stream) -> mx.array:
    half = len(weight) // 2
    first = of_one_core(rows, weight[:half])
    with mx.stream(beside):
        second = of_one_core(rows, weight[half:])
    return mx.concatenate([first, second], axis=-1)


def of_one_core(rows: mx.array, weight: mx.array) -> mx.array:
    *shape, inputs = rows.shape
    count = math.prod(shape)
    turns = _turns(count, inputs)
    each = math.ceil(count / turns)
    if missing := turns * each - count:
        rows = mx.pad(rows.reshape(count, inputs), [(0, missing), (0, 0)])
    # All turns of a panel follow each other, and find it in the core's own cache.
    turned = rows.reshape(1, turns, each, inputs) @ weight[:, None]
    outputs = turned.reshape(len(weight), turns * each, WIDTH).swapaxes(0, 1)[:count]
    return outputs.reshape(*shape, len(weight) * WIDTH)


@functools.cache
def _beside() -> mx.Stream | None:
    """Where half of a product goes on at the same time: to another core, if this process has one."""
    return mx.new_stream(mx.Device(mx.cpu)) if device.cores() > 1 else None


def _turns(count: int, inputs: int) -> int:
    """In how many equal parts the rows are taken, so that each one's product with a panel is a small one."""
    return max(1, math.ceil(count / TURN)) if TURN * inputs * WIDTH <= SMALL else 1


class PanelLinear(Linear):
    def __call__(self, x: mx.array) -> mx.array:
        outputs = product(x, self.weight)
        return outputs + self.bias if "bias" in self else outputs


class PanelEmbedding(Embedding):
    def __call__(self, x: mx.array) -> mx.array:
        found: mx.array = self.weight[x // WIDTH, :, x % WIDTH]
        return found

    def as_linear(self, x: mx.array) -> mx.array:
        return product(x, self.weight)
