"""Linear layers that answer together, with MLX's own products in the kernel's place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2

from mlxrpc_server.engine import thin
from mlxrpc_server.engine.kernels.product import Layer, form
from tests.engine import tiny

ROWS = mx.array([[3, 1, 4, 1, 5]])


class Launches:
    """Products as a device would give them, and of how many layers each launch was."""

    def __init__(self, wrong: float = 1.0) -> None:
        self.sizes: list[int] = []
        self._wrong = wrong

    def __call__(self, x: mx.array, layers: Sequence[Layer]) -> list[mx.array]:
        self.sizes.append(len(layers))
        biases = [0.0 if layer.bias is None else layer.bias for layer in layers]
        return [self._wrong * (x @ layer.weight.T) + bias for layer, bias in zip(layers, biases, strict=True)]


def biased() -> Any:
    """Queries, keys and values with a bias, and nothing else."""
    arguments = qwen2.ModelArgs("qwen2", **tiny.SIZES | {"tie_word_embeddings": False})
    return tiny.half(tiny.made(qwen2.Model, arguments))


def installed(model: Any, launches: Launches) -> int:
    """And forgets what was launched to find out."""
    count = thin.install(model, launches)
    launches.sizes.clear()
    return count


@pytest.mark.parametrize(
    "make", [lambda: tiny.half(tiny.attention()), biased, lambda: tiny.half(tiny.sliding_window())]
)
def test_a_model_gives_what_it_gave(make: Callable[[], Any]) -> None:
    model, launches = make(), Launches()
    before = model(ROWS)
    assert installed(model, launches) > 0
    assert mx.allclose(model(ROWS), before, atol=2e-2 * float(mx.abs(before).max()))


def test_queries_keys_and_values_are_one_launch_and_so_are_gate_and_up() -> None:
    model, launches = tiny.half(tiny.attention()), Launches()
    assert installed(model, launches) == 14
    mx.eval(model(ROWS))
    assert launches.sizes == [3, 1, 2, 1] * 2


def test_many_rows_take_the_usual_product() -> None:
    model, launches = tiny.half(tiny.attention()), Launches()
    installed(model, launches)
    mx.eval(model(mx.zeros((2, 65), mx.uint32)))
    assert launches.sizes == []
    mx.eval(model(mx.zeros((2, 64), mx.uint32)))
    assert launches.sizes == [3, 1, 2, 1] * 2


def test_parameters_stay_what_and_where_they_are() -> None:
    model = tiny.half(tiny.attention())
    before = dict(tree_flatten(model.parameters()))
    thin.install(model, Launches())
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_a_model_is_as_it_was_where_products_differ(wrong: float, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.half(tiny.attention())
    before = dict(model.named_modules())
    with caplog.at_level(logging.WARNING):
        assert thin.install(model, Launches(wrong)) == 0
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert "MLX's products" in caplog.text


def test_a_model_is_as_it_was_where_the_kernel_does_not_run() -> None:
    def broken(_x: mx.array, _layers: Sequence[Layer]) -> list[mx.array]:
        raise RuntimeError("it does not compile")

    model = tiny.half(tiny.attention())
    assert thin.install(model, broken) == 0
    assert not [module for module in model.modules() if isinstance(module, thin.Thin)]


def test_layers_that_do_not_suit_are_left_alone() -> None:
    model = tiny.attention()  # in float32
    assert thin.install(model, Launches()) == 0


class Changing(Module):
    """Changes in place what it has asked its first layer with, and asks the second with that."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first, self.second = Linear(8, 16), Linear(8, 16)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = mx.ones((*tokens.shape, 8), mx.bfloat16)
        before = self.first(x)
        x += 1
        answer: mx.array = before + self.second(x)
        return answer


def test_a_model_that_changes_its_input_in_place_keeps_its_products() -> None:
    model = Changing()
    model.set_dtype(mx.bfloat16)
    assert thin.install(model, Launches()) == 0


def linears(count: int) -> list[thin.Thin]:
    """That ask nobody yet."""
    return [thin.Thin(Linear(32, 48, bias=False), thin.Thin.usual) for _ in range(count)]


@pytest.fixture
def compiling() -> Iterator[None]:
    mx.enable_compile()
    yield
    if mx.default_device() == mx.Device(mx.cpu):  # as conftest.py leaves it
        mx.disable_compile()


@pytest.mark.usefixtures("compiling")
def test_a_compiled_step_has_the_launches_of_its_trace() -> None:
    launches, (first, second) = Launches(), linears(2)
    first.answer = second.answer = thin.Together([first, second], launches)
    step = mx.compile(lambda x: mx.concatenate([first(x), second(x)]))
    for x in (mx.ones((1, 32)), mx.arange(32.0)[None]):
        assert mx.allclose(step(x), mx.concatenate([first.usual(x), second.usual(x)]))
    assert launches.sizes == [2]


def test_layers_that_are_not_asked_together_any_more_have_launches_of_their_own() -> None:
    launches, (first, second) = Launches(), linears(2)
    together = thin.Together([first, second], launches)
    inputs = [mx.full((1, 32), number) for number in range(3)]
    for x in inputs:
        assert mx.allclose(together(first, x), first.usual(x))
    assert mx.allclose(together(second, inputs[2]), second.usual(inputs[2]))
    assert launches.sizes == [2, 1, 1, 1]


def test_a_layer_may_be_asked_twice_and_in_any_order() -> None:
    launches, (first, second) = Launches(), linears(2)
    together, x = thin.Together([first, second], launches), mx.ones((1, 32))
    for layer in (second, second, first, first, second):
        assert mx.allclose(together(layer, x), layer.usual(x))
    assert launches.sizes == [2, 1, 2]


def test_layers_are_joined_by_what_they_are_asked_with() -> None:
    a, b, c, d, e = layers = linears(5)
    x, y = mx.ones((1, 32)), mx.ones((1, 32))
    c["bias"] = mx.zeros((48,))
    names = dict(zip(map(id, layers), "abcde", strict=True))
    seen = [(a, x), (b, x), (c, x), (d, y), (e, y), (e, x)]
    assert ["".join(names[id(layer)] for layer in group) for group in thin.groups(seen)] == ["e", "ab", "c", "d"]


def test_one_launch_takes_no_more_layers_than_the_kernel() -> None:
    x = mx.ones((1, 32))
    assert [len(group) for group in thin.groups([(layer, x) for layer in linears(5)])] == [3, 2]


@given(
    rows=st.integers(1, 128),
    widths=st.lists(st.integers(1, 4000).map(lambda eights: 8 * eights), min_size=1, max_size=3),
    shared=st.sampled_from([96 << 10, 160 << 10, 224 << 10]),
    normed=st.booleans(),
    gated=st.booleans(),
)
def test_a_product_has_a_form_for_every_block_of_memory(
    rows: int, widths: list[int], shared: int, *, normed: bool, gated: bool
) -> None:
    chosen = form(rows, widths, 1024, shared, normed=normed, gated=gated)
    beside, above = chosen.blocks(rows, widths)
    assert chosen.gates or not gated
    assert chosen.bytes <= shared
    assert above * 8 * chosen.tiles >= rows
    assert beside * chosen.tall >= sum(widths)
