"""Loads a model of mlx-lm from a folder, cheap failures first, and proves that it can be served.

The only place that knows mlx-lm's loader. It evaluates everything that the model needs, so that nothing lazy is
left for the first request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils

from mlxrpc_server.engine import device, exponentials, panels, quantized, thin
from mlxrpc_server.engine.kernels import product
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.layouts import layouts
from mlxrpc_server.engine.room import UNBOUNDED, Room
from mlxrpc_server.types import RowId

log = logging.getLogger(__name__)

Report = Callable[[str], None]
"""Told of each stage."""

TOLERANCE = {mx.float32: 1e-3, mx.float16: 2e-2, mx.bfloat16: 8e-2}
"""How far a row's logits may differ between alone and in a batch, as a part of the largest logit."""

QUANTIZED_TOLERANCE = 5e-2
"""The same where keys and values are quantized: a last bit more or less may be a whole step of theirs."""

WIDE_SHARE = 1 / 2
"""Of the free memory, for weights in float32: the rest is for keys and values, for transients, and for other models."""

PROBE_LENGTHS = (5, 2, 9, 3)


class CannotLoad(Exception):
    """The model cannot be served as it is; `str()` tells an operator why."""


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Any
    kv: KV
    vocabulary_size: int
    dtype: mx.Dtype
    parameter_count: int

    @property
    def batched(self) -> bool:
        return not isinstance(self.kv, Lanes)


def load(  # noqa: PLR0913
    path: Path,
    report: Report,
    room: Room = UNBOUNDED,
    *,
    kv_bits: int | None = None,
    metal_kernels: bool = False,
    blas: str = "",
    keep_quantized: bool = False,
    plain_products: bool = False,
    free_bytes: Callable[[], int] = device.free_bytes,
) -> Loaded:
    """Raises CannotLoad, and nothing else: whoever waits for the model is told the cause. `blas` is what was installed.

    Quantized weights become float32 on a CPU, unless they are to be measured as they are: `keep_quantized`. Products
    of few rows are computed in the way that is fastest on this device, unless MLX's own are wanted: `plain_products`.
    """
    report("config")
    _check_config(path)
    try:
        model, dtype = _model(path, report, keep_quantized, free_bytes)
        report("warm-up")
        if not plain_products:
            _quicken(model, blas)
        probe = _probe_tokens()
        kv = proven(model, probe, dtype, room, kv_bits, metal_kernels=metal_kernels, plain_products=plain_products)
        report("ready")
        return _served(model, dtype, kv, probe)
    except CannotLoad:
        raise
    except Exception as error:  # whatever mlx-lm, a model's own code and MLX raise on files that they did not expect
        raise CannotLoad(f"{type(error).__name__}: {error}") from error


def _model(path: Path, report: Report, keep_quantized: bool, free_bytes: Callable[[], int]) -> tuple[Any, mx.Dtype]:
    report("weights")
    model, _config = mlx_lm_utils.load_model(path, lazy=True)
    model.eval()
    report("memory")
    if device.on_cpu() and not (keep_quantized and _is_quantized(model)):
        _widen(model, free_bytes)
    return model, _settle(model)


def _served(model: Any, dtype: mx.Dtype, kv: KV, probe: list[list[int]]) -> Loaded:
    return Loaded(
        model=model,
        kv=kv,
        vocabulary_size=_logits_width(model, probe[0]),
        dtype=dtype,
        parameter_count=_parameter_count(model),
    )


