"""Rows in pages give what they give alone, whoever joins and leaves, and take the bytes that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.kernels.cuda import CudaStore
from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.kernels.stores import agrees
from mlxrpc_server.engine.kernels.turn import Token, Turn, frequencies, turned
from mlxrpc_server.engine.often import OFTEN
from mlxrpc_server.engine.paged import Form, Goal, Paged, Plan, Store, form_of, planned
from mlxrpc_server.engine.pages import AHEAD, SIZE, part_tokens, parts_of
from mlxrpc_server.engine.room import UNBOUNDED, Room
from mlxrpc_server.engine.sizes import FEW
from mlxrpc_server.types import RowId
from tests.engine import tiny

SLAB = 4
TOLERANCE = 1e-4 if mx.default_device() == mx.Device(mx.cpu) else 3e-2
"""A GPU takes TF32 for float32's products."""
STORES = [
    pytest.param(PlainStore, id="plain"),
    pytest.param(CudaStore, id="cuda", marks=pytest.mark.skipif(not mx.cuda.is_available(), reason="no CUDA device")),
]


MODEL = tiny.attention(head_size=64)
FORM = Form(layers=2, kv_heads=2, head_size=64, queries=2, dtype=mx.float32)


class Rows:
    """Pages and, beside them, what each of their rows holds."""

    def __init__(self, store: Any = PlainStore, room: Room = UNBOUNDED) -> None:
        self.kv = Paged(MODEL, FORM, store(FORM, SLAB), room)
        self.held: dict[RowId, list[int]] = {}
        self._joined = 0

    def join(self, *prompts: Sequence[int]) -> None:
        """All but their last tokens are prefilled, in one pass, padded behind."""
        rows = [RowId(self._joined + index) for index in range(len(prompts))]
        self._joined += len(prompts)
        lengths = [len(prompt) - 1 for prompt in prompts]
        cache = self.kv.open()
        if longest := max(lengths):
            MODEL(mx.array([[*prompt[:-1], *[0] * (longest - len(prompt) + 1)] for prompt in prompts]), cache=cache)
        self.kv.join(rows, cache, lengths)
        self.held |= zip(rows, map(list, prompts), strict=True)

    def leave(self, index: int) -> None:
        row = list(self.held)[index]
        self.kv.leave(row)
        del self.held[row]

    def step(self) -> float:
        """Feeds every row its last token; gives the largest difference to the rows' logits alone."""
        order = self.kv.arrange()
        together = self.kv.decode(mx.array([self.held[row][-1] for row in order]))
        alone = mx.stack([tiny.logits_alone(MODEL, self.held[row]) for row in order])
        for row, held in self.held.items():
            held.append((held[-1] + 13 * row + 1) % tiny.VOCABULARY)
        return float(mx.abs(together - alone).max())


def tokens(count: int) -> list[int]:
    return [(7 * place) % tiny.VOCABULARY for place in range(count)]


prompts = st.lists(st.integers(0, tiny.VOCABULARY - 1), min_size=1, max_size=12)
joins = st.tuples(st.just("join"), st.lists(prompts, min_size=1, max_size=3))
leaves = st.tuples(st.just("leave"), st.integers(0, 9))
steps = st.tuples(st.just("step"), st.none())


@pytest.mark.parametrize("store", STORES)
@settings(max_examples=40, deadline=None)
@given(script=st.lists(st.one_of(joins, leaves, steps), min_size=1, max_size=12))
def test_rows_in_pages_give_the_logits_of_solo_runs(store: Any, script: list[tuple[str, Any]]) -> None:
    rows = Rows(store)
    for kind, value in script:
        if kind == "join":
            rows.join(*value)
        elif kind == "leave" and value < len(rows.held):
            rows.leave(value)
        elif kind == "step" and rows.held:
            assert rows.step() < TOLERANCE


@pytest.mark.parametrize("store", STORES)
def test_rows_grow_past_the_pages_that_they_were_given(store: Any) -> None:
    rows = Rows(store)
    rows.join(tokens(SIZE - 1), [1, 2, 3])
    rows.join(tokens(3 * SIZE))
    for _ in range(AHEAD + 3):
        assert rows.step() < TOLERANCE


@pytest.mark.parametrize("store", STORES)
def test_pages_of_a_row_that_left_are_another_rows(store: Any) -> None:
    rows = Rows(store)
    rows.join(tokens(50), tokens(20))
    rows.step()
    before = rows.kv.nbytes
    rows.leave(0)
    rows.join(tokens(45))
    assert rows.step() < TOLERANCE
    assert rows.kv.nbytes == before


