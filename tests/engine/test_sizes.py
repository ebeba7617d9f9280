"""Where new sizes are dear, few come: of what is prefilled and of what decodes; and nobody's tokens tell of it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.paged import Form, Paged
from mlxrpc_server.engine.sizes import EXACT, FEW, LONGEST
from tests.engine import tiny
from tests.engine.running import HandClock, Run, alone, row

counts = st.integers(1, 20_000)

MODEL = tiny.attention()
FORM = Form(layers=2, kv_heads=2, head_size=8, queries=2, dtype=mx.float32)


class Few(PlainStore):
    sizes = FEW


class Recorded:
    """A model, and the sizes of what it was fed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.sizes.append((tokens.shape[0], tokens.shape[1]))
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def prefilled(self) -> list[tuple[int, int]]:
        return [size for size in self.sizes if size[1] > 1]


def recorded(**settings: Any) -> tuple[Recorded, Run]:
    """Such a model in pages, ready to run rows."""
    model = Recorded(MODEL)
    kv = Paged(model, FORM, Few(FORM, 8))
    model.sizes.clear()
    return model, Run(model, kv=kv, **settings)


@given(counts)
def test_what_comes_as_it_is_stays_so(count: int) -> None:
    assert (
        EXACT.rows(count)
        == EXACT.width(count)
        == EXACT.rest(count)
        == EXACT.chunk(count)
        == EXACT.decoding(count)
        == count
    )


@given(counts)
def test_nothing_is_cut_off_and_little_is_added(count: int) -> None:
    assert count <= FEW.rows(count) < 2 * count + 1
    assert count <= FEW.decoding(count) <= FEW.rows(count)
    assert count <= FEW.width(count) <= max(count + 15, 1.25 * count)
    assert count <= FEW.rest(count) < max(513, 2 * count)
    assert count <= FEW.pages(count) < max(1025, 2 * count)


@pytest.mark.parametrize(("size", "most"), [(FEW.rows, 9), (FEW.decoding, 16), (FEW.width, 12), (FEW.rest, 1)])
def test_there_are_few_of_them(size: Any, most: int) -> None:
    assert len({size(count) for count in range(1, 257)}) <= most


def test_prompts_that_are_prefilled_together_are_padded_to_few_widths_and_rows() -> None:
    model, run = recorded()
    prompts = {number: [(3 * number + place) % 50 for place in range(12 + number)] for number in range(3)}
    for number, prompt in prompts.items():
        run.batch.submit(row(number, prompt))
    run.to_end()
    assert model.prefilled == [(4, 16)]
    for number, prompt in prompts.items():
        assert run.tokens(number) == alone(MODEL, row(number, prompt))


def test_a_short_prompt_is_not_padded_to_a_much_longer_one() -> None:
    model, run = recorded()
    prompts = {0: [place % 50 for place in range(17)], 1: [5, 6, 7]}
    for number, prompt in prompts.items():
        run.batch.submit(row(number, prompt))
    run.to_end()
    assert model.prefilled == [(1, 16), (1, 16)]
    for number, prompt in prompts.items():
        assert run.tokens(number) == alone(MODEL, row(number, prompt))


def test_a_long_prompt_is_cut_into_chunks_that_are_all_alike_and_one_padded_rest() -> None:
    model, run = recorded()
    prompt = [place % 50 for place in range(LONGEST + 200)]
    run.batch.submit(row(1, prompt))
    run.to_end()
    assert [width for _, width in model.prefilled] == [LONGEST, FEW.rest(199)]
    assert run.tokens(1) == alone(MODEL, row(1, prompt))


def test_such_a_chunk_is_no_longer_than_a_step_may_be() -> None:
    model, run = recorded(prefill_tokens=100)
    run.batch.submit(row(1, [place % 50 for place in range(250)]))
    run.to_end()
    assert [width for _, width in model.prefilled][:2] == [100, 100]


def test_rows_that_decode_come_in_few_numbers_and_give_what_they_give_alone() -> None:
    model, run = recorded()
    for number in range(5):
        run.batch.submit(row(number, [number + 1, 2, 3], max_tokens=6 + number))
    run.to_end()
    decoded = {rows for rows, width in model.sizes if width == 1}
    assert decoded <= {FEW.decoding(count) for count in range(1, 6)}
    for number in range(5):
        assert run.tokens(number) == alone(MODEL, row(number, [number + 1, 2, 3], max_tokens=6 + number))


def test_rows_behind_a_kept_beginning_are_padded_too() -> None:
    _, run = recorded(prefix_bytes=1 << 20)
    shared = [place % 50 for place in range(330)]
    run.batch.submit(row(0, [*shared, 1]))
    run.to_end()
    for number in range(1, 4):
        run.batch.submit(row(number, [*shared, number, 7]))
    run.to_end()
    for number in range(1, 4):
        assert run.cached(number) == [FEW.beginning]
        assert run.tokens(number) == alone(MODEL, row(number, [*shared, number, 7]))


def test_no_chunk_is_so_long_that_its_attention_would_take_all_memory() -> None:
    model = Recorded(MODEL)
    run = Run(model, prefill_tokens=8192, clock=HandClock(1e-6))
    run.batch.submit(row(1, [place % 50 for place in range(9000)]))
    run.to_end()
    assert max(width for _, width in model.sizes) == LONGEST
