"""Rows whose caches are merged give what they give alone, whoever joins and leaves, also past their windows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import BatchKVCache, ChunkedKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from mlxrpc_server.engine.caches import sample
from mlxrpc_server.engine.load import proven
from mlxrpc_server.engine.merged import Merged, suits
from mlxrpc_server.engine.room import COLUMN_STEP, UNBOUNDED, Room
from mlxrpc_server.types import RowId, Sampling
from tests.engine import architectures, tiny
from tests.engine.architectures import WINDOW
from tests.engine.rows import Rows, joins, leaves, run, steps
from tests.engine.running import GREEDY, Run, alone, row
from tests.same_tokens import Judge

MODELS = {name: make() for name, make in architectures.MERGED.items()}
SINKS, NO_POSITIONS, STATES = MODELS["sinks"], MODELS["without positions"], MODELS["recurrent"]

DRAWN = Sampling(temperature=1.0, top_p=0.9, top_k=0, min_p=0.0, seed=5)

long_prompts = st.lists(st.integers(0, tiny.VOCABULARY - 1), min_size=WINDOW, max_size=3 * WINDOW)
happenings = st.lists(
    st.one_of(joins, st.tuples(st.just("join"), long_prompts), leaves, steps), min_size=4, max_size=16
)


def merged(model: Any, room: Room = UNBOUNDED) -> Merged:
    return Merged(model, sample(model), room)


def rows_of(model: Any, *lengths: int) -> tuple[Rows, Merged]:
    kv = merged(model)
    rows = Rows(model, kv)
    for length in lengths:
        rows.join([(5 * length + place) % tiny.VOCABULARY for place in range(length)])
    return rows, kv


def worst_of(rows: Rows, steps: int) -> float:
    """The largest difference to rows alone in so many steps."""
    worst = 0.0
    for number in range(steps):
        worst = max(worst, rows.step())
        rows.append(number)
    return worst


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


@settings(max_examples=12)
@given(script=happenings)
@pytest.mark.parametrize("name", list(MODELS))
def test_rows_give_the_logits_of_solo_runs_whoever_joins_and_leaves(name: str, script: list[tuple[str, Any]]) -> None:
    model = MODELS[name]
    assert run(Rows(model, merged(model)), script) < 1e-4


def test_rows_go_past_their_windows_together(model: Any) -> None:
    rows, _kv = rows_of(model, 1, WINDOW - 1, 3 * WINDOW)
    assert worst_of(rows, 2 * WINDOW) < 1e-4


def test_a_row_joins_those_that_went_past_their_windows(model: Any) -> None:
    rows, _kv = rows_of(model, 2, 5)
    worst_of(rows, WINDOW + 3)
    rows.join([1, 2, 3])
    assert worst_of(rows, WINDOW) < 1e-4


def test_rows_that_left_take_nothing_along(model: Any) -> None:
    rows, _kv = rows_of(model, 2 * WINDOW, 4, 9, 3)
    worst_of(rows, 2)
    rows.leave(2)
    rows.leave(0)
    rows.join([7, 8])
    rows.leave(0)
    assert worst_of(rows, WINDOW) < 1e-4


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "ahead"])
def test_a_batch_gives_solo_tokens(model: Any, ahead: bool, sampling: Sampling) -> None:
    """Rows join while others decode, in chunks, and leave at stop tokens and limits."""
    prompts = [[(31 * place + 7 * length) % tiny.VOCABULARY for place in range(length)] for length in (1, 6, 20, 3, 30)]
    rows = [row(number, prompt, 8 + 5 * number, sampling, stop_ids=[40]) for number, prompt in enumerate(prompts)]
    batch = Run(model, prefill_tokens=16, max_rows=4, ahead=ahead)
    for one in rows:
        batch.batch.submit(one)
        batch.step(2)
    batch.to_end()
    for one in rows:
        solo = alone(model, row(one.id, one.prompt, one.max_tokens, sampling, stop_ids=[40]))
        Judge(model).check(one.prompt, sampling, solo, batch.tokens(one.id))


def test_a_row_alone_is_attended_to_without_a_mask() -> None:
    kv = merged(SINKS)
    cache = kv.open()
    SINKS(mx.array([[1, 2, 3]]), cache=cache)
    kv.join([RowId(1)], cache, [3])
    assert kv.arrange() == [RowId(1)]
    kv.decode(mx.array([4]))
    assert [type(layer) for layer in cache] == [RotatingKVCache, KVCache] * 2
    assert [layer.offset for layer in cache] == [4] * 4


def test_order_is_kept_by_those_that_stay() -> None:
    rows, kv = rows_of(STATES, 3, 4, 5, 6)
    rows.step()
    rows.leave(1)
    assert kv.arrange() == [0, 2, 3]


def test_room_is_given_back_when_all_rows_have_left(model: Any) -> None:
    rows, kv = rows_of(model, 3, 9)
    rows.step()
    rows.leave(0)
    rows.leave(0)
    assert kv.arrange() == []
    assert kv.nbytes == 0


def test_nothing_is_left_of_rows_that_are_forgotten(model: Any) -> None:
    rows, kv = rows_of(model, 3, 9)
    rows.step()
    rows.join([5, 6])
    rows.leave(0)
    kv.clear()
    assert kv.arrange() == []
    assert kv.nbytes == 0
    rows.held.clear()
    rows.join([1, 2])
    rows.join([3])
    assert worst_of(rows, 2) < 1e-4


def test_what_fits_is_told_before_it_is_there(model: Any) -> None:
    """The long row costs every other one as much as itself, wherever keys and values grow."""
    kv = merged(model, Room(rows=8, bytes=0))
    assert kv.fits([])
    assert kv.fits([10_000])
    assert not kv.fits([1, 1])
    rows, kv = rows_of(model, COLUMN_STEP + 5, 2, 7)
    rows.step()
    assert merged(model, Room(rows=8, bytes=kv.nbytes)).fits([COLUMN_STEP + 5, 2, 7])
    assert not merged(model, Room(rows=8, bytes=kv.nbytes - 1)).fits([COLUMN_STEP + 5, 2, 7])


def test_states_and_windows_take_no_more_for_longer_rows() -> None:
    _rows, kv = rows_of(STATES, 3, 3)
    assert merged(STATES, Room(rows=8, bytes=kv.nbytes)).fits([100_000, 100_000])


def test_counts_that_no_layer_reads_do_not_pile_up() -> None:
    """mlx-lm counts each row's tokens in an array, one sum a step, and attention without positions never asks."""
    watched = Watched(NO_POSITIONS)
    rows = Rows(watched, Merged(watched, sample(NO_POSITIONS), UNBOUNDED))
    rows.join([1, 2])
    rows.join([3, 4, 5])
    worst_of(rows, 20)
    waiting = io.StringIO()
    mx.export_to_dot(waiting, *(cache.offset for cache in watched.cache if type(cache) is BatchKVCache))
    assert "Add" not in waiting.getvalue()


