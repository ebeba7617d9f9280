"""Each model gets the layout that suits it best, and none takes more than its rows were let in for."""

from __future__ import annotations

from typing import Any

import pytest

from mlxrpc_server.engine.blocks import Blocks
from mlxrpc_server.engine.lanes import Lanes
from mlxrpc_server.engine.layouts import layouts
from mlxrpc_server.engine.merged import Merged
from mlxrpc_server.engine.room import COLUMN_STEP, Room
from tests.engine import tiny
from tests.engine.rows import Rows, for_model

ATTENTION = tiny.attention()
SLIDING_WINDOW = tiny.sliding_window()
RECURRENT = tiny.recurrent()


def test_plain_attention_gets_blocks_and_what_mlx_lm_can_merge_is_merged() -> None:
    assert isinstance(for_model(ATTENTION), Blocks)
    assert isinstance(for_model(SLIDING_WINDOW), Merged)
    assert isinstance(for_model(RECURRENT), Merged)


def test_every_model_may_run_in_lanes_at_last() -> None:
    for model in (ATTENTION, SLIDING_WINDOW, RECURRENT):
        assert isinstance(list(layouts(model))[-1], Lanes)


@pytest.mark.parametrize("model", [ATTENTION, SLIDING_WINDOW, RECURRENT], ids=["blocks", "sliding window", "recurrent"])
def test_what_fits_is_told_before_it_is_there(model: Any) -> None:
    """Rows of so many tokens take no more than they were let in for; without any bytes one alone still fits."""
    kv = for_model(model, Room(rows=8, bytes=0))
    assert kv.fits([])
    assert kv.fits([10_000])
    assert not kv.fits([1, 1])
    rows = Rows(model, kv)
    for prompt in ([1] * (COLUMN_STEP + 5), [2, 3]):
        rows.join(prompt)
    rows.step()
    assert for_model(model, Room(rows=8, bytes=kv.nbytes)).fits([COLUMN_STEP + 5, 2])


def test_states_that_do_not_grow_are_priced_as_such() -> None:
    rows = Rows(RECURRENT, kv := for_model(RECURRENT))
    rows.join([1, 2, 3])
    rows.join([1, 2, 3])
    assert for_model(RECURRENT, Room(rows=8, bytes=kv.nbytes)).fits([100_000, 100_000])
