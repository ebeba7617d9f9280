"""The made-up rows that run before the first request."""

from __future__ import annotations

import pytest

from mlxrpc_server.engine.warm import row_counts, warm
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import Run, alone, row


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_every_power_of_two_and_the_most_are_tried(most: int, counts: list[int]) -> None:
    assert list(row_counts(most)) == counts


@pytest.mark.parametrize("build", [tiny.attention, tiny.sliding_window, tiny.recurrent])
def test_nothing_is_left_behind(build: object) -> None:
    model = build()  # type: ignore[operator]
    kv = for_model(model)
    warm(model, kv, max_rows=3, prefill_tokens=256)
    assert kv.nbytes == 0
    assert list(kv.arrange()) == []
    one = row(1, [3, 4, 5])
    run = Run(model)
    run.batch.submit(one)
    assert run.to_end().tokens(1) == alone(model, row(1, [3, 4, 5]))