def _check_config(path: Path) -> None:
    """Whatever the small files can tell, before any large one is touched."""
    try:
        config = mlx_lm_utils.load_config(path)
        mlx_lm_utils._get_classes(config)
    except KeyError as error:
        raise CannotLoad(f"config.json has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CannotLoad(f"config.json: {error}") from error
    if not list(path.glob("model*.safetensors")):
        raise CannotLoad(f"no model*.safetensors in {path}")


def _widen(model: Any, free_bytes: Callable[[], int]) -> None:
    """To float32: a CPU's products of half-precision and of quantized matrices are plain loops, many times slower."""
    if _float_types(model) == {mx.float32} and not _is_quantized(model):
        return
    needed, most = 4 * _parameter_count(model), int(WIDE_SHARE * free_bytes())
    sizes = {"float32_bytes": needed, "most_bytes": most}
    if any(name.endswith(".global_scale") for name in _parameters(model)):
        log.warning("the weights stay as they are stored, which is slow on a CPU: mlx-lm cannot dequantize them")
    elif needed > most:
        log.warning("the weights stay as they are stored, which is slow on a CPU: float32 takes too much", extra=sizes)
    else:
        log.info("the weights become float32, which is fastest on a CPU", extra=sizes)
        # First the scales, from which most modes take the precision of the product; then what the other modes gave.
        model.set_dtype(mx.float32)
        mlx_lm_utils.dequantize_model(model).set_dtype(mx.float32)


def _quicken(model: Any, blas: str) -> None:
    if product.available():
        log.info("products of few rows take a kernel of our own", extra={"layers": thin.install(model)})
    if device.on_cpu():
        exponentials.route(model)
        if panels.pay(blas):
            log.info("matrices lie in panels, which this CPU reads fastest", extra={"layers": panels.install(model)})


def _settle(model: Any) -> mx.Dtype:
    """Brings every array into memory; gives the dtype that the model computes in."""
    mx.eval(_arrays(model))
    floats = _float_types(model)
    return mx.bfloat16 if mx.bfloat16 in floats else mx.float16 if mx.float16 in floats else mx.float32


def _parameters(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def _parameter_count(model: Any) -> int:
    """As before quantization."""
    return int(mlx_lm_utils.get_total_parameters(model))  # type: ignore[no-untyped-call]


def _float_types(model: Any) -> set[mx.Dtype]:
    return {array.dtype for array in _parameters(model).values() if mx.issubdtype(array.dtype, mx.floating)}


def _is_quantized(model: Any) -> bool:
    return any(name.endswith(".scales") for name in _parameters(model))


def _arrays(model: Any) -> list[mx.array]:
    """Also those under names with an underscore, which `parameters()` leaves out: YaRN keeps its frequencies there."""
    values = (value for module in model.modules() for value in (*module.values(), *vars(module).values()))
    return [value for value in values if isinstance(value, mx.array)]


def _probe_tokens() -> list[list[int]]:
    """Four short rows of different lengths, from ids that every vocabulary has."""
    return [[(7 * row + 3 * place) % 64 for place in range(length)] for row, length in enumerate(PROBE_LENGTHS)]


def _logits_width(model: Any, tokens: list[int]) -> int:
    return int(model(mx.array([tokens])).shape[-1])


def proven(
    model: Any,
    probe: list[list[int]],
    dtype: mx.Dtype,
    room: Room = UNBOUNDED,
    kv_bits: int | None = None,
    *,
    metal_kernels: bool = False,
    plain_products: bool = False,
) -> KV:
    """The first of the model's layouts in which rows give what they give alone."""
    alone = [_last_logits(model, tokens) for tokens in probe]
    if not all(bool(mx.isfinite(logits).all()) for logits in alone):
        raise CannotLoad("its logits are not finite numbers")
    for kv in layouts(model, room, kv_bits, metal_kernels=metal_kernels, plain_products=plain_products):
        tolerance = TOLERANCE[dtype]
        if kv_bits is not None:
            # What the bits take from the logits, they take alone as well; what is rounded may fall to either side.
            alone = [_last_logits(model, tokens, kv.open()) for tokens in probe]
            tolerance = max(tolerance, QUANTIZED_TOLERANCE)
        if isinstance(kv, Lanes) or _holds(model, kv, probe, alone, tolerance):
            return kv
    if kv_bits is not None:
        raise CannotLoad(
            f"kv_bits is {kv_bits}, and that is for models whose layers all keep plain keys and values,"
            f" in heads of a multiple of {min(quantized.GROUPS)}"
        )
    raise CannotLoad("its rows can be laid out in no way")


def _holds(model: Any, kv: KV, probe: list[list[int]], alone: list[mx.array], tolerance: float) -> bool:
    facts = {"layout": type(kv).__name__}
    try:
        together = _batched_logits(model, kv, probe)
    except Exception:
        # What a model's own code raises on rows of different lengths, it does not raise on one.
        log.warning("the model does not take its rows in this layout", exc_info=True, extra=facts)
        return False
    agrees = _agree(alone, together, tolerance)
    if not agrees:
        log.warning("the model gives other logits in this layout than for a row alone", extra=facts)
    return agrees


def _last_logits(model: Any, tokens: list[int], cache: list[Any] | None = None) -> mx.array:
    logits: mx.array = model(mx.array([tokens]), cache=cache)[0, -1].astype(mx.float32)
    return logits


def _batched_logits(model: Any, kv: KV, probe: list[list[int]]) -> mx.array:
    """In the probe's order, behind the last token of each; the others are prefilled alone and together."""
    names = [RowId(number) for number in range(len(probe))]
    parts = [slice(0, 1), slice(1, 2), slice(2, None)] if kv.joint else [slice(row, row + 1) for row in names]
    for part in parts:
        _join(model, kv, names[part], [tokens[:-1] for tokens in probe[part]])
    order = kv.arrange()
    logits = kv.decode(mx.array([probe[row][-1] for row in order])).astype(mx.float32)
    mx.eval(logits)
    for row in names:
        kv.leave(row)
    return logits[mx.array([order.index(row) for row in names])]


def _join(model: Any, kv: KV, rows: list[RowId], prompts: list[list[int]]) -> None:
    cache, longest = kv.open(), max(map(len, prompts))
    model(mx.array([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]), cache=cache)
    kv.join(rows, cache, list(map(len, prompts)))


def _agree(alone: list[mx.array], together: mx.array, tolerance: float) -> bool:
    for solo, batched in zip(alone, together, strict=True):
        scale = float(mx.abs(solo).max())
        # Not "above it": a difference that is no number is neither above nor within.
        if not float(mx.abs(solo - batched).max()) <= tolerance * max(scale, 1e-6):
            return False
    return True
