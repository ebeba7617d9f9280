"""The batch: who joins, who leaves, in which step, and that nobody's tokens depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.blocks import Blocks
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.room import COLUMN_STEP, Room
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId, Sampling
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import GREEDY, HandClock, Run, alone, row
from tests.same_tokens import Judge, assert_same_tokens, judge

MODEL = tiny.attention()
JUDGE = Judge(MODEL)
CONTEXT = 1024
"""MODEL's own limit."""

tokens = st.integers(0, tiny.VOCABULARY - 1)
penalised = {
    "repetition_penalty": st.sampled_from([1.0, 1.3]),
    "repetition_context_size": st.sampled_from([0, 3, 20]),
    "presence_penalty": st.sampled_from([0.0, 0.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.4]),
}
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
    top_k=st.sampled_from([0, 5]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**64 - 1),
    **penalised,
)


@dataclass(frozen=True)
class Visit:
    """A row of a random schedule: it comes at one step and may be cancelled at a later one."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    comes: int
    cancelled: int | None


visits = st.builds(
    Visit,
    prompt=st.lists(tokens, min_size=1, max_size=20),
    sampling=samplings,
    max_tokens=st.integers(1, 8),
    comes=st.integers(0, 8),
    cancelled=st.none() | st.integers(0, 12),
)


def submitted(*rows: Any, **settings: Any) -> Run:
    run = Run(MODEL, **settings)
    for one in rows:
        run.batch.submit(one)
    return run


def test_a_row_gets_its_first_token_in_the_step_that_ends_its_prefill() -> None:
    run = submitted(row(1, [3, 4, 5]))
    outcome = run.step()
    assert outcome.prefilled == [(1, 2)]
    assert [number for number, _ in outcome.tokens] == [1]


def test_rows_join_and_leave_between_steps() -> None:
    run = submitted(row(1, [3, 4, 5], max_tokens=3))
    run.step()
    run.batch.submit(row(2, [6, 7], max_tokens=3))
    outcomes = [run.step() for _ in range(4)]
    assert [[number for number, _ in outcome.tokens] for outcome in outcomes] == [[1, 2], [1, 2], [2], []]
    assert [outcome.left for outcome in outcomes[:3]] == [[], [(1, Left.LENGTH)], [(2, Left.LENGTH)]]
    assert run.batch.idle


def test_a_row_ends_at_max_tokens_and_says_so_with_its_last_token() -> None:
    run = submitted(row(1, [3, 4, 5], max_tokens=5)).to_end()
    assert len(run.tokens(1)) == 5
    assert run.left(1) == [Left.LENGTH]
    assert run.outcomes[-1].tokens


def test_a_stop_id_ends_its_row_and_is_its_last_token() -> None:
    undisturbed = submitted(row(1, [3, 4, 5], max_tokens=6)).to_end().tokens(1)
    stop = next(token for token in undisturbed[1:] if token != undisturbed[0])
    run = submitted(row(1, [3, 4, 5], max_tokens=6, stop_ids=[stop]), row(2, [3, 4, 5], max_tokens=6)).to_end()
    assert run.tokens(1) == undisturbed[: undisturbed.index(stop) + 1]
    assert run.left(1) == [Left.STOP_TOKEN]
    assert run.tokens(2) == undisturbed


def test_a_stop_id_at_the_last_allowed_token_counts_as_a_stop() -> None:
    first = alone(MODEL, row(1, [3, 4, 5], max_tokens=1))
    run = submitted(row(1, [3, 4, 5], max_tokens=1, stop_ids=first)).to_end()
    assert run.left(1) == [Left.STOP_TOKEN]


@pytest.mark.parametrize(
    ("produced", "reason"), [([7, 8, 9], Left.LENGTH), ([7, 9], Left.STOP_TOKEN)], ids=["at its limit", "stopped"]
)
def test_a_row_that_had_ended_already_leaves_without_a_token(produced: list[int], reason: Left) -> None:
    run = submitted(row(1, [3], max_tokens=3, produced=produced, stop_ids=[9] if len(produced) < 3 else []))
    assert not run.batch.idle
    outcome = run.step()
    assert (outcome.left, outcome.tokens) == ([(1, reason)], [])
    assert run.batch.idle


def test_no_more_rows_than_allowed_run_and_the_others_wait_in_order() -> None:
    run = submitted(*(row(number, [number, number], max_tokens=2) for number in range(5)), max_rows=2)
    running = [sorted(number for number, _ in run.step().tokens) for _ in range(6)]
    assert running == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]
    assert run.batch.idle


def test_rows_that_run_are_counted_apart_from_those_that_wait() -> None:
    run = submitted(*(row(number, [number, number]) for number in range(5)), max_rows=2)
    assert (run.batch.rows, run.batch.waiting) == (0, 5)
    run.step()
    assert (run.batch.rows, run.batch.waiting) == (2, 3)
    run.to_end()
    assert (run.batch.rows, run.batch.waiting) == (0, 0)


def test_a_row_in_prefill_runs() -> None:
    run = submitted(row(1, [5] * 200))
    assert run.step().tokens == []
    assert (run.batch.rows, run.batch.waiting) == (1, 0)


def test_a_row_cancelled_while_it_waits_is_gone_at_the_next_step() -> None:
    run = submitted(row(1, [3, 4], max_tokens=9), row(2, [5, 6]), max_rows=1)
    run.step()
    run.batch.cancel(RowId(2))
    assert run.step().left == [(2, Left.CANCELLED)]
    assert run.batch.waiting == 0
    run.to_end()
    assert run.tokens(2) == []


def test_a_row_cancelled_in_prefill_is_gone_behind_the_current_chunk() -> None:
    run = submitted(row(1, [5] * 200))
    assert run.step().prefilled == [(1, Pace.UNMEASURED)]
    run.batch.cancel(RowId(1))
    outcome = run.step()
    assert (outcome.left, outcome.prefilled, outcome.tokens) == ([(1, Left.CANCELLED)], [], [])
    assert run.batch.idle


def test_a_row_cancelled_while_it_decodes_is_gone_at_the_next_step() -> None:
    run = submitted(row(1, [3, 4], max_tokens=50), row(2, [5, 6], max_tokens=3))
    run.step()
    run.batch.cancel(RowId(1))
    outcome = run.step()
    assert outcome.left == [(1, Left.CANCELLED)]
    assert [number for number, _ in outcome.tokens] == [2]
    assert run.batch.rows == 1


def test_cancelling_a_row_that_nobody_knows_changes_nothing() -> None:
    run = submitted(row(1, [3, 4], max_tokens=2))
    run.batch.cancel(RowId(99))
    run.to_end()
    run.batch.cancel(RowId(1))
    assert run.batch.idle
    assert run.left(1) == [Left.LENGTH]


def test_a_refused_row_leaves_at_the_next_step() -> None:
    run = submitted()
    run.batch.refuse(RowId(7))
    assert run.step().left == [(7, Left.REFUSED)]
    assert run.batch.idle


def test_steps_are_counted_from_one() -> None:
    run = submitted(row(1, [3, 4], max_tokens=3)).to_end()
    assert [outcome.step for outcome in run.outcomes] == [1, 2, 3]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    run = submitted(row(1, [3, 4], max_tokens=50), clock=HandClock())
    run.step()
    run.batch.submit(row(2, [5] * 150))
    outcomes = [run.step() for _ in range(3)]
    assert [outcome.prefilled for outcome in outcomes] == [[(2, 64)], [(2, 128)], [(2, 149)]]
    assert [len(outcome.tokens) for outcome in outcomes] == [1, 1, 2]


def test_chunks_take_the_time_that_they_should_by_measure() -> None:
    """Each reading of the clock is a second later, whatever was fed: the next chunk may be longer."""
    run = submitted(row(1, [5] * 200, max_tokens=50), clock=HandClock(tick=1.0))
    first, second = run.step(), run.step()
    assert first.prefill_seconds == 1.0
    assert [first.prefilled, second.prefilled] == [[(1, 64)], [(1, 192)]]


def test_rows_without_a_prefill_say_nothing_about_its_pace() -> None:
    """Forty of them in no time would let the next chunk take a minute."""
    run = submitted(*(row(number, [number], max_tokens=9) for number in range(40)), clock=HandClock(tick=1e-6))
    run.step()
    run.batch.submit(row(99, [5] * 200))
    assert run.step().prefilled == [(99, Pace.UNMEASURED)]


def test_short_prompts_are_prefilled_in_one_step_until_its_budget_is_spent() -> None:
    outcome = submitted(*(row(number, [number] * 30) for number in range(4))).step()
    assert outcome.prefilled == [(0, 29), (1, 29), (2, 6)]


def test_one_token_prompts_need_no_prefill() -> None:
    outcome = submitted(*(row(number, [number]) for number in range(70)), max_rows=80).step()
    assert len(outcome.prefilled) == len(outcome.tokens) == 70


def test_prompts_of_similar_lengths_are_fed_in_one_pass() -> None:
    seen = Watched(MODEL)
    rows = [row(number, long_prompt(length)) for number, length in enumerate([20, 18, 21, 3, 20])]
    run = Run(seen)
    for one in rows:
        run.batch.submit(one)
    run.to_end()
    assert [shape for shape in seen.shapes if shape[1] > 1] == [(3, 20), (1, 2), (1, 2), (1, 17)]
    for one in rows:
        JUDGE.check(one.prompt, GREEDY, alone(MODEL, row(one.id, one.prompt)), run.tokens(one.id))


class Watched:
    """A model that remembers the shapes of what it was fed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shapes: list[tuple[int, ...]] = []

    @property
    def layers(self) -> Any:
        return self._model.layers

    def modules(self) -> Any:
        return self._model.modules()

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.shapes.append(tokens.shape)
        logits: mx.array = self._model(tokens, cache=cache)
        return logits


