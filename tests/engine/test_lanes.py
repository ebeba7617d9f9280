"""Rows one after another give what they give alone, and take what they were said to take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.room import COLUMN_STEP, Room
from tests.engine import tiny
from tests.engine.rows import Rows, operations, run

SLIDING_WINDOW = tiny.sliding_window()
RECURRENT = tiny.recurrent()


@settings(max_examples=15)
@given(script=operations)
@pytest.mark.parametrize("model", [SLIDING_WINDOW, RECURRENT], ids=["sliding window", "recurrent"])
def test_lanes_give_the_logits_of_solo_runs_whoever_joins_and_leaves(model: Any, script: list[tuple[str, Any]]) -> None:
    assert run(Rows(model, Lanes(model)), script) < 1e-4


@pytest.mark.parametrize("model", [SLIDING_WINDOW, RECURRENT], ids=["sliding window", "recurrent"])
def test_what_fits_in_lanes_is_told_before_it_is_there(model: Any) -> None:
    assert Lanes(model, Room(rows=8, bytes=0)).fits([10_000])
    rows = Rows(model, kv := Lanes(model))
    for prompt in ([1] * (COLUMN_STEP + 5), [2, 3]):
        rows.join(prompt)
    rows.step()
    assert Lanes(model, Room(rows=8, bytes=kv.nbytes)).fits([COLUMN_STEP + 5, 2])
    assert not Lanes(model, Room(rows=8, bytes=kv.nbytes - 1)).fits([COLUMN_STEP + 5, 2])
