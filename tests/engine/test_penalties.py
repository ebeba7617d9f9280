"""Biases and penalties: what mlx-lm's own do, over all rows at once and with the last token still unread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from mlxrpc_server.engine.penalties import ENDLESS, History
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling

VOCABULARY = 12
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)

tokens = st.integers(0, VOCABULARY - 1)
numbers = st.floats(-2, 2, width=32)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.just(1.0),
    top_k=st.just(0),
    min_p=st.just(0.0),
    seed=st.integers(0, 9),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.3, 100.0]),
    repetition_context_size=st.sampled_from([0, 1, 2, 5, 20, 2**32 - 1]),
    presence_penalty=st.just(0.0) | numbers,
    frequency_penalty=st.just(0.0) | numbers,
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=3).map(lambda d: tuple(d.items())),
)
rows = st.lists(
    st.tuples(samplings, st.lists(tokens, min_size=1, max_size=8), st.lists(tokens, max_size=8)), min_size=1, max_size=5
)


def logits(count: int, seed: int = 0) -> mx.array:
    return mx.random.normal((count, VOCABULARY), key=mx.random.key(seed)) * 3


def at(count: int) -> mx.array:
    return mx.arange(count, dtype=mx.uint32)


def scores(draws: Draws, scored: mx.array) -> Any:
    return np.array(draws.scores(scored, at(len(scored))))


def drawn(draws: Draws, scored: mx.array) -> Any:
    return draws.draw(scored, at(len(scored))).tolist()


def penalised(sampling: Sampling, prompt: list[int], produced: list[int], scored: mx.array) -> Any:
    """mlx-lm's processors. The last two are given the completion alone, and all of it: the contract wants it so."""
    before = sample_utils.make_logits_processors(
        logit_bias=dict(sampling.logit_bias),
        repetition_penalty=sampling.repetition_penalty,
        repetition_context_size=min(sampling.repetition_context_size, ENDLESS),
    )
    behind = sample_utils.make_logits_processors(
        presence_penalty=sampling.presence_penalty,
        presence_context_size=ENDLESS,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=ENDLESS,
    )
    result = mx.array(scored)
    for process in before:
        result = process(mx.array(prompt + produced), result)
    for process in behind:
        result = process(mx.array(produced, dtype=mx.int32), result)
    return np.array(result[0])


@settings(max_examples=150)
@given(rows=rows, seed=st.integers(0, 99))
def test_each_row_is_changed_as_mlx_lm_changes_it_alone(rows: Any, seed: int) -> None:
    greedy = [(replace(sampling, temperature=0.0), prompt, produced) for sampling, prompt, produced in rows]
    scored = logits(len(rows), seed)
    draws = Draws([row[0] for row in greedy], [History(prompt, produced) for _, prompt, produced in greedy])
    expected = [penalised(*row, scored[place : place + 1]) for place, row in enumerate(greedy)]
    np.testing.assert_allclose(scores(draws, scored), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=80)
@given(rows=rows, data=st.data())
def test_draws_that_remember_are_draws_built_anew(rows: Any, data: st.DataObject) -> None:
    """However many tokens were read of those drawn, and for whichever rows the last one is still unread."""
    kept = [row[0] for row in rows]
    histories = [History(prompt, produced) for _, prompt, produced in rows]
    draws = Draws(kept, histories)
    for step in range(data.draw(st.integers(1, 4))):
        new = drawn(draws, logits(len(rows), step))
        unread = [data.draw(st.booleans()) for _ in rows]
        late = mx.array([token if is_unread else -1 for token, is_unread in zip(new, unread, strict=True)])
        for (_, _, produced), token, is_unread in zip(rows, new, unread, strict=True):
            produced.extend([] if is_unread else [token])
        anew = Draws(kept, histories, late)
        np.testing.assert_array_equal(scores(draws, logits(len(rows), 9)), scores(anew, logits(len(rows), 9)))
        for (_, _, produced), token, is_unread in zip(rows, new, unread, strict=True):
            produced.extend([token] if is_unread else [])