@settings(max_examples=40)
@given(schedule=st.lists(visits, min_size=1, max_size=6), max_rows=st.integers(1, 4), ahead=st.booleans())
def test_every_row_gets_its_solo_tokens_whatever_comes_and_goes(
    schedule: list[Visit], max_rows: int, ahead: bool
) -> None:
    run = Run(MODEL, max_rows=max_rows, ahead=ahead)
    for step in range(13):
        for number, visit in enumerate(schedule):
            if visit.comes == step:
                run.batch.submit(row(number, visit.prompt, visit.max_tokens, visit.sampling))
            if visit.cancelled == step:
                run.batch.cancel(RowId(number))
        run.step()
    run.to_end()
    for number, visit in enumerate(schedule):
        solo = alone(MODEL, row(number, visit.prompt, visit.max_tokens, visit.sampling))
        got = run.tokens(number)
        JUDGE.check(visit.prompt, visit.sampling, solo[: len(got)], got)
        assert run.left(number) in ([Left.CANCELLED], [Left.LENGTH])
        assert run.left(number) == [Left.CANCELLED] or len(got) == visit.max_tokens


@settings(max_examples=30)
@given(
    prompt=st.lists(tokens, min_size=1, max_size=10), sampling=samplings, cut=st.integers(0, 8), beside=st.booleans()
)
def test_a_resubmitted_row_goes_on_with_the_same_tokens(
    prompt: list[int], sampling: Sampling, cut: int, beside: bool
) -> None:
    whole = alone(MODEL, row(1, prompt, 9, sampling))
    run = submitted(row(1, prompt, 9, sampling, produced=whole[:cut]))
    if beside:
        run.batch.submit(row(2, [1, 2, 3], 20))
    run.to_end()
    JUDGE.check(prompt, sampling, whole, whole[:cut] + run.tokens(1))


