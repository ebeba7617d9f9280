from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from mlxrpc_server.engine import panels
from tests.engine.tiny import made

BESIDE = mx.new_stream(mx.Device(mx.cpu))
TOKENS = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def model(*, tied: bool = True) -> Any:
    arguments = qwen3.ModelArgs(
        model_type="qwen3",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=192,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,  # whose 32 keys are no whole panel
        rms_norm_eps=1e-6,
        vocab_size=128,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        tie_word_embeddings=tied,
    )
    return made(qwen3.Model, arguments)


def sizes(model: Any) -> dict[str, int]:
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return {name: array.size for name, array in parameters.items()}


def whole_numbers(*shape: int) -> mx.array:
    """Small ones, whose sums are exact in any order."""
    return (mx.arange(math.prod(shape)) * 7 % 11 - 5).reshape(shape).astype(mx.float32)


@given(
    shape=st.lists(st.integers(1, 6), max_size=2),
    count=st.integers(0, 150),
    inputs=st.sampled_from([1, 40, 300, 1000]),
)
@example(shape=[], count=2, inputs=20_000)
def test_a_product_with_panels_is_that_with_their_matrix(shape: list[int], count: int, inputs: int) -> None:
    rows, weight = whole_numbers(*shape, count, inputs), whole_numbers(128, inputs)
    assert mx.array_equal(panels.product(rows, panels.panels(weight)), rows @ weight.T)


@given(count=st.integers(0, 200), outputs=st.integers(1, 5), inputs=st.sampled_from([40, 1000]))
def test_two_cores_give_to_the_last_bit_what_one_gives(count: int, outputs: int, inputs: int) -> None:
    rows = mx.random.normal((count, inputs), key=mx.random.key(count))
    weight = panels.panels(mx.random.normal((outputs * panels.WIDTH, inputs), key=mx.random.key(outputs)))
    halved = panels.of_two_cores(rows, weight, BESIDE)
    assert mx.array_equal(halved, panels.of_one_core(rows, weight))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gives_the_same_logits_from_panels(*, tied: bool) -> None:
    plain, laid_out = model(tied=tied), model(tied=tied)
    panels.install(laid_out)
    assert mx.allclose(laid_out(TOKENS), plain(TOKENS), rtol=1e-4, atol=1e-4)


def test_weights_keep_their_names_and_sizes() -> None:
    laid_out = model()
    before = sizes(laid_out)
    panels.install(laid_out)
    assert sizes(laid_out) == before


def test_matrices_of_whole_panels_are_laid_out() -> None:
    laid_out = model()
    # Of each layer the queries, the output and the three of the network behind it, and the embedding.
    assert panels.install(laid_out) == 2 * 5 + 1
    assert type(laid_out.layers[0].self_attn.k_proj) is Linear


def test_a_model_is_laid_out_once() -> None:
    laid_out = model()
    panels.install(laid_out)
    assert panels.install(laid_out) == 0


def test_an_embedding_that_gives_no_logits_stays() -> None:
    laid_out = model(tied=False)
    panels.install(laid_out)
    assert type(laid_out.model.embed_tokens) is Embedding
    assert type(laid_out.lm_head) is panels.PanelLinear


def test_an_embedding_in_panels_finds_its_rows() -> None:
    plain, laid_out = model(), model()
    panels.install(laid_out)
    assert mx.array_equal(laid_out.model.embed_tokens(TOKENS), plain.model.embed_tokens(TOKENS))


class Biased(Module):
    """Gives what one layer does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed = Embedding(10, 64)
        self.linear = Linear(64, 128)

    def __call__(self, tokens: mx.array) -> mx.array:
        logits: mx.array = self.linear(self.embed(tokens))
        return logits


class Bare(Biased):
    """Reads the weight itself, as some models of mlx-lm do."""

    def __call__(self, tokens: mx.array) -> mx.array:
        logits: mx.array = self.embed(tokens) @ self.linear.weight.T
        return logits


def test_a_bias_is_added() -> None:
    biased = Biased()
    expected = biased(TOKENS)
    assert panels.install(biased) == 1
    assert mx.allclose(biased(TOKENS), expected, atol=1e-5)


def test_a_model_that_reads_its_weights_itself_stays() -> None:
    bare = Bare()
    expected = bare(TOKENS)
    assert panels.install(bare) == 0
    assert type(bare.linear) is Linear
    assert mx.array_equal(bare(TOKENS), expected)


def test_panels_pay_where_openblas_has_kernels_for_small_products() -> None:
    assert panels.pay("scipy-openblas32 0.3.34 SkylakeX")
    assert not panels.pay("scipy-openblas32 0.3.34 Haswell")
    assert not panels.pay("reference")


def test_half_precision_stays() -> None:
    laid_out = model()
    laid_out.set_dtype(mx.bfloat16)
    assert panels.install(laid_out) == 0
