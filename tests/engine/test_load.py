"""Loading: what can be served, how, and why not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlxrpc_server.engine import device
from mlxrpc_server.engine.blocks import Blocks
from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.load import CannotLoad, load, proven
from mlxrpc_server.types import RowId
from tests import noise_model
from tests.engine import tiny

on_cpu = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices take weights as they are")

PROBE = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]


def copy(folder: Path) -> Path:
    return Path(shutil.copytree(noise_model.folder(), folder / "model"))


def change(folder: Path, **values: Any) -> Path:
    """The folder with these keys of its config; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | values
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change_weights(folder: Path, name: str, array: mx.array | None) -> Path:
    path = folder / "model.safetensors"
    weights: dict[str, mx.array] = dict(mx.load(str(path)))  # type: ignore[arg-type]
    mx.eval(weights)
    weights.pop(name)
    if array is not None:
        weights[name] = array
    path.unlink()
    mx.save_safetensors(str(path), weights)
    return folder


def nothing(_stage: str) -> None:
    pass


def cause(folder: Path) -> str:
    with pytest.raises(CannotLoad) as caught:
        load(folder, nothing)
    return str(caught.value)


def test_a_model_is_batched_and_measured() -> None:
    reports: list[str] = []
    loaded = load(noise_model.folder(), reports.append)
    assert loaded.batched
    assert loaded.vocabulary_size == loaded.model(mx.array([[1]])).shape[-1] == 1_280
    assert loaded.dtype == mx.float32
    assert loaded.parameter_count > 1_000_000
    assert reports == ["config", "weights", "memory", "warm-up", "ready"]


def test_an_empty_folder_says_which_file_is_missing(tmp_path: Path) -> None:
    assert "config.json" in cause(tmp_path)


def test_a_config_without_a_type_says_so(tmp_path: Path) -> None:
    assert cause(change(copy(tmp_path), model_type=None)) == "config.json has no 'model_type'"


def test_an_unsupported_type_is_named_before_any_weight_is_read(tmp_path: Path) -> None:
    folder = change(copy(tmp_path), model_type="perceptron9000")
    (folder / "model.safetensors").unlink()
    assert "perceptron9000 not supported" in cause(folder)


def test_a_config_that_is_no_json_says_so(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "config.json").write_text('{"model_type": ')
    assert cause(folder).startswith("config.json: ")