def test_the_noise_model_gives_every_row_of_a_batch_its_solo_tokens() -> None:
    model = judge().model
    rows = [
        row(number, [(11 * number + 5 * place) % 1000 for place in range(1 + 7 * number % 17)], 5 + number % 4, choice)
        for number, choice in enumerate([GREEDY, *(Sampling(0.8, 0.95, 0, 0.0, seed) for seed in range(5)), GREEDY])
    ]
    solo = [alone(model, one) for one in rows]
    run = Run(model)
    for one in rows:
        run.batch.submit(one)
        run.step()
    run.to_end()
    for one, expected in zip(rows, solo, strict=True):
        assert_same_tokens(one.prompt, one.sampling, expected, run.tokens(one.id))


def rows_of_bytes(number: int) -> int:
    """The room of so many short rows of MODEL."""
    kv = Blocks(MODEL)
    kv.join([RowId(0)], kv.open(), [0])
    return number * kv.nbytes


def long_prompt(length: int) -> list[int]:
    return [(5 * place + length) % tiny.VOCABULARY for place in range(length)]


def test_a_row_waits_until_it_finds_room_beside_those_that_run() -> None:
    run = submitted(row(1, [3, 4], max_tokens=5), row(2, long_prompt(COLUMN_STEP)), kv_bytes=rows_of_bytes(3))
    run.step()
    assert (run.batch.rows, run.batch.waiting) == (1, 1)
    run.to_end()
    assert run.tokens(2) == alone(MODEL, row(2, long_prompt(COLUMN_STEP)))


