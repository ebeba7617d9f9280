"""Blocks that take a step in few launches, with MLX's own operations in the kernels' place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.models.cache import make_prompt_cache

from mlxrpc_server.engine import quick
from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.kernels.product import Layer, Norm
from mlxrpc_server.engine.paged import Paged, form_of
from mlxrpc_server.types import RowId
from tests.engine import tiny

HEAD = 64
PROMPTS = [[5, 6, 7, 8], [9], list(range(40))]
TOLERANCE = 4e-2


class Launches:
    """What was launched, and the operations that it stands for."""

    def __init__(self, wrong: float = 1.0) -> None:
        self.names: list[str] = []
        self._wrong = wrong

    def products(self, x: mx.array, layers: Sequence[Layer], norm: Norm | None = None) -> list[mx.array]:
        self.names.append("products")
        return [_product(_normed(x, norm), layer) * self._wrong for layer in layers]

    def added(self, x: mx.array, layer: Layer, to: mx.array) -> mx.array:
        self.names.append("added")
        return to + _product(x, layer)

    def gated(self, x: mx.array, gate: Layer, up: Layer, norm: Norm | None = None) -> mx.array:
        self.names.append("gated")
        normed = _normed(x, norm)
        opened = _product(normed, gate)
        return opened * mx.sigmoid(opened) * _product(normed, up)


def _normed(x: mx.array, norm: Norm | None) -> mx.array:
    return x if norm is None else mx.fast.rms_norm(x, norm.weight, norm.eps)


def _product(x: mx.array, layer: Layer) -> mx.array:
    product = x @ layer.weight.T
    return product if layer.bias is None else product + layer.bias


HALVED: dict[str, Any] = {"factor": 2.0, "rope_type": "llama3", "original_max_position_embeddings": 64}


def qwen3_model() -> Any:
    return tiny.half(tiny.attention(head_size=HEAD))


def qwen2_model() -> Any:
    """With biases."""
    return tiny.half(tiny.made(qwen2.Model, qwen2.ModelArgs("qwen2", **tiny.SIZES | {"hidden_size": 4 * HEAD})))


def llama_model() -> Any:
    """With turns of its own."""
    arguments = llama.ModelArgs("llama", **tiny.SIZES, head_dim=HEAD, rope_scaling=HALVED)
    return tiny.half(tiny.made(llama.Model, arguments))


class Squared(Module):
    """Feeds forward as no block of mlx-lm's does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.only = Linear(tiny.SIZES["hidden_size"], tiny.SIZES["hidden_size"])

    def __call__(self, x: mx.array) -> mx.array:
        fed: mx.array = mx.square(self.only(x))
        return fed


def squared_model() -> Any:
    model = qwen3_model()
    for layer in model.layers:
        layer.mlp = Squared()
    return tiny.half(model)


MODELS = [qwen3_model, qwen2_model, llama_model, squared_model]


def stepped(model: Any, steps: int = 3) -> mx.array:
    """The logits of some steps of rows in pages, which are fed with the same tokens every time."""
    cache = make_prompt_cache(model)
    model(mx.array([[1, 2]]), cache=cache)
    form = form_of(model, cache)
    assert form is not None
    kv = Paged(model, form, PlainStore(form, 4))
    for row, prompt in enumerate(PROMPTS):
        opened = kv.open()
        model(mx.array([prompt]), cache=opened)
        kv.join([RowId(row)], opened, [len(prompt)])
    logits = []
    for step in range(steps):
        kv.arrange()
        logits.append(kv.decode(mx.array([11 + step, 12, 13])).astype(mx.float32))
    return mx.stack(logits)


def assert_near(after: mx.array, before: mx.array) -> None:
    assert float(mx.abs(after - before).max()) <= TOLERANCE * float(mx.abs(before).max())


@pytest.mark.parametrize("make", MODELS)
def test_a_model_gives_what_it_gave(make: Callable[[], Any]) -> None:
    model = make()
    before = stepped(model)
    assert len(quick.install(model, HEAD, Launches())) == 2
    assert_near(stepped(model), before)


def test_a_step_takes_five_launches_a_block_with_that_of_attention() -> None:
    model, launches = qwen3_model(), Launches()
    quick.install(model, HEAD, launches)
    launches.names.clear()
    stepped(model, steps=1)
    assert launches.names == ["products", "added", "gated", "added"] * 2


def test_what_feeds_forward_in_another_way_is_left_to_the_block() -> None:
    model, launches = squared_model(), Launches()
    quick.install(model, HEAD, launches)
    launches.names.clear()
    stepped(model, steps=1)
    assert launches.names == ["products", "added"] * 2


