"""Running sums in parts, which GPUs need and this suite's CPU does not."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.filters import Filters, in_parts
from mlxrpc_server.types import Sampling


@pytest.mark.parametrize("inclusive", [True, False])
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), width=st.integers(1, 5000), seed=st.integers(0, 99))
def test_sums_in_parts_are_the_sums(inclusive: bool, rows: int, width: int, seed: int) -> None:
    values = mx.random.randint(0, 9, (rows, width), key=mx.random.key(seed))
    assert in_parts(values, inclusive=inclusive).tolist() == mx.cumsum(values, axis=-1, inclusive=inclusive).tolist()


def test_a_share_that_float32_cannot_tell_from_everything_keeps_everything() -> None:
    logits = mx.array([[0.0, -50.0, -100.0]])
    rows = [Sampling(temperature=1.0, top_p=share, top_k=0, min_p=0.0, seed=0) for share in (0.999999999, 0.9)]
    kept = [Filters([row]).apply(logits, logits, None).tolist() for row in rows]
    assert kept == [logits.tolist(), [[0.0, float("-inf"), float("-inf")]]]