def test_none_overtakes_a_row_that_waits_for_room() -> None:
    waiting = row(2, long_prompt(COLUMN_STEP), max_tokens=1)
    run = submitted(row(1, [3, 4], max_tokens=5), waiting, row(3, [6], max_tokens=1), kv_bytes=rows_of_bytes(3))
    run.to_end()
    ended = [number for outcome in run.outcomes for number, _ in outcome.left]
    assert ended == [1, 2, 3]


def test_a_row_alone_runs_in_whatever_room() -> None:
    one = row(1, long_prompt(COLUMN_STEP - 2), max_tokens=6)
    run = submitted(one, kv_bytes=1).to_end()
    assert run.tokens(1) == alone(MODEL, row(1, one.prompt, max_tokens=6))
    assert run.preempted == []


@pytest.mark.parametrize("length", [1, COLUMN_STEP - 1, COLUMN_STEP, COLUMN_STEP + 1, CONTEXT])
def test_a_prompt_that_just_fills_its_columns_or_the_context_gets_its_token(length: int) -> None:
    run = submitted(row(1, long_prompt(length), 1), row(2, long_prompt(length), 1), row(3, [7], 0), kv_bytes=0)
    run.to_end()
    likeliest = int(mx.argmax(tiny.logits_alone(MODEL, long_prompt(length))))
    assert (run.tokens(1), run.tokens(2), run.tokens(3)) == ([likeliest], [likeliest], [])
    assert run.left(1) == run.left(2) == run.left(3) == [Left.LENGTH]


def test_the_youngest_row_goes_back_when_the_oldest_outgrows_their_room() -> None:
    rows = [row(1, long_prompt(COLUMN_STEP - 4), 9), row(2, [1, 2], 40), row(3, [3, 4], 40)]
    run = submitted(*rows, kv_bytes=rows_of_bytes(9)).to_end()
    assert run.preempted == [3]
    assert run.most_bytes <= rows_of_bytes(9)
    for one in rows:
        expected = alone(MODEL, row(one.id, one.prompt, one.max_tokens))
        JUDGE.check(one.prompt, one.sampling, expected, run.tokens(one.id))


def test_a_row_that_went_back_comes_in_again_before_younger_ones() -> None:
    rows = [row(1, long_prompt(COLUMN_STEP - 4), 9), row(2, [1, 2], 40), row(3, [3, 4], 40), row(4, [5], 1)]
    run = submitted(*rows, max_rows=3, kv_bytes=rows_of_bytes(9)).to_end()
    assert run.preempted == [3]
    again = [number for outcome in run.outcomes[7:] for number, _ in outcome.prefilled]
    assert again == [3, 4]


def test_a_row_in_prefill_goes_back_too_and_may_be_cancelled_there() -> None:
    run = submitted(row(1, long_prompt(COLUMN_STEP - 2), 9), kv_bytes=rows_of_bytes(8))
    run.step(4)
    run.batch.submit(row(2, long_prompt(200)))
    assert [run.step().prefilled for _ in range(2)] == [[(2, 64)], [(2, 128)]]
    outcome = run.step()
    assert (outcome.preempted, outcome.prefilled, run.batch.waiting) == ([2], [], 1)
    run.batch.cancel(RowId(2))
    assert run.step().left == [(2, Left.CANCELLED)]
    assert len(run.to_end().tokens(1)) == 9


