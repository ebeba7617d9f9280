"""Rows that begin with what was kept of others give the tokens that they give alone, in every layout."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.paged import Paged, form_of
from mlxrpc_server.engine.prefix import BLOCK, Kept
from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId, Sampling
from tests.engine import tiny
from tests.engine.architectures import MERGED, plain
from tests.engine.rows import for_model
from tests.engine.running import GREEDY, Run, row
from tests.same_tokens import Judge

PLENTY = 1 << 40


@dataclass(frozen=True)
class Layout:
    model: Callable[[], Any]
    kv: Callable[[Any, Room], KV]

    def run(self, kv_bytes: int = PLENTY, prefix_bytes: int = PLENTY, **settings: Any) -> Run:
        model = loaded(self.model)
        kv = self.kv(model, Room(64, kv_bytes))
        return Run(model, kv=kv, prefix_bytes=prefix_bytes, **{"ahead": kv.ahead, **settings})

    def check(self, one: Row, actual: Sequence[int]) -> None:
        """Against the row alone, with nothing kept."""
        run = self.run(prefix_bytes=0)
        run.batch.submit(again(one))
        judge(self.model).check(one.prompt, one.sampling, run.to_end().tokens(one.id), actual)


def again(one: Row) -> Row:
    return row(one.id, one.prompt, one.max_tokens, one.sampling, stop_ids=sorted(one.stop_ids))


@functools.cache
def loaded(model: Callable[[], Any]) -> Any:
    return model()


@functools.cache
def judge(model: Callable[[], Any]) -> Judge:
    return Judge(loaded(model))


def in_pages(model: Any, room: Room) -> Paged:
    form = form_of(model, for_model_caches(model))
    assert form is not None
    return Paged(model, form, PlainStore(form, 4), room)


def for_model_caches(model: Any) -> list[Any]:
    caches = for_model(model).open()
    model(mx.array([[0]]), cache=caches)
    return caches


wide = functools.partial(plain, 64)

LAYOUTS = {
    "blocks": Layout(tiny.attention, for_model),
    "8 bits": Layout(wide, lambda model, room: for_model(model, room, 8)),
    "pages": Layout(wide, in_pages),
    "lanes": Layout(tiny.attention, Lanes),
} | {name: Layout(model, for_model) for name, model in MERGED.items()}

DIVISIBLE = ["blocks", "8 bits", "pages"]
layouts = pytest.mark.parametrize("layout", [pytest.param(layout, id=name) for name, layout in LAYOUTS.items()])
divisible = pytest.mark.parametrize("layout", [pytest.param(LAYOUTS[name], id=name) for name in DIVISIBLE])
whole = pytest.mark.parametrize(
    "layout", [pytest.param(layout, id=name) for name, layout in LAYOUTS.items() if name not in DIVISIBLE]
)


def words(count: int, kind: int = 0) -> list[int]:
    return [(5 * place + 17 * kind + place // 7) % tiny.VOCABULARY for place in range(count)]


@layouts
def test_a_second_turn_begins_behind_the_first(layout: Layout) -> None:
    run = layout.run()
    first = row(1, words(150), max_tokens=8)
    run.batch.submit(first)
    answer = run.to_end().tokens(1)
    second = row(2, [*first.prompt, *answer, *words(20, 1)], max_tokens=8)
    run.batch.submit(second)
    run.to_end()
    assert run.cached(1) == [0]
    assert run.cached(2)[0] >= 2 * BLOCK
    layout.check(second, run.tokens(2))


@layouts
def test_the_same_prompt_again_leaves_one_token_to_feed(layout: Layout) -> None:
    run = layout.run()
    prompt = words(2 * BLOCK + 1)
    for number in (1, 2):
        run.batch.submit(row(number, prompt))
        run.to_end()
    assert run.cached(2) == [2 * BLOCK]
    layout.check(row(2, prompt), run.tokens(2))


@divisible
def test_rows_that_share_a_beginning_are_prefilled_together(layout: Layout) -> None:
    run = layout.run()
    shared = words(3 * BLOCK)
    run.batch.submit(row(0, shared))
    run.to_end()
    rows = [row(number, [*shared, *words(5 + number, number)], max_tokens=6) for number in (1, 2, 3, 4)]
    for one in rows:
        run.batch.submit(one)
    outcome = run.step()
    assert outcome.cached == [(one.id, 3 * BLOCK) for one in rows]
    run.to_end()
    for one in rows:
        layout.check(one, run.tokens(one.id))


@divisible
def test_rows_with_different_beginnings_of_the_same_length_are_prefilled_together(layout: Layout) -> None:
    run = layout.run()
    rows = [row(number, words(2 * BLOCK + 20, number), max_tokens=6) for number in (1, 2, 3)]
    for one in rows:
        run.batch.submit(row(100 + one.id, one.prompt[: 2 * BLOCK + 5]))
    run.to_end()
    for one in rows:
        run.batch.submit(one)
    assert run.step().cached == [(one.id, 2 * BLOCK) for one in rows]
    run.to_end()
    for one in rows:
        layout.check(one, run.tokens(one.id))


@divisible
def test_a_row_begins_while_the_one_that_it_shares_with_still_runs(layout: Layout) -> None:
    run = layout.run()
    rows = [row(1, words(200), max_tokens=30), row(2, [*words(200), 3, 4], max_tokens=30)]
    run.batch.submit(rows[0])
    run.step(2)
    run.batch.submit(rows[1])
    run.to_end()
    assert run.cached(2) == [200 // BLOCK * BLOCK]
    for one in rows:
        layout.check(one, run.tokens(one.id))


@whole
def test_where_two_rows_parted_a_third_begins(layout: Layout) -> None:
    run = layout.run()
    shared = words(2 * BLOCK)
    for number in (1, 2, 3):
        one = row(number, [*shared, *words(30, number)], max_tokens=6)
        run.batch.submit(one)
        run.to_end()
        layout.check(one, run.tokens(number))
    assert [run.cached(number) for number in (1, 2, 3)] == [[0], [0], [2 * BLOCK]]


@layouts
def test_what_a_row_said_is_kept_with_what_it_was_asked(layout: Layout) -> None:
    run = layout.run()
    first = row(1, words(100), max_tokens=200, stop_ids=[])
    run.batch.submit(first)
    run.step(120)
    run.batch.cancel(RowId(1))
    run.to_end()
    said = run.tokens(1)
    second = row(2, [*first.prompt, *said, 1, 2], max_tokens=6)
    run.batch.submit(second)
    run.to_end()
    assert run.left(1) == [Left.CANCELLED]
    assert run.cached(2)[0] > len(first.prompt) + len(said) - BLOCK - 2
    layout.check(second, run.tokens(2))


@layouts
def test_a_row_that_bypasses_neither_reads_nor_writes(layout: Layout) -> None:
    run = layout.run()
    run.batch.submit(row(1, words(150), bypass=True))
    run.to_end()
    assert run.batch.prefix_bytes == 0
    for number, bypass in ((2, False), (3, True)):
        run.batch.submit(row(number, words(150), bypass=bypass))
        run.to_end()
    assert [run.cached(number) for number in (2, 3)] == [[0], [0]]


@layouts
def test_tenants_share_nothing(layout: Layout) -> None:
    run = layout.run()
    for number, tenant in enumerate(["a", "b", "", "a"]):
        run.batch.submit(row(number, words(150), tenant=tenant))
        run.to_end()
    assert [run.cached(number) > [0] for number in range(4)] == [False, False, False, True]


class Watched:
    """A layout, and all that was kept in it."""

    def __init__(self, kv: KV) -> None:
        self.kv = kv
        self.kept: list[tuple[RowId, int, Kept]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kv, name)

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        self.kept.append((row, end, self.kv.keep(row, start, end)))
        return self.kept[-1][2]


@whole
def test_a_state_is_kept_for_exactly_the_tokens_that_it_has_seen(layout: Layout) -> None:
    model = loaded(layout.model)
    kv: Any = Watched(layout.kv(model, Room(64, PLENTY)))
    run = Run(model, kv=kv, prefix_bytes=PLENTY, ahead=kv.ahead)
    rows = [row(number, words(70, number), max_tokens=5 + 4 * number) for number in range(4)]
    for one in rows:
        run.batch.submit(one)
    run.step(7)
    run.batch.cancel(rows[2].id)
    run.to_end()
    assert len({number for number, _, _ in kv.kept}) == 4
    for number, end, kept in kv.kept:
        seen = [*rows[number].prompt, *run.tokens(number)][:end]
        behind = model(mx.array([[5]]), cache=copy.deepcopy(kept.content))[0, -1]
        assert float(mx.abs(behind - tiny.logits_alone(model, [*seen, 5])).max()) < 1e-3


def test_a_preempted_row_begins_again_behind_what_it_had() -> None:
    layout = LAYOUTS["blocks"]
    rows = [row(number, words(100, number), max_tokens=120) for number in (1, 2, 3)]
    run = layout.run(kv_bytes=120_000, prefix_bytes=120_000)
    for one in rows:
        run.batch.submit(one)
    run.to_end()
    assert run.preempted
    assert any(cached > 0 for number in run.preempted for cached in run.cached(number)[1:])
    for one in rows:
        layout.check(one, run.tokens(one.id))


def test_what_is_kept_makes_room_before_a_row_has_to_wait_or_to_go() -> None:
    layout = LAYOUTS["blocks"]
    room = 200_000
    run = layout.run(kv_bytes=room, prefix_bytes=room)
    for number in range(20):
        run.batch.submit(row(number, words(150, number)))
        run.to_end()
    kept = run.batch.prefix_bytes
    rows = [row(100 + number, words(60, 100 + number), max_tokens=60) for number in range(4)]
    for one in rows:
        run.batch.submit(one)
    run.step()
    assert run.batch.rows == 4
    run.to_end()
    assert not run.preempted
    assert kept > room // 2
    assert run.batch.prefix_bytes <= room


def test_rows_that_begin_again_after_a_failure_trust_nothing_kept() -> None:
    run = LAYOUTS["pages"].run()
    one = row(1, words(200), max_tokens=20)
    run.batch.submit(one)
    run.step(5)
    before = run.batch.prefix_bytes
    run.batch.rebuild()
    assert (before > 0, run.batch.prefix_bytes) == (True, 0)
    run.to_end()
    assert run.cached(1) == [0, 0]
    LAYOUTS["pages"].check(one, run.tokens(1))


@dataclass(frozen=True)
class Asked:
    """A row of a conversation: what it says before, by the numbers of some texts, and how much it is to say."""

    texts: list[int]
    cut: int
    max_tokens: int
    comes: int
    tenant: str
    sampling: Sampling
    cancelled: int | None


asked = st.builds(
    Asked,
    texts=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    cut=st.integers(0, 80),
    max_tokens=st.integers(1, 12),
    comes=st.integers(0, 20),
    tenant=st.sampled_from(["", "", "a"]),
    sampling=st.sampled_from([GREEDY, Sampling(temperature=0.8, top_p=0.9, top_k=0, min_p=0.0, seed=5)]),
    cancelled=st.none() | st.integers(0, 30),
)


@layouts
@settings(deadline=None, max_examples=12)
@given(rows=st.lists(asked, min_size=2, max_size=8), kv_tokens=st.sampled_from([600, 1 << 30]), share=st.booleans())
def test_nobody_s_tokens_depend_on_what_is_kept(layout: Layout, rows: list[Asked], kv_tokens: int, share: bool) -> None:
    """Branches of conversations come at any time, in little room or much."""
    kv_bytes = kv_tokens * 600
    run = layout.run(kv_bytes=kv_bytes, prefix_bytes=kv_bytes // 4 if share else kv_bytes)
    submitted = [made(number, one) for number, one in enumerate(rows)]
    for step in range(31):
        for one, asked in zip(submitted, rows, strict=True):
            if asked.comes == step:
                run.batch.submit(one)
            if asked.cancelled == step:
                run.batch.cancel(one.id)
        if not run.batch.idle:
            run.step()
    run.to_end()
    assert run.batch.prefix_bytes <= kv_bytes
    for one in submitted:
        if run.left(one.id) != [Left.CANCELLED]:
            layout.check(one, run.tokens(one.id))


def made(number: int, asked: Asked) -> Row:
    prompt = [token for text in asked.texts for token in words(70, text)][: max(1, 70 * len(asked.texts) - asked.cut)]
    return row(number, prompt, asked.max_tokens, asked.sampling, tenant=asked.tenant)
