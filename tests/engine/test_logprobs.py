"""Log-probabilities: the model's own, whatever a row does to its logits, and whoever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine import wire
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.logprobs import Asked, likeliest
from mlxrpc_server.engine.loop import Loop
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import LogProbs, RowId, Sampling
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import GREEDY, HandClock, Run, row
from tests.engine.test_loop import Line

MODEL = tiny.attention()
TOLERANCE = 2e-4
"""One pass over a whole text and steps through it give logits that differ in their last bits."""

CHANGED = Sampling(
    temperature=1.3,
    top_p=0.9,
    top_k=40,
    min_p=0.01,
    seed=5,
    repetition_penalty=1.5,
    presence_penalty=1.0,
    frequency_penalty=0.5,
    logit_bias=((3, 4.0), (7, -100.0)),
)

tokens = st.integers(0, tiny.VOCABULARY - 1)
values = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, float("-inf")]) | st.floats(-100, 100, width=32)


@given(
    st.integers(1, 300).flatmap(lambda width: st.lists(st.lists(values, min_size=width, max_size=width), max_size=3)),
    st.integers(0, 20),
)
def test_the_likeliest_come_in_order_and_of_equals_the_lower_id_first(rows: list[list[float]], count: int) -> None:
    rows = rows or [[1.0]]
    ids, logits = likeliest(mx.array(rows, dtype=mx.float32), count)
    given = np.array(rows, dtype=np.float32)
    order = np.argsort(-given, axis=-1, kind="stable")[:, :count]
    assert ids.tolist() == order.tolist()
    assert logits.tolist() == np.take_along_axis(given, order, axis=-1).tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_they_are_the_log_softmax_of_the_rows_that_asked(dtype: mx.Dtype) -> None:
    logits = (4 * mx.random.normal((5, 1000), key=mx.random.key(1))).astype(dtype)
    drawn = mx.array([0, 999, 5, 7, 8], dtype=mx.uint32)
    unread = Asked([3, -1, 0, 20, -1]).of(logits, drawn)
    assert unread is not None
    told = unread.read()
    expected = np.array(logits.astype(mx.float32) - mx.logsumexp(logits.astype(mx.float32), axis=-1, keepdims=True))
    assert {place: len(its.top) for place, its in told.items()} == {0: 3, 2: 0, 3: 20}
    for place, its in told.items():
        assert its.chosen == pytest.approx(expected[place, int(drawn[place])], abs=1e-5)
        assert its.top == pytest.approx(np.sort(expected[place])[::-1][: len(its.top)], abs=1e-5)
        assert its.top == pytest.approx(expected[place, list(its.top_ids)], abs=1e-5)


def test_more_than_the_vocabulary_has_are_all_of_it() -> None:
    unread = Asked([20]).of(mx.array([[0.0, 1.0, 2.0]]), mx.array([1]))
    assert unread is not None
    assert unread.read()[0].top_ids == (2, 1, 0)


def test_where_nobody_asks_nothing_is_gathered() -> None:
    assert Asked([-1, -1]).of(mx.zeros((2, 5)), mx.array([0, 1])) is None


def asking(one: Row, logprobs: int) -> Row:
    return replace(one, logprobs=logprobs)


def told(run: Run, id: int) -> list[LogProbs | None]:
    """In the order of the row's tokens."""
    return [
        its
        for outcome in run.outcomes
        for (number, _), its in zip(outcome.tokens, outcome.logprobs, strict=True)
        if number == id
    ]


def check(prompt: Sequence[int], had: Sequence[int], got: Sequence[int], its: Sequence[LogProbs | None]) -> None:
    """Against the plain log-softmax behind each beginning of the text."""
    context = [*prompt, *had]
    assert len(its) == len(got)
    for token, logprobs in zip(got, its, strict=True):
        assert logprobs is not None
        logits = tiny.logits_alone(MODEL, context).astype(mx.float32)
        expected = np.array(logits - mx.logsumexp(logits))
        assert logprobs.chosen == pytest.approx(expected[token], abs=TOLERANCE)
        assert logprobs.top == pytest.approx(expected[list(logprobs.top_ids)], abs=TOLERANCE)
        assert logprobs.top == pytest.approx(np.sort(expected)[::-1][: len(logprobs.top)], abs=TOLERANCE)
        context.append(token)