@settings(max_examples=15)
@given(
    lengths=st.lists(st.sampled_from([1, 9, 200, 254, 255, 256, 257, 300]), min_size=2, max_size=5),
    sampling=samplings,
    room=st.integers(0, 12),
    cancelled=st.none() | st.integers(0, 9),
    ahead=st.booleans(),
)
def test_every_row_gets_its_solo_tokens_however_little_room_there_is(
    lengths: list[int], sampling: Sampling, room: int, cancelled: int | None, ahead: bool
) -> None:
    run = Run(MODEL, max_rows=4, kv_bytes=rows_of_bytes(room), ahead=ahead)
    for number, length in enumerate(lengths):
        run.batch.submit(row(number, long_prompt(length), 3 + number, sampling))
        run.step(number + 1)
        if number == cancelled:
            run.batch.cancel(RowId(number))
    run.to_end()
    assert run.most_bytes <= rows_of_bytes(room)
    assert (run.batch.nbytes, run.batch.rows, run.batch.waiting) == (0, 0, 0)
    for number, length in enumerate(lengths):
        solo = alone(MODEL, row(number, long_prompt(length), 3 + number, sampling))
        got = run.tokens(number)
        JUDGE.check(long_prompt(length), sampling, solo[: len(got)], got)
        assert len(got) == len(solo) or run.left(number) == [Left.CANCELLED]


def test_merged_rows_give_way_too() -> None:
    """There is room for three at first, and not when they have grown."""
    model = tiny.sliding_window()
    rows = [row(number, long_prompt(COLUMN_STEP - 4), 40) for number in range(3)]
    rooms = (Room(3, kv_bytes) for kv_bytes in range(0, 1 << 20, 256))
    kv_bytes = next(room.bytes for room in rooms if for_model(model, room).fits([COLUMN_STEP + 16] * 3))
    run = Run(model, kv_bytes=kv_bytes)
    for one in rows:
        run.batch.submit(one)
    run.to_end()
    assert run.preempted
    assert run.most_bytes <= kv_bytes
    for one in rows:
        Judge(model).check(one.prompt, GREEDY, alone(model, row(one.id, one.prompt, 40)), run.tokens(one.id))


@pytest.mark.parametrize("build", [tiny.sliding_window, tiny.recurrent], ids=["sliding window", "recurrent"])
def test_models_that_cannot_batch_give_solo_tokens_too(build: Any) -> None:
    model = build()
    rows = [
        row(number, list(range(number, 2 * number + 9)), 4 + number, Sampling(0.9, 1.0, 0, 0.0, number))
        for number in range(4)
    ]
    run = Run(model)
    for one in rows:
        run.batch.submit(one)
        run.step()
    run.to_end()
    for one in rows:
        solo = alone(model, row(one.id, one.prompt, one.max_tokens, one.sampling))
        Judge(model).check(one.prompt, one.sampling, solo, run.tokens(one.id))


# One step ahead


def test_a_step_is_dispatched_before_the_one_before_it_is_read() -> None:
    run = submitted(row(1, [3, 4, 5], max_tokens=3), ahead=True)
    outcomes = [run.step() for _ in range(3)]
    assert [len(outcome.tokens) for outcome in outcomes] == [0, 1, 2]
    assert run.tokens(1) == alone(MODEL, row(1, [3, 4, 5], max_tokens=3))
    assert run.batch.idle


def test_nobody_hears_of_the_step_too_many_that_a_stopped_row_rides_in() -> None:
    undisturbed = alone(MODEL, row(1, [3, 4, 5], max_tokens=6))
    stop = next(token for token in undisturbed[1:] if token != undisturbed[0])
    rows = [row(1, [3, 4, 5], 6, stop_ids=[stop]), row(2, [3, 4, 5], 6)]
    run = submitted(*rows, ahead=True).to_end()
    assert run.tokens(1) == undisturbed[: undisturbed.index(stop) + 1]
    assert run.left(1) == [Left.STOP_TOKEN]
    assert run.tokens(2) == undisturbed
    assert run.batch.nbytes == 0