def test_prompts_go_their_own_way() -> None:
    model, launches = qwen3_model(), Launches()
    before = model(mx.array(PROMPTS[:1]), cache=make_prompt_cache(model))
    quick.install(model, HEAD, launches)
    launches.names.clear()
    assert mx.array_equal(model(mx.array(PROMPTS[:1]), cache=make_prompt_cache(model)), before)
    assert launches.names == []


def test_parameters_stay_what_and_where_they_are() -> None:
    model = qwen3_model()
    before = dict(tree_flatten(model.parameters()))
    quick.install(model, HEAD, Launches())
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_what_was_installed_can_be_removed() -> None:
    model = qwen3_model()
    kinds = [type(module) for module in model.modules()]
    quick.install(model, HEAD, Launches())
    assert [type(module) for module in model.modules()] != kinds
    quick.remove(model)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_a_block_is_as_it_was_where_its_quick_step_differs(wrong: float, caplog: pytest.LogCaptureFixture) -> None:
    model = qwen3_model()
    with caplog.at_level(logging.WARNING):
        assert quick.install(model, HEAD, Launches(wrong)) == []
    assert not [module for module in model.modules() if isinstance(module, quick.Quick)]
    assert "their own steps" in caplog.text


def test_a_block_is_as_it_was_where_a_kernel_does_not_run() -> None:
    class Broken(Launches):
        def added(self, x: mx.array, layer: Layer, to: mx.array) -> mx.array:
            raise RuntimeError("it does not compile")

    model = qwen3_model()
    assert quick.install(model, HEAD, Broken()) == []
    assert not [module for module in model.modules() if isinstance(module, quick.Quick)]


def other_scale(model: Any) -> None:
    """Only the block's own code knows of it."""

    class Cooler(type(model.layers[1].self_attn)):  # type: ignore[misc]
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            cooled: mx.array = super().__call__(x, mask, cache) * 0.5
            return cooled

    model.layers[1].self_attn.__class__ = Cooler


def test_a_block_that_does_something_of_its_own_takes_its_own_steps() -> None:
    model = qwen3_model()
    other_scale(model)
    before = stepped(model)
    assert len(quick.install(model, HEAD, Launches())) == 1
    assert [isinstance(layer, quick.Quick) for layer in model.layers] == [True, False]
    assert_near(stepped(model), before)


class Deaf(qwen3.Attention):
    """Sees all of each row, whatever it is told."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        attended: mx.array = super().__call__(x, None, cache)
        return attended


class Particular(qwen3.TransformerBlock):
    """Is called in a way of its own."""

    def __call__(  # type: ignore[override]
        self, x: mx.array, scale: float, mask: Any = None, cache: Any = None
    ) -> mx.array:
        scaled: mx.array = super().__call__(x * scale, mask, cache)
        return scaled


def deaf(model: Any) -> None:
    for layer in model.layers:
        layer.self_attn.__class__ = Deaf


def particular(model: Any) -> None:
    for layer in model.layers:
        layer.__class__ = Particular


def other_norms(model: Any) -> None:
    for layer in model.layers:
        layer.input_layernorm.weight = layer.input_layernorm.weight.astype(mx.float32)


@pytest.mark.parametrize("change", [deaf, particular, other_norms])
def test_blocks_that_only_look_alike_take_their_own_steps(change: Callable[[Any], None]) -> None:
    model = qwen3_model()
    change(model)
    assert quick.install(model, HEAD, Launches()) == []
    assert not [module for module in model.modules() if isinstance(module, quick.Quick)]


def test_a_block_with_two_places_is_one() -> None:
    model = qwen3_model()
    model.layers[1] = model.layers[0]
    before = stepped(model)
    assert len(quick.install(model, HEAD, Launches())) == 1
    assert_near(stepped(model), before)


@pytest.mark.parametrize("rows", [17, 65])
def test_a_kernel_that_is_wrong_for_many_rows_is_found_out(rows: int) -> None:
    class WrongFromThere(Launches):
        def added(self, x: mx.array, layer: Layer, to: mx.array) -> mx.array:
            return super().added(x, layer, to) * (1.5 if len(x) >= rows else 1.0)

    assert quick.install(qwen3_model(), HEAD, WrongFromThere()) == []


def test_more_rows_than_the_kernels_take_go_their_own_way() -> None:
    model, launches = qwen3_model(), Launches()
    quick.install(model, HEAD, launches)
    block = model.layers[0]
    assert [block.step.takes(mx.zeros((rows, 1, 32), mx.bfloat16)) for rows in (1, 128, 129)] == [True, True, False]
    assert not block.step.takes(mx.zeros((1, 1, 32), mx.float32))


@pytest.mark.parametrize("make", [tiny.sliding_window, tiny.attention, tiny.recurrent])
def test_blocks_of_another_build_are_left_alone(make: Callable[[], Any]) -> None:
    assert quick.install(make(), HEAD, Launches()) == []
