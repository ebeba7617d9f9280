"""A prompt whose chunk takes longer than rows may wait goes through the model a few layers with each of their steps."""

from __future__ import annotations

import pytest

from mlxrpc_server.engine.wire import Left
from tests.engine import tiny
from tests.engine.running import HandClock, Run, alone, row

SLOW, QUICK = 0.5, 0.001
"""Seconds that pass whenever the clock is read: while a prompt is measured, and while rows decode."""

RUNNING = list(range(2, 60))


def beside_a_row(max_tokens: int = 60) -> Run:
    """One that decodes, in steps of a few milliseconds, where a prompt like its own took half a second."""
    clock = HandClock(SLOW)
    run = Run(tiny.attention(), clock=clock, ahead=True)
    run.batch.submit(row(0, RUNNING, max_tokens=max_tokens))
    run.step()
    clock.tick = QUICK
    run.step(6)
    return run


def expected(number: int, prompt: list[int], max_tokens: int) -> list[int]:
    return alone(tiny.attention(), row(number, prompt, max_tokens=max_tokens))


def submitted(run: Run, *numbers: int) -> None:
    for number in numbers:
        run.batch.submit(row(number, prompt_of(number), max_tokens=8))


def prompt_of(number: int) -> list[int]:
    return [(number + 3 * place) % 90 for place in range(30)]


def test_its_layers_are_shared_out_among_steps_in_which_the_others_go_on() -> None:
    run = beside_a_row()
    submitted(run, 1)
    steps = [run.step() for _ in range(4)]
    assert [outcome.prefilled for outcome in steps] == [[], [], [], [(1, 29)]]
    assert [[name for name, _ in outcome.tokens] for outcome in steps] == [[0], [0], [0], [0]]
    assert run.to_end().tokens(1) == expected(1, prompt_of(1), 8)
    assert run.tokens(0) == expected(0, RUNNING, 60)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("gone", [1, 2])
def test_of_rows_that_go_through_together_one_may_be_cancelled_on_the_way(gone: int, steps: int) -> None:
    run = beside_a_row()
    submitted(run, 1, 2)
    run.step(steps)
    run.batch.cancel(row(gone, []).id)
    stays = 3 - gone
    assert run.to_end().left(gone) == [Left.CANCELLED]
    assert run.tokens(gone) == []
    assert run.tokens(stays) == expected(stays, prompt_of(stays), 8)
    assert run.batch.nbytes == 0


def test_where_all_of_them_are_cancelled_the_rest_is_not_computed() -> None:
    run = beside_a_row()
    submitted(run, 1)
    run.step(2)
    run.batch.cancel(row(1, []).id)
    submitted(run, 2)
    assert run.to_end().left(1) == [Left.CANCELLED]
    assert 1 not in {name for outcome in run.outcomes for name, _ in outcome.prefilled}
    assert run.tokens(2) == expected(2, prompt_of(2), 8)


def test_after_a_step_that_raised_it_begins_again() -> None:
    run = beside_a_row()
    submitted(run, 1)
    run.step(2)
    run.outcomes.append(run.batch.rebuild())
    assert run.to_end().tokens(1) == expected(1, prompt_of(1), 8)
    assert run.tokens(0) == expected(0, RUNNING, 60)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_when_nobody_waits_for_it_any_more_the_rest_goes_through_at_once(steps: int) -> None:
    run = beside_a_row(max_tokens=12)
    submitted(run, 1)
    run.step(steps)
    run.batch.cancel(row(0, []).id)
    assert run.step().prefilled == [(1, 29)]
    assert run.to_end().tokens(1) == expected(1, prompt_of(1), 8)