def test_a_row_cancelled_with_a_token_unread_leaves_without_it() -> None:
    run = submitted(row(1, [3, 4], max_tokens=50), row(2, [5, 6], max_tokens=5), ahead=True)
    run.step(2)
    run.batch.cancel(RowId(1))
    run.to_end()
    assert run.left(1) == [Left.CANCELLED]
    assert len(run.tokens(1)) == 1
    assert run.tokens(2) == alone(MODEL, row(2, [5, 6], max_tokens=5))


# Steps that raise


class Fragile(Watched):
    """A model that raises on some of what it is fed: a token, or whenever it is told to."""

    def __init__(self, model: Any, poison: int = -1) -> None:
        super().__init__(model)
        self.poison = poison
        self.raises = 0

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = super().__call__(tokens, cache)
        if self.raises and len(self.shapes) > 2:  # not for what the KV asks of it before the first row
            self.raises -= 1
            raise RuntimeError("out of memory")
        if self.poison in cast("list[int]", tokens.flatten().tolist()):
            raise RuntimeError("poison")
        return logits


def until_idle(run: Run) -> Run:
    """As the worker's loop does it."""
    for _ in range(200):
        if run.batch.idle:
            return run
        try:
            run.step()
        except RuntimeError:
            run.outcomes.append(run.batch.rebuild())
    raise AssertionError("it never ends")


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_after_a_step_that_raised_every_row_goes_on_with_its_tokens(steps: int, ahead: bool) -> None:
    model = Fragile(MODEL)
    rows = [row(number, [number, 7, 8], 4 + number, samplings_of(number)) for number in range(4)]
    run = Run(model, ahead=ahead)
    for one in rows:
        run.batch.submit(one)
    run.step(steps)
    model.raises = 1
    until_idle(run)
    assert model.raises == 0
    for one in rows:
        expected = alone(MODEL, row(one.id, one.prompt, one.max_tokens, one.sampling))
        JUDGE.check(one.prompt, one.sampling, expected, run.tokens(one.id))
        assert run.left(one.id) == [Left.LENGTH]


def samplings_of(number: int) -> Sampling:
    return Sampling(0.8, 0.95, 0, 0.0, number, presence_penalty=0.3) if number % 2 else GREEDY


@pytest.mark.parametrize("ahead", [False, True])
def test_the_row_at_fault_fails_and_the_others_lose_nothing(ahead: bool) -> None:
    poison = tiny.VOCABULARY - 1
    rows = [row(number, [number + 1, 7, 8], 6) for number in range(3)]
    run = Run(Fragile(MODEL, poison), ahead=ahead)
    for one in (rows[0], row(9, [poison, 1], 6), *rows[1:]):
        run.batch.submit(one)
    until_idle(run)
    assert run.left(9) == [Left.FAILED]
    assert run.tokens(9) == []
    for one in rows:
        assert run.tokens(one.id) == alone(MODEL, row(one.id, one.prompt, one.max_tokens))


def test_a_row_alone_is_not_blamed_for_one_step_that_raised() -> None:
    model = Fragile(MODEL)
    run = Run(model)
    run.batch.submit(row(1, [3, 4, 5]))
    model.raises = 1
    until_idle(run)
    assert run.left(1) == [Left.LENGTH]


def test_where_every_step_raises_every_row_fails() -> None:
    model = Fragile(MODEL)
    run = Run(model)
    for number in range(3):
        run.batch.submit(row(number, [3, 4, 5]))
    model.raises = 1000
    until_idle(run)
    assert [run.left(number) for number in range(3)] == [[Left.FAILED]] * 3


# Steps that raise while a row is let go of


class Stumbling:
    """A layout that raises once where it lets go of a row, before it does or behind it."""

    def __init__(self, kv: Any, name: str, *, behind: bool = False) -> None:
        self._real = getattr(kv, name)
        self._behind = behind
        self.row = -1
        """Of this one; once."""
        setattr(kv, name, self)

    def __call__(self, row: RowId, *arguments: Any) -> Any:
        raises, self.row = row == self.row, -1 if row == self.row else self.row
        if raises and not self._behind:
            raise RuntimeError("out of memory")
        done = self._real(row, *arguments)
        if raises:
            raise RuntimeError("out of memory")
        return done


