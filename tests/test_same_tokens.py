"""The judge of same tokens: it must be able to say no."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxrpc_server.types import Sampling
from tests.same_tokens import Judge

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)


class Constant:
    """The same logits behind every token."""

    def __init__(self, *logits: float) -> None:
        self._logits = mx.array(logits)

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.broadcast_to(self._logits, (*tokens.shape, self._logits.size))


def test_equal_tokens_are_the_same_and_no_near_tie() -> None:
    judge = Judge(Constant(1.0, 2.0))
    judge.check([5], GREEDY, [1, 1], [1, 1])
    assert judge.near_ties == []


def test_a_near_tie_passes_is_counted_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    judge = Judge(Constant(1.0, 2.0, 2.000001))
    judge.check([5], GREEDY, [2, 2, 0], [2, 1, 1])
    assert [(tie.place, tie.tokens) for tie in judge.near_ties] == [(1, (2, 1))]
    assert "near-tie 1" in capsys.readouterr().out


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=3)])
def test_tokens_that_do_not_tie_are_not_the_same(sampling: Sampling) -> None:
    with pytest.raises(AssertionError, match="no near-tie"):
        Judge(Constant(1.0, 9.0, 3.0)).check([5], sampling, [1, 1], [1, 2])


def test_fewer_tokens_are_not_the_same() -> None:
    with pytest.raises(AssertionError, match="2 of them against 1"):
        Judge(Constant(1.0, 2.0)).check([5], GREEDY, [1, 1], [1])


def test_a_token_at_the_edge_of_a_filter_is_a_near_tie() -> None:
    """Two tokens share the mass evenly but for the last bits: which of them is the nucleus, those decide."""
    judge = Judge(Constant(2.0, 2.000001, -9.0))
    narrow = Sampling(temperature=1.0, top_p=0.5, top_k=0, min_p=0.0, seed=2)
    judge.check([5], narrow, [1], [0])
    assert len(judge.near_ties) == 1


def test_a_token_that_a_filter_excludes_is_not_the_same() -> None:
    with pytest.raises(AssertionError, match="no near-tie"):
        Judge(Constant(2.0, 1.0, -9.0)).check([5], Sampling(1.0, 0.5, 0, 0.0, 1), [0], [1])
