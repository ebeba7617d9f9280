from __future__ import annotations

import pytest

from mlxrpc_server.types import ENGINE_MAX_TOP_K, Sampling, SamplingChoice


def test_what_nobody_chose_takes_the_contracts_constants() -> None:
    assert SamplingChoice().resolve(7) == Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=7)


def test_what_nobody_chose_of_the_penalties_does_nothing() -> None:
    resolved = SamplingChoice().resolve(7)
    assert (resolved.repetition_penalty, resolved.repetition_context_size, resolved.logit_bias) == (1.0, 20, ())
    assert (resolved.presence_penalty, resolved.frequency_penalty) == (0.0, 0.0)


def test_a_choice_stands_over_another_field_by_field_and_a_map_as_a_whole() -> None:
    default = SamplingChoice(temperature=0.5, presence_penalty=1.0, logit_bias=((1, 1.0), (2, 2.0)))
    chosen = SamplingChoice(presence_penalty=0.0, logit_bias=((3, 3.0),))
    assert chosen.over(default) == SamplingChoice(temperature=0.5, presence_penalty=0.0, logit_bias=((3, 3.0),))


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**32 - 1])
def test_no_top_k_is_more_than_the_engine_can_count(top_k: int) -> None:
    assert SamplingChoice(top_k=top_k).resolve(0).top_k == ENGINE_MAX_TOP_K == 2**31 - 1