def test_prompts_of_one_token_leave_no_mask_behind() -> None:
    watched = Watched(STATES)
    rows = Rows(watched, Merged(watched, sample(STATES), UNBOUNDED))
    rows.join([1])
    rows.join([2])
    worst_of(rows, 2)
    assert [layer.make_mask(1) for layer in watched.cache] == [None, None]


class Watched:
    """A model that shows the test the cache of its last step."""

    def __init__(self, model: Any) -> None:
        self.cache: list[Any] = []
        self.make_cache = model.make_cache
        self._model = model

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.cache = cache or self.cache
        logits: mx.array = self._model(tokens, cache=cache)
        return logits


def test_only_states_let_a_step_run_ahead() -> None:
    assert merged(STATES).ahead
    assert not merged(NO_POSITIONS).ahead


def test_attention_of_a_models_own_is_merged_where_blocks_do_not_hold() -> None:
    model = architectures.latent()
    kv = proven(model, [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8], [4, 5, 9]], mx.float32)
    assert isinstance(kv, Merged)
    rows = Rows(model, kv)
    for prompt in ([1, 2, 3], [4], [5, 6]):
        rows.join(prompt)
    assert worst_of(rows, 3) < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: RotatingKVCache(max_size=8, keep=4),  # type: ignore[no-untyped-call]
        lambda: ChunkedKVCache(8),  # type: ignore[no-untyped-call]
        QuantizedKVCache,
    ],
    ids=["kept tokens", "chunks", "quantized"],
)
def test_what_mlx_lm_cannot_merge_rightly_is_left_alone(make: Callable[[], Any]) -> None:
    assert suits(sample(SINKS))
    assert not suits([*sample(SINKS), make()])
