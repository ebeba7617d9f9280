from __future__ import annotations

import math

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models import activations, qwen3

from mlxrpc_server.engine import exponentials
from tests.engine import tiny


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def attended(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask="causal")


@given(st.lists(st.floats(exponentials.LEAST, exponentials.MOST, width=32), min_size=1, max_size=50))
def test_an_exponential_is_right_to_the_last_places(numbers: list[float]) -> None:
    found = exponentials.exponential(mx.array(numbers))
    # A number of float32 is itself no closer than this to what it stands for, and the more so the larger it is.
    for number, power in zip(numbers, found, strict=True):
        assert float(power) == pytest.approx(math.exp(number), rel=1e-6 + 2e-7 * abs(number))


def test_an_exponential_of_next_to_nothing_is_next_to_nothing() -> None:
    found = exponentials.exponential(mx.array([-math.inf, -1e30, -200.0]))
    assert bool(mx.all((found >= 0) & (found < 1e-37)))


def test_an_exponential_of_no_number_is_none() -> None:
    assert bool(mx.isnan(exponentials.exponential(mx.array([math.nan]))).all())


def test_a_gate_is_that_of_mlx_lm() -> None:
    gate, x = 40 * normal(4, 8192), normal(4, 8192, seed=1)
    assert gate.size > exponentials.MANY
    assert mx.allclose(exponentials.swiglu(gate, x), activations.swiglu(gate, x), rtol=1e-5, atol=1e-6)


def test_few_numbers_and_half_precision_pass_the_gate_of_mlx_lm() -> None:
    few, half = normal(1, 64), normal(4, 8192).astype(mx.bfloat16)
    assert mx.array_equal(exponentials.swiglu(few, few), activations.swiglu(few, few))
    assert mx.array_equal(exponentials.swiglu(half, half), activations.swiglu(half, half))


def test_the_gates_of_a_model_come_here() -> None:
    exponentials.route(tiny.attention())
    assert vars(qwen3)["swiglu"] is exponentials.swiglu


@given(rows=st.integers(1, 3), groups=st.integers(1, 2), asked=st.integers(1, 150), before=st.integers(0, 70))
def test_attention_is_that_of_mlx(rows: int, groups: int, asked: int, before: int) -> None:
    queries = normal(rows, 4, asked, 8)
    keys, values = normal(rows, groups, before + asked, 8, seed=1), normal(rows, groups, before + asked, 8, seed=2)
    found = exponentials.attend(queries, keys, values, 0.3)
    assert mx.allclose(found, attended(queries, keys, values), rtol=1e-4, atol=1e-5)


def test_a_prompt_suits_and_a_token_or_another_mask_does_not() -> None:
    prompt, token, causal = normal(1, 4, 64, 8), normal(1, 4, 1, 8), "causal"
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    assert exponentials.suits(prompt, causal, None) == on_cpu
    assert not exponentials.suits(token, causal, None)
    assert not exponentials.suits(prompt, mx.ones((64, 64), dtype=mx.bool_), None)
    assert not exponentials.suits(prompt, causal, normal(4))
    assert not exponentials.suits(prompt.astype(mx.float16), causal, None)


def test_its_slope_is_its_value() -> None:
    values = mx.array([-3.0, 0.0, 1.5])
    slope = mx.grad(lambda x: exponentials.exponential(x).sum())(values)
    assert mx.allclose(slope, mx.exp(values), rtol=1e-5)