def test_missing_weight_files_are_named(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "no model*.safetensors in" in cause(folder)


def test_a_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "model.norm.weight" in cause(change_weights(copy(tmp_path), "model.norm.weight", None))


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    assert "model.norm.weight" in cause(change_weights(copy(tmp_path), "model.norm.weight", mx.ones((3,))))


def test_a_weight_file_that_was_cut_off_is_a_cause_in_words(tmp_path: Path) -> None:
    path = copy(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(cause(path.parent).split()) > 3


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    broken = change_weights(copy(tmp_path), "model.norm.weight", mx.full((192,), float("nan")))
    assert cause(broken) == "its logits are not finite numbers"


def rewritten(folder: Path, rewrite: Callable[[Any], None], **config: Any) -> Path:
    """The noise model after a change of its weights."""
    copied = change(copy(folder), **config)
    model, _config = load_model(copied)
    rewrite(model)
    mx.eval(model.parameters())
    (copied / "model.safetensors").unlink()
    mx.save_safetensors(str(copied / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return copied


def test_half_precision_becomes_float32_on_a_cpu_which_is_slow_at_it(tmp_path: Path) -> None:
    loaded = load(rewritten(tmp_path, lambda model: model.set_dtype(mx.bfloat16)), nothing)
    assert loaded.dtype == (mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.bfloat16)
    assert loaded.batched


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In 4 bits, with scales in bfloat16, as most models are published."""

    def rewrite(model: Any) -> None:
        model.set_dtype(mx.bfloat16)
        quantize(model, 64, 4)

    folder = rewritten(tmp_path_factory.mktemp("quantized"), rewrite)
    return change(folder, quantization={"group_size": 64, "bits": 4})


@on_cpu
def test_quantized_weights_become_float32_on_a_cpu_which_is_slow_at_them(quantized: Path) -> None:
    loaded, kept = load(quantized, nothing), load(quantized, nothing, keep_quantized=True)
    parameters: dict[str, mx.array] = dict(tree_flatten(loaded.model.parameters()))
    assert {array.dtype for array in parameters.values()} == {mx.float32}
    assert loaded.batched
    assert loaded.dtype == mx.float32
    assert loaded.parameter_count == kept.parameter_count == load(noise_model.folder(), nothing).parameter_count


@on_cpu
def test_weights_in_float32_are_what_the_quantized_ones_stand_for(quantized: Path) -> None:
    """To the last bit of a scale in bfloat16 and in float32 alike: the product is not rounded on its way."""
    layer = load(quantized, nothing).model.layers[1].mlp.up_proj
    stored: dict[str, mx.array] = dict(mx.load(str(quantized / "model.safetensors")))  # type: ignore[arg-type]
    weight, scales, biases = (stored[f"model.layers.1.mlp.up_proj.{part}"] for part in ("weight", "scales", "biases"))
    places = (weight[:, :, None] >> (4 * mx.arange(8))) & 15
    grouped = places.reshape(weight.shape[0], -1, 64).astype(mx.float32)
    expected = grouped * scales[..., None].astype(mx.float32) + biases[..., None].astype(mx.float32)
    assert float(mx.abs(layer.weight - expected.reshape(layer.weight.shape)).max()) < 1e-6


def test_quantized_weights_stay_as_they_are_where_they_are_to_be_measured(quantized: Path) -> None:
    kept = load(quantized, nothing, keep_quantized=True)
    assert kept.batched
    assert kept.dtype == mx.bfloat16
    assert kept.model.layers[0].mlp.up_proj.bits == 4


@on_cpu
def test_weights_stay_as_they_are_where_float32_would_take_more_than_half_of_the_free_memory(quantized: Path) -> None:
    needed = 2 * 4 * load(quantized, nothing).parameter_count
    assert load(quantized, nothing, free_bytes=lambda: needed).dtype == mx.float32
    tight = load(quantized, nothing, free_bytes=lambda: needed - 2)
    assert tight.dtype == mx.bfloat16
    assert tight.model.layers[0].mlp.up_proj.bits == 4


@on_cpu
def test_other_ways_of_quantizing_become_float32_too(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda model: quantize(model, 32, 4, mode="mxfp4"))
    loaded = load(change(folder, quantization={"group_size": 32, "bits": 4, "mode": "mxfp4"}), nothing)
    parameters: dict[str, mx.array] = dict(tree_flatten(loaded.model.parameters()))
    assert {array.dtype for array in parameters.values()} == {mx.float32}


def test_the_free_memory_is_some_and_not_more_than_all() -> None:
    assert 0 < device.free_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Misbehaving:
    """The model where each row is alone, and something else where several are decoded together."""

    def __init__(self, model: Any, raises: Exception | None = None, adds: float = 1.0) -> None:
        self.layers = model.layers
        self._model = model
        self._raises = raises
        self._adds = adds

    def modules(self) -> Any:
        return self._model.modules()

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        if tokens.shape[0] == 1:
            return logits
        if self._raises is not None:
            raise self._raises
        return logits + self._adds * mx.arange(tokens.shape[0])[:, None, None]


def test_a_model_that_agrees_with_itself_is_batched() -> None:
    assert isinstance(proven(tiny.attention(), PROBE, mx.float32), Blocks)


def test_a_model_that_gives_other_logits_in_a_batch_runs_in_lanes() -> None:
    assert isinstance(proven(Misbehaving(tiny.attention()), PROBE, mx.float32), Lanes)


def test_a_model_whose_logits_in_a_batch_are_no_numbers_runs_in_lanes() -> None:
    assert isinstance(proven(Misbehaving(tiny.attention(), adds=float("nan")), PROBE, mx.float32), Lanes)


def test_a_model_that_raises_in_a_batch_runs_in_lanes() -> None:
    model = Misbehaving(tiny.attention(), raises=ValueError("one row at a time"))
    assert isinstance(proven(model, PROBE, mx.float32), Lanes)


def test_proving_leaves_no_row_behind() -> None:
    model = tiny.attention()
    kv = proven(model, PROBE, mx.float32)
    cache = kv.open()
    model(mx.array([[4, 5]]), cache=cache)
    kv.join([RowId(7)], cache, [2])
    assert kv.arrange() == [7]
    assert float(mx.abs(kv.decode(mx.array([6]))[0] - tiny.logits_alone(model, [4, 5, 6])).max()) < 1e-4
