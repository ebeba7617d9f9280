"""Rows that may not end before they have their fewest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.minimum import Minimum
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId
from tests.engine import tiny
from tests.engine.running import Run, row

MODEL = tiny.attention()
TOLERANCE = 1e-3
"""Of logits: steps and one pass differ in their last bits."""

tokens = st.integers(0, tiny.VOCABULARY - 1)


def held(one: Row, min_tokens: int) -> Row:
    return replace(one, min_tokens=min_tokens)


def allowed_logits(context: Sequence[int], forbidden: Sequence[int]) -> mx.array:
    logits = tiny.logits_alone(MODEL, context)
    if forbidden:
        logits[mx.array(list(forbidden))] = -mx.inf
    return logits


def greedy(prompt: Sequence[int], stop_ids: Sequence[int], min_tokens: int, max_tokens: int) -> list[int]:
    """The likeliest token at each place, by one pass for each; one that would end the text only where it may."""
    produced: list[int] = []
    while len(produced) < max_tokens:
        allowed = allowed_logits([*prompt, *produced], stop_ids if len(produced) < min_tokens else ())
        produced.append(int(mx.argmax(allowed)))
        if produced[-1] in stop_ids:
            return produced
    return produced


def check(prompt: Sequence[int], stop_ids: Sequence[int], min_tokens: int, got: Sequence[int]) -> None:
    """Each token is the likeliest that its place allows, or ties with it, and none follows one that ends the row."""
    for place, token in enumerate(got):
        allowed = allowed_logits([*prompt, *got[:place]], stop_ids if place < min_tokens else ())
        assert float(allowed.max() - allowed[token]) < TOLERANCE
        assert token not in stop_ids or place == len(got) - 1


@settings(max_examples=40)
@given(
    prompt=st.lists(tokens, min_size=1, max_size=8),
    stop_ids=st.lists(tokens, unique=True, max_size=60),
    min_tokens=st.integers(0, 8),
    cut=st.integers(0, 8),
    ahead=st.booleans(),
)
def test_until_then_nothing_that_ends_a_row_is_drawn(
    prompt: list[int], stop_ids: list[int], min_tokens: int, cut: int, ahead: bool
) -> None:
    had = greedy(prompt, stop_ids, min_tokens, 8)[:-1][:cut]
    run = Run(MODEL, ahead=ahead)
    run.batch.submit(row(2, prompt, 12))
    run.batch.submit(held(row(1, prompt, 8, produced=had, stop_ids=stop_ids), min_tokens))
    run.to_end()
    got = had + run.tokens(1)
    check(prompt, stop_ids, min_tokens, got)
    assert run.left(1) == [Left.STOP_TOKEN if got[-1] in stop_ids else Left.LENGTH]
    assert len(got) == 8 or len(got) > min_tokens
    check(prompt, (), 0, run.tokens(2))


def test_rows_with_one_another_stop_ids_are_held_apart() -> None:
    first = greedy([3, 4, 5], [], 0, 1)
    run = Run(MODEL)
    run.batch.submit(held(row(1, [3, 4, 5], 4, stop_ids=[*first, 7, 8]), 2))
    run.batch.submit(row(2, [3, 4, 5], 4, stop_ids=first))
    run.batch.submit(held(row(3, [3, 4, 5], 4, stop_ids=[9]), 4))
    run.to_end()
    assert run.tokens(1)[0] not in first
    assert (run.tokens(2), run.left(2)) == (first, [Left.STOP_TOKEN])
    assert run.tokens(3)[:1] == first


@pytest.mark.parametrize("steps", [1, 3])
def test_a_minimum_outlives_a_rebuild(steps: int) -> None:
    stop = greedy([3, 4, 5], [], 0, 1)
    run = Run(MODEL, ahead=True)
    run.batch.submit(held(row(1, [3, 4, 5], 9, stop_ids=stop), 6))
    run.step(steps)
    run.outcomes.append(run.batch.rebuild())
    run.to_end()
    assert run.tokens(1) == greedy([3, 4, 5], stop, 6, 9)


def test_rows_that_may_end_cost_nothing() -> None:
    logits = mx.zeros((2, tiny.VOCABULARY))
    early = held(row(1, [3], stop_ids=[5]), 1)
    minimum = Minimum([early, row(2, [3], stop_ids=[6])])
    assert minimum.apply(logits)[:, 5].tolist() == [float("-inf"), 0.0]
    early.unread += 1
    assert minimum.apply(logits) is logits
    assert Minimum([held(row(RowId(1), [3]), 5)]).apply(logits) is logits
