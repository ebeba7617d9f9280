"""Rows whose reasoning has a budget: they think as they would without, up to there, and then they close the thought."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.constraints import grammar
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.constraint import Grammars
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.thinking import Thinking, closed
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import Constraint, ConstraintKind, Sampling
from tests.engine import tiny
from tests.engine.running import Run, alone, row

MODEL = tiny.attention()

KINDS = (b"<", b"a", b"!", b"\n", b"b", b"<", b"c", b"d")
SPELLING = [KINDS[token % len(KINDS)] for token in range(tiny.VOCABULARY)]
"""One character each: what opens a thought, and what closes it, said by many tokens."""

BREAK, END = 3, 10
CLOSING = [BREAK, END, BREAK]
MOST = 24


def budget(tokens: int, start: bytes = b"") -> wire.Budget:
    return wire.Budget(tokens, CLOSING, b"!", start)


def thinker(number: int, prompt: Sequence[int], limit: wire.Budget | None, produced: Sequence[int] = ()) -> Row:
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=number, frequency_penalty=0.5)
    thinking = Thinking(limit, SPELLING, produced) if limit is not None else None
    return row(number, prompt, MOST, sampling, produced, thinking=thinking)


def run(*rows: Row, ahead: bool = False) -> Run:
    seen = Run(MODEL, ahead=ahead)
    for one in rows:
        seen.batch.submit(one)
    return seen.to_end()


def cut_at(tokens: Sequence[int], limit: wire.Budget) -> int | None:
    """Where the thought in these is to be closed; None where there is none, or where it ends in time."""
    spelled = [SPELLING[token] for token in tokens]
    begin = 0
    if limit.start:
        begin = next((place for place, said in enumerate(spelled) if said != b"\n"), len(spelled)) + 1
        if spelled[begin - 1 : begin] != [b"<"]:
            return None
    return None if b"!" in spelled[begin : begin + limit.tokens] else begin + limit.tokens


prompts = st.lists(st.integers(0, tiny.VOCABULARY - 1), min_size=1, max_size=8)


@settings(deadline=None)
@given(
    prompt=prompts,
    tokens=st.integers(0, MOST + 2),
    start=st.sampled_from([b"", b"<"]),
    seed=st.integers(0, 99),
    cut=st.integers(0, MOST - 1),
    ahead=st.booleans(),
)
def test_a_thought_is_the_models_own_up_to_its_budget_and_the_answer_behind_it(
    prompt: list[int], tokens: int, start: bytes, seed: int, cut: int, ahead: bool
) -> None:
    limit = budget(tokens, start)
    free = alone(MODEL, thinker(seed, prompt, None))
    got = run(thinker(seed, prompt, limit), thinker(seed + 100, prompt, None), ahead=ahead).tokens(seed)
    place = cut_at(free, limit)
    if place is None or place >= MOST:
        assert got == free
    else:
        behind = place + len(CLOSING)
        assert got[:behind] == [*free[:place], *CLOSING][:MOST]
        assert got[behind:] == (alone(MODEL, thinker(seed, prompt, None, got[:behind])) if behind < MOST else [])
    assert run(thinker(seed, prompt, limit, got[:cut]), ahead=ahead).tokens(seed) == got[cut:]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_budget_outlives_a_rebuild_and_a_step_ahead(ahead: bool) -> None:
    whole = run(thinker(1, [4, 5], budget(3))).tokens(1)
    assert whole[3:6] == CLOSING
    seen = Run(MODEL, ahead=ahead)
    seen.batch.submit(thinker(1, [4, 5], budget(3)))
    for _ in range(5):
        seen.step(2)
        seen.outcomes.append(seen.batch.rebuild())
    assert seen.to_end().tokens(1) == whole


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_with_different_budgets_are_closed_each_in_its_place(ahead: bool) -> None:
    rows = [thinker(number, [number, 5], budget(number)) for number in range(6)]
    seen = run(*rows, thinker(9, [6, 5], None), ahead=ahead)
    for number in range(6):
        assert seen.tokens(number) == run(thinker(number, [number, 5], budget(number))).tokens(number)
    assert seen.tokens(9) == alone(MODEL, thinker(9, [6, 5], None))


def test_the_answer_behind_is_bound_to_its_constraint() -> None:
    grammars = Grammars(SPELLING)
    bound = wire.Constraint(grammar(Constraint(ConstraintKind.REGEX, "ab{2}c")), [END])
    for ahead in (False, True):
        one = thinker(3, [4, 5], budget(4))
        one.guide = grammars.begin(bound, []).result()
        seen = run(one, ahead=ahead)
        assert seen.tokens(3)[4:7] == CLOSING
        assert b"".join(SPELLING[token] for token in seen.tokens(3)[7:]) == b"abbc"
        assert seen.left(3) == [Left.CONSTRAINT_COMPLETE]
    grammars.close()


def test_an_answer_that_is_bound_from_its_start_is_no_thought() -> None:
    grammars = Grammars(SPELLING)
    one = thinker(3, [4, 5], budget(0, b"<"))
    one.guide = grammars.begin(wire.Constraint(grammar(Constraint(ConstraintKind.REGEX, "<ab"))), []).result()
    assert b"".join(SPELLING[token] for token in run(one).tokens(3)) == b"<ab"
    grammars.close()


@pytest.mark.parametrize("closing", [[0], [2, 3]])
def test_what_closes_it_is_stronger_than_minimum_and_bias(closing: list[int]) -> None:
    sampling = Sampling(1.0, 1.0, 0, 0.0, 7, logit_bias=tuple((token, -100.0) for token in closing))
    thinking = Thinking(wire.Budget(2, closing, b"-"), SPELLING)
    one = row(1, [4, 5], 8, sampling, stop_ids=[95], min_tokens=8, thinking=thinking)
    assert run(one).tokens(1)[2 : 2 + len(closing)] == closing


def test_markers_may_be_special_tokens_or_spread_over_several() -> None:
    spelling = [b"", b"", b"<t", b">x", b"</", b"t>y", b"z"]
    marks = {0: b"<t>", 1: b"</t>"}
    limit = wire.Budget(2, [1], b"</t>", b"<t>", marks)

    def closing(*produced: int) -> int | None:
        return Thinking(limit, spelling, produced).closing

    assert closing(0, 6, 6) == closing(2, 3, 6, 6) == closing(0, 6, 4) == 1
    assert closing(0, 6) is closing(0, 1, 6, 6) is closing(0, 4, 5, 6) is None
    assert closing(6, 0, 6, 6) is closing(2, 6, 6, 6, 6) is closing(0, 6, 6, 1, 6) is None
    assert closing(0, 6, 6, 1) is None


def test_a_step_waits_for_the_one_before_only_where_a_budget_may_be_spent() -> None:
    thinking = Thinking(budget(3), SPELLING)
    assert [thinking.due(unread) for unread in (0, 1, 2, 3)] == [False, False, False, True]
    unopened = Thinking(budget(0, b"<"), SPELLING)
    assert [unopened.due(unread) for unread in (0, 1)] == [False, True]
    thinking.follow(END)
    assert not thinking.due(99)


def test_rows_that_close_nothing_cost_nothing() -> None:
    logits = mx.zeros((2, 8))
    assert closed(logits, [None, None]) is logits
    assert closed(logits, [None, 5]).argmax(axis=-1).tolist() == [0, 5]