LETTING_GO = [
    (tiny.attention, "leave"),
    (tiny.sliding_window, "leave"),
    (tiny.recurrent, "leave"),
    (tiny.sliding_window, "keep"),
]
LONG = [3 * place % 90 for place in range(80)]


def over_rows(build: Any, name: str, rows: Sequence[Row], *, behind: bool = False) -> tuple[Run, Stumbling]:
    """A batch that was given these rows, and what may stumble over one of them."""
    model = build()
    kv = for_model(model)
    stumbling = Stumbling(kv, name, behind=behind)
    run = Run(model, kv=kv, ahead=kv.ahead, prefix_bytes=1 << 22)
    for one in rows:
        run.batch.submit(one)
    return run, stumbling


def long_row(number: int, tokens: int, stop_ids: Sequence[int] = ()) -> Row:
    return row(number, [number, *LONG], tokens, stop_ids=stop_ids)


def three(stop_ids: Sequence[int] = ()) -> list[Row]:
    return [long_row(number, tokens, stop_ids) for number, tokens in enumerate((4, 4, 9))]


def until_said(run: Run, number: int) -> None:
    """Something."""
    while not run.tokens(number):
        run.step()


def stumble(run: Run, stumbling: Stumbling, *, over: int) -> None:
    stumbling.row = over
    until_idle(run)
    assert stumbling.row == -1


def stop_of(solo: Sequence[int]) -> int:
    """A token that comes some way on, for the first time."""
    return next(token for place, token in enumerate(solo) if place > 1 and token not in solo[:place])


def expected_beside(build: Any, number: int, tokens: int) -> list[int]:
    return alone(build(), long_row(number, tokens))


@pytest.mark.parametrize(("build", "name"), LETTING_GO)
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("gone", [0, 1])
def test_where_letting_go_of_a_row_raises_nobody_loses_a_token_or_an_end(
    build: Any, gone: int, name: str, behind: bool
) -> None:
    run, stumbling = over_rows(build, name, three(), behind=behind)
    run.step()
    stumble(run, stumbling, over=gone)
    for number, tokens in enumerate((4, 4, 9)):
        assert run.tokens(number) == expected_beside(build, number, tokens)
        assert run.left(number) == [Left.LENGTH]


@pytest.mark.parametrize(("build", "name"), LETTING_GO)
def test_a_row_that_has_ended_does_not_go_on_where_letting_go_of_it_raised(build: Any, name: str) -> None:
    solo = expected_beside(build, 2, 9)
    stop = stop_of(solo)
    run, stumbling = over_rows(build, name, three([stop]))
    until_said(run, 2)
    stumble(run, stumbling, over=2)
    assert run.tokens(2) == solo[: solo.index(stop) + 1]
    assert run.left(2) == [Left.STOP_TOKEN]


@pytest.mark.parametrize(("build", "name"), LETTING_GO)
@pytest.mark.parametrize("tokens", range(2, 9))
def test_whoever_is_read_behind_a_row_that_ended_is_heard_where_letting_go_of_that_raised(
    build: Any, name: str, tokens: int
) -> None:
    """For one of these numbers, the two come to their ends together."""
    solo = expected_beside(build, 0, 9)
    stop = stop_of(solo)
    run, stumbling = over_rows(build, name, [long_row(0, 9, [stop]), long_row(1, tokens)])
    until_said(run, 0)
    stumble(run, stumbling, over=0)
    assert run.tokens(0) == solo[: solo.index(stop) + 1]
    assert run.tokens(1) == expected_beside(build, 1, tokens)
    assert [run.left(0), run.left(1)] == [[Left.STOP_TOKEN], [Left.LENGTH]]


@pytest.mark.parametrize(("build", "name"), LETTING_GO)
@pytest.mark.parametrize("behind", [False, True])
def test_a_cancel_is_not_forgotten_where_letting_go_raises(build: Any, name: str, behind: bool) -> None:
    run, stumbling = over_rows(build, name, three(), behind=behind)
    until_said(run, 2)
    run.batch.cancel(RowId(2))
    stumble(run, stumbling, over=2)
    assert run.left(2) == [Left.CANCELLED]
    assert len(run.tokens(2)) < 9
    assert run.left(1) == [Left.LENGTH]
    assert run.tokens(1) == expected_beside(build, 1, 4)