@settings(max_examples=50)
@given(rows=rows, data=st.data())
def test_a_rows_penalties_depend_on_neither_neighbours_nor_order(rows: Any, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    scored = mx.broadcast_to(logits(1), (len(rows), VOCABULARY))
    shuffled = Draws([rows[i][0] for i in order], [History(rows[i][1], rows[i][2]) for i in order])
    places = at(len(rows)) * 0
    together = np.array(shuffled.scores(scored, places))
    for place, i in enumerate(order):
        alone = Draws([rows[i][0]], [History(rows[i][1], rows[i][2])])
        np.testing.assert_array_equal(together[place], np.array(alone.scores(scored[:1], places[:1]))[0])


def test_the_prompt_counts_for_repetition_and_not_for_presence_and_frequency() -> None:
    flat = mx.ones((1, VOCABULARY))
    repeated = Draws([_with(repetition_penalty=2.0)], [History([1, 2], [3])])
    counted = Draws([_with(presence_penalty=0.5, frequency_penalty=0.25)], [History([1, 2], [3, 3])])
    assert scores(repeated, flat)[0].tolist() == [1, 0.5, 0.5, 0.5, *[1] * 8]
    assert scores(counted, flat)[0].tolist() == [1, 1, 1, 0, *[1] * 8]


@pytest.mark.parametrize(("size", "expected"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (0, [0, 1, 2, 3])])
def test_repetition_looks_at_the_last_tokens_or_at_all(size: int, expected: list[int]) -> None:
    draws = Draws([_with(repetition_penalty=2.0, repetition_context_size=size)], [History([0, 1], [2, 3])])
    assert np.flatnonzero(scores(draws, mx.ones((1, VOCABULARY)))[0] < 1).tolist() == expected


def test_a_token_is_drawn_again_no_more_once_it_is_penalised() -> None:
    """Three draws of which the host has read none."""
    draws = Draws([_with(presence_penalty=2.0)], [History([0])])
    scored = mx.array([[5.0, 4.9, 4.8, *[0.0] * 9]])
    assert [int(draws.draw(scored, at(1))[0]) for _ in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("penalty", [5e-324, 1e-38, 100.0])
def test_the_strongest_penalties_leave_numbers(penalty: float) -> None:
    row = _with(temperature=1e-6, repetition_penalty=penalty, repetition_context_size=0)
    draws = Draws([row], [History(list(range(VOCABULARY)))])
    scored = mx.concatenate([logits(1)[:, :-1] * 10, mx.zeros((1, 1))], axis=1)
    assert not np.isnan(scores(draws, scored)).any()


def test_a_bias_of_minus_a_hundred_forbids_a_token_and_one_of_a_hundred_forces_it() -> None:
    scored = mx.broadcast_to(logits(1), (100, VOCABULARY))
    row = _with(temperature=1.0, logit_bias=((3, -100.0), (7, 100.0)))
    assert set(drawn(Draws([row] * 100), scored)) == {7}
    forbidding = Draws([_with(temperature=5.0, logit_bias=((3, -100.0),))] * 100)
    assert 3 not in drawn(forbidding, scored)


def test_the_logits_given_are_left_as_they_were() -> None:
    scored = logits(1)
    before = scored.tolist()
    row = _with(repetition_penalty=3.0, presence_penalty=1.0, logit_bias=((1, 1.0),))
    Draws([row], [History([1], [2])]).draw(scored, at(1))
    assert scored.tolist() == before


def test_a_history_counts_what_was_appended_to_it() -> None:
    produced = [1, 1]
    history = History([5, 6], produced)
    assert counted(history) == {1: 2}
    produced += [2, 1]
    assert counted(history) == {1: 3, 2: 1}
    assert [list(history.last(size)) for size in (3, 5, 9)] == [[1, 2, 1], [6, 1, 1, 2, 1], [5, 6, 1, 1, 2, 1]]
    assert sorted(history.last(ENDLESS)) == [1, 2, 5, 6]


def counted(history: History) -> dict[int, int]:
    return dict(zip(*history.counts(), strict=True))


def _with(**fields: Any) -> Sampling:
    return Sampling(**{"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0} | fields)