@pytest.mark.parametrize("store", STORES)
def test_pages_that_were_kept_say_what_their_row_said_when_others_have_come_and_gone(store: Any) -> None:
    """Across slabs, and in another order than that of memory."""
    rows = Rows(store)
    rows.join(tokens(20), tokens(5 * SIZE), tokens(9 * SIZE))
    rows.step()
    kept = [rows.kv.keep(RowId(row), 0, 4 * SIZE) for row in (2, 1)]
    for _ in range(3):
        rows.leave(0)
    rows.join(tokens(7 * SIZE), tokens(7 * SIZE))
    rows.step()
    caches = rows.kv.open([[one] for one in kept])
    expected = rows.kv.open()
    MODEL(mx.array([tokens(4 * SIZE)] * 2), cache=expected)
    for held, computed in zip(caches, expected, strict=True):
        for one, other in zip(held.state[:2], computed.state[:2], strict=True):
            assert float(mx.abs(one - other[:, :, : 4 * SIZE]).max()) < TOLERANCE


def test_kept_pages_are_free_again_when_they_are_dropped() -> None:
    rows = Rows()
    rows.join(tokens(5 * SIZE))
    kept = rows.kv.keep(RowId(0), SIZE, 3 * SIZE)
    rows.leave(0)
    assert rows.kv.nbytes > 0
    rows.kv.drop(kept)
    rows.join([1, 2])
    rows.leave(0)
    assert rows.kv.nbytes == 0


@pytest.mark.parametrize("store", STORES)
def test_a_row_leaves_while_its_step_still_runs(store: Any) -> None:
    """Nothing is evaluated before the row is gone and another has its pages."""
    rows = Rows(store)
    rows.join(tokens(30))
    rows.join(tokens(9))
    order = rows.kv.arrange()
    ridden = rows.kv.decode(mx.array([rows.held[row][-1] for row in order]))
    mx.async_eval(ridden)  # type: ignore[no-untyped-call]
    rows.leave(0)
    for held in rows.held.values():
        held.append(5)
    rows.join(tokens(12))
    assert rows.step() < TOLERANCE


class Compiling(PlainStore):
    """Takes the way of stores whose steps are compiled, though nothing is compiled here."""

    compiles = True


@pytest.mark.skipif(
    mx.default_device() != mx.Device(mx.cpu), reason="plain pages read lengths that compiling would fix"
)
def test_steps_whose_form_comes_often_give_what_they_gave_before() -> None:
    rows = Rows(Compiling)
    rows.join(tokens(20), [4, 5])
    for _ in range(OFTEN + 3):
        assert rows.step() < TOLERANCE
    rows.join(tokens(9))
    assert rows.step() < TOLERANCE


def test_bytes_are_those_of_slabs_and_none_when_all_rows_have_left() -> None:
    rows = Rows()
    rows.join(tokens(SIZE + 2))
    assert rows.kv.nbytes > 0
    rows.join(tokens(5 * SIZE))
    assert rows.kv.nbytes == 3 * SLAB * FORM.page_bytes
    rows.leave(0)
    rows.leave(0)
    assert rows.kv.nbytes == 0


def test_what_is_reserved_is_held_before_the_first_row_and_behind_the_last() -> None:
    kv = Paged(MODEL, FORM, PlainStore(FORM, SLAB), reserve=3 * SLAB * FORM.page_bytes)
    reserved = kv.nbytes
    rows = Rows()
    rows.kv = kv
    rows.join(tokens(9 * SLAB * SIZE))
    assert rows.step() < TOLERANCE
    assert rows.kv.nbytes > reserved == 3 * SLAB * FORM.page_bytes
    rows.leave(0)
    assert rows.kv.nbytes == reserved


def test_slabs_are_given_back_when_most_of_them_are_free() -> None:
    rows = Rows()
    rows.join([1, 2])
    rows.join(tokens(20 * SIZE))
    rows.leave(1)
    assert rows.step() < TOLERANCE
    assert rows.kv.nbytes > 0
    assert rows.step() < TOLERANCE


