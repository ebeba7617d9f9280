"""The made-up rows that run before the first request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import pytest

from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sizes import EXACT, FEW
from mlxrpc_server.engine.warm import LONG_PROMPT, prefills, row_counts, warm, warmed
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import Run, alone, row


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_every_power_of_two_and_the_most_are_tried(most: int, counts: list[int]) -> None:
    assert row_counts(EXACT, most) == counts


def test_where_rows_decode_in_few_numbers_all_of_them_are_tried() -> None:
    assert row_counts(FEW, 16) == [1, 2, 3, 4, 6, 8, 12, 16]


def test_prompts_are_tried_in_the_sizes_that_serving_gives_them() -> None:
    tried = [(rows, width) for rows, [width, *more] in prefills(8) if not more]
    assert {(FEW.rows(rows), FEW.width(tokens)) for rows in range(1, 9) for tokens in range(1, 257)} <= set(tried)
    assert {(1, FEW.width(tokens)) for tokens in range(1, 2049)} <= set(tried)


@pytest.mark.parametrize("build", [tiny.attention, tiny.sliding_window, tiny.recurrent])
def test_nothing_is_left_behind(build: object) -> None:
    model = build()  # type: ignore[operator]
    kv = for_model(model)
    run = Run(model, kv=kv, prefix_bytes=1 << 20)
    warm(run.batch, model, kv, max_rows=3)
    assert kv.nbytes == run.batch.prefix_bytes == 0
    assert list(kv.arrange()) == []
    run.batch.submit(row(1, [3, 4, 5]))
    assert run.to_end().tokens(1) == alone(model, row(1, [3, 4, 5]))


class Noted:
    """A batch that ends its rows at once, and says which of them were there together."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self._rows: list[Row] = []

    @property
    def idle(self) -> bool:
        return not self._rows

    def submit(self, row: Row) -> None:
        self._rows.append(row)
        self.together.append([len(one.prompt) for one in self._rows])

    def step(self) -> None:
        self._rows = [replace(one, max_tokens=one.max_tokens - 1) for one in self._rows if one.max_tokens > 1]


class Few:
    """A layout whose rows come in few sizes, and that holds nothing."""

    sizes = FEW

    def open(self) -> list[Any]:
        return []


def test_a_long_prompt_comes_beside_rows_where_sizes_are_few() -> None:
    batch = Noted()
    warm(cast("Any", batch), lambda _tokens, cache: cache, cast("Any", Few()), max_rows=4)
    beside = [lengths for lengths in batch.together if LONG_PROMPT in lengths]
    assert [len(lengths) for lengths in beside] == [4, 4]
    assert all(length < LONG_PROMPT for lengths in beside for length in lengths[:-1])


class TooSmall:
    """A model on a device that has room for some prompts only."""

    def __init__(self, model: Any, calls: int) -> None:
        self._model = model
        self.calls = calls

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.calls -= 1
        if self.calls == 0:
            raise RuntimeError("out of memory")
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize("calls", [1, 5])
def test_a_device_too_small_for_the_warm_up_serves_all_the_same(calls: int) -> None:
    plain = tiny.attention()
    model = TooSmall(plain, calls)
    kv = for_model(plain)
    run = Run(model, kv=kv)
    run.batch = warmed(lambda: Run(model, kv=kv).batch, model, kv, max_rows=3)
    assert model.calls <= 0
    assert kv.nbytes == 0
    assert run.batch.idle
    run.batch.submit(row(1, [3, 4, 5]))
    assert run.to_end().tokens(1) == alone(plain, row(1, [3, 4, 5]))
