"""Running sums in parts, which GPUs need and this suite's CPU does not."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.filters import in_parts


@pytest.mark.parametrize("inclusive", [True, False])
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), width=st.integers(1, 5000), seed=st.integers(0, 99))
def test_sums_in_parts_are_the_sums(inclusive: bool, rows: int, width: int, seed: int) -> None:
    values = mx.random.randint(0, 9, (rows, width), key=mx.random.key(seed))
    assert in_parts(values, inclusive=inclusive).tolist() == mx.cumsum(values, axis=-1, inclusive=inclusive).tolist()