@given(lengths=st.lists(st.integers(1, 200), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_what_fits_is_told_before_it_is_there(lengths: list[int]) -> None:
    rows = Rows()
    rows.join(*[tokens(length + 1) for length in lengths])
    rows.kv.arrange()
    assert Rows(room=Room(8, rows.kv.nbytes)).kv.fits(lengths)
    assert not Rows(room=Room(8, SLAB * FORM.page_bytes * (rows.kv.nbytes // (SLAB * FORM.page_bytes)) - 1)).kv.fits(
        lengths
    )
    assert Rows(room=Room(8, 0)).kv.fits(lengths[:1])


def test_after_a_clear_everything_begins_anew() -> None:
    rows = Rows()
    rows.join(tokens(40), [3])
    rows.step()
    rows.kv.clear()
    rows.held.clear()
    assert rows.kv.nbytes == 0
    rows.join(tokens(7))
    assert rows.step() < TOLERANCE


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=100), st.sampled_from([1, 2, 8, 32]))
def test_as_many_parts_are_launched_whatever_the_rows_lengths(lengths: list[int], kv_heads: int) -> None:
    rows, steps = FEW.decoding(len(lengths)), AHEAD
    part, parts = part_tokens([length + steps for length in lengths], kv_heads), parts_of(rows, kv_heads)
    plan = planned(PlainStore(FORM, SLAB), [[0]] * len(lengths), lengths, steps, part, rows=rows, least_parts=parts)
    assert plan.parts == parts
    assert plan.lengths.tolist() == [*lengths, *[0] * (rows - len(lengths))]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("window", [1, 3, 40])
def test_a_window_shows_the_last_tokens_alone(store: Any, window: int) -> None:
    kv: Store = store(FORM, SLAB)
    kv.hold(1)
    random = mx.random.split(mx.random.key(1), 5)
    keys, values = (mx.random.normal((1, 2, 50, 64), key=key) for key in random[:2])
    token = tuple(
        mx.random.normal((1, heads, 1, 64), key=key) for heads, key in zip((4, 2, 2), random[2:], strict=True)
    )
    plan = planned(kv, [[2, 0]], [50], steps=14, part=128)
    kv.write(0, keys, values, Goal(plan.table, [50]))
    attended = kv.attend(0, (token[0], token[1], token[2]), plan, 0.125, window)
    held = (
        mx.concatenate([one, new], axis=2)[:, :, -window:] for one, new in zip((keys, values), token[1:], strict=True)
    )
    expected = mx.fast.scaled_dot_product_attention(token[0], *held, scale=0.125)
    assert float(mx.abs(attended - expected).max()) < TOLERANCE


def test_models_whose_caches_are_not_plain_have_no_form() -> None:
    for model in (tiny.sliding_window(), tiny.recurrent()):
        cache = model.make_cache()
        model(mx.array([[0]]), cache=cache)
        assert form_of(model, cache) is None


def test_a_model_of_plain_caches_and_a_head_size_of_ours_has_a_form() -> None:
    for size, form in ((64, FORM), (8, None)):
        model = tiny.attention(head_size=size)
        cache = Paged(model, FORM, PlainStore(FORM, SLAB)).open()
        model(mx.array([[0]]), cache=cache)
        assert form_of(model, cache) == form


def test_a_store_that_attends_like_plain_operations_is_told_from_one_that_does_not() -> None:
    assert agrees(PlainStore, FORM)
    assert not agrees(Forgetful, FORM)
    assert not agrees(Broken, FORM)


def test_a_store_that_turns_like_plain_operations_is_told_from_one_that_does_not() -> None:
    for turn in (TURN, replace(TURN, traditional=True), replace(TURN, query_norm=None, key_norm=None)):
        assert agrees(PlainStore, FORM, turn)
        assert not agrees(Still, FORM, turn)
        assert not agrees(Late, FORM, turn)


def test_a_turn_is_one_of_heads_that_it_finds_room_in() -> None:
    assert TURN.suits(64)
    assert not TURN.suits(32)
    assert not TURN.suits(128)
    assert replace(TURN, query_norm=None, key_norm=None).suits(128)
    assert not replace(TURN, dims=62).suits(64)


TURN = Turn(
    frequencies=frequencies(64, 10_000),
    dims=64,
    traditional=False,
    query_norm=mx.full((64,), 300.0),
    key_norm=mx.full((64,), 200.0),
    eps=1e-6,
)


class Still(PlainStore):
    """Turns nothing."""

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        return super().attend(layer, token, plan, scale, window)


class Late(PlainStore):
    """Takes the place behind a row's new token for the token's own."""

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        late = turned(token, plan.lengths + 1, turn)
        return super().attend(layer, late, plan, scale, window)


class Forgetful(PlainStore):
    """Does not see a row's last token."""

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        queries, keys, values = token
        return super().attend(layer, (queries, keys, mx.zeros_like(values)), plan, scale, window, turn)


class Broken(PlainStore):
    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        raise RuntimeError("the kernel cannot be launched")
