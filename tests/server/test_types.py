from __future__ import annotations

import pytest

from mlxrpc_server.types import ENGINE_MAX_TOP_K, Sampling, SamplingChoice


def test_what_nobody_chose_takes_the_contracts_constants() -> None:
    assert SamplingChoice().resolve(7) == Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=7)


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**32 - 1])
def test_no_top_k_is_more_than_the_engine_can_count(top_k: int) -> None:
    assert SamplingChoice(top_k=top_k).resolve(0).top_k == ENGINE_MAX_TOP_K == 2**31 - 1