wishes = st.builds(
    row,
    id=st.just(0),
    prompt=st.lists(tokens, min_size=1, max_size=12),
    max_tokens=st.integers(1, 6),
    sampling=st.sampled_from([GREEDY, CHANGED, Sampling(0.8, 0.95, 0, 0.0, 3)]),
    produced=st.just(()),
).flatmap(lambda one: st.builds(asking, st.just(one), st.integers(-1, 20)))


@settings(max_examples=30)
@given(st.lists(wishes, min_size=1, max_size=5), st.booleans(), st.integers(1, 4))
def test_every_row_is_told_its_own_whoever_runs_beside_it(rows: list[Row], ahead: bool, max_rows: int) -> None:
    run = Run(MODEL, max_rows=max_rows, ahead=ahead)
    for number, one in enumerate(rows):
        run.batch.submit(replace(one, id=RowId(number), produced=[]))
        run.step()
    run.to_end()
    for number, one in enumerate(rows):
        if one.logprobs < 0:
            assert set(told(run, number)) == {None}
        else:
            check(one.prompt, (), run.tokens(number), told(run, number))
            assert all(its and len(its.top) == one.logprobs for its in told(run, number))


@pytest.mark.parametrize("sampling", [GREEDY, CHANGED])
def test_who_asks_gets_the_tokens_that_it_would_have_had(sampling: Sampling) -> None:
    run = Run(MODEL)
    run.batch.submit(row(1, [3, 4, 5], 20, sampling))
    run.batch.submit(asking(row(2, [3, 4, 5], 20, sampling), 5))
    run.to_end()
    assert run.tokens(1) == run.tokens(2)


@given(st.integers(0, 8))
def test_a_row_taken_up_again_is_told_of_its_new_tokens_alone(cut: int) -> None:
    run = Run(MODEL)
    run.batch.submit(row(1, [3, 4, 5], 9, CHANGED))
    whole = run.to_end().tokens(1)
    again = Run(MODEL)
    again.batch.submit(asking(row(1, [3, 4, 5], 9, CHANGED, whole[:cut]), 4))
    again.to_end()
    assert again.tokens(1) == whole[cut:]
    check([3, 4, 5], whole[:cut], whole[cut:], told(again, 1))


@pytest.mark.parametrize("ahead", [False, True])
def test_after_a_rebuild_each_token_has_been_told_once(ahead: bool) -> None:
    run = Run(MODEL, ahead=ahead)
    run.batch.submit(asking(row(1, [3, 4, 5], 9), 2))
    run.step(3)
    run.outcomes.append(run.batch.rebuild())
    run.to_end()
    assert len(run.tokens(1)) == 9
    check([3, 4, 5], (), run.tokens(1), told(run, 1))


def submit(number: int, logprobs: int) -> wire.Submit:
    return wire.Submit(RowId(number), [3, 4], [], GREEDY, 2, [], logprobs)


def frames(*submits: wire.Submit) -> list[wire.Step]:
    line = Line(list(submits), [], [])
    batch = Batch(MODEL, for_model(MODEL), max_rows=8, prefill_tokens=64, clock=HandClock())
    Loop(line, batch, tiny.VOCABULARY, HandClock()).run()
    return line.steps


def test_a_frame_has_them_beside_the_tokens() -> None:
    for step in frames(submit(1, -1), submit(2, 3)):
        assert [its and len(its.top) for its in step.logprobs] == [None, 3]
        (decoded,) = wire.Frames(wire.Up).feed(wire.encode(step))
        assert decoded == step


def test_a_frame_of_rows_that_did_not_ask_has_none() -> None:
    assert [step.logprobs for step in frames(submit(1, -1), submit(2, -1))] == [[], []]
