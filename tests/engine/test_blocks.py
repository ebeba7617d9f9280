"""Rows side by side give what they give alone, whoever joins and leaves."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
from hypothesis import given, settings

from mlxrpc_server.engine.blocks import Blocks, _Places
from mlxrpc_server.engine.room import COLUMN_STEP, SHORT_STEP, Room
from tests.engine import tiny
from tests.engine.rows import Rows, joint_operations, run

ATTENTION = tiny.attention()

CELL_BYTES = 2 * 2 * 2 * 8 * 4
"""Of ATTENTION: keys and values of two layers with two heads of eight float32."""


def held(room: Room) -> tuple[Rows, Blocks]:
    kv = Blocks(ATTENTION, room)
    return Rows(ATTENTION, kv), kv


@settings(max_examples=60)
@given(script=joint_operations)
def test_blocks_give_the_logits_of_solo_runs_whoever_joins_and_leaves(script: list[tuple[str, Any]]) -> None:
    assert run(Rows(ATTENTION, Blocks(ATTENTION)), script) < 1e-4


def test_prompts_of_one_token_have_nothing_to_prefill() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    rows.join([5])
    rows.join([6])
    assert rows.step() < 1e-4
    rows.append(1)
    rows.join([7])
    assert rows.step() < 1e-4


def test_a_row_that_never_decoded_may_leave() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    for prompt in ([1], [2, 3, 4], [5]):
        rows.join(prompt)
    rows.leave(0)
    rows.leave(1)
    assert list(rows.held.values()) == [[2, 3, 4]]
    assert rows.step() < 1e-4


def test_rows_grow_past_the_columns_reserved_for_them() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    rows.join([token % tiny.VOCABULARY for token in range(COLUMN_STEP - 1)])
    rows.join([1, 2, 3])
    for token in range(4):
        assert rows.step() < 1e-4
        rows.append(token)


def test_a_long_prompt_joins_short_rows() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    rows.join([1, 2])
    rows.step()
    rows.append(9)
    rows.join([token % tiny.VOCABULARY for token in range(COLUMN_STEP + 30)])
    assert rows.step() < 1e-4


def test_room_is_given_back_when_the_longest_row_leaves() -> None:
    rows, kv = held(Room(rows=8, bytes=1 << 30))
    for prompt in ([1, 2], [token % tiny.VOCABULARY for token in range(4 * COLUMN_STEP)], [3, 4]):
        rows.join(prompt)
    assert rows.step() < 1e-4
    rows.append(5)
    rows.leave(1)
    assert rows.step() < 1e-4
    assert kv.nbytes == 2 * SHORT_STEP * CELL_BYTES
    rows.append(6)
    assert rows.step() < 1e-4


def test_room_is_given_back_when_most_rows_leave() -> None:
    rows, kv = held(Room(rows=8, bytes=1 << 30))
    for number in range(8):
        rows.join([number, 1])
    for _ in range(7):
        rows.leave(0)
    assert rows.step() < 1e-4
    assert kv.nbytes == SHORT_STEP * CELL_BYTES


def test_a_long_row_costs_its_short_neighbours_nothing() -> None:
    """One of 4,000 tokens and seven of 8: as they are laid out, at most 1.5 times their tokens."""
    rows, kv = held(Room(rows=64, bytes=1 << 30))
    long = 4000
    for length in (long, *[8] * 7):
        rows.join([token % tiny.VOCABULARY for token in range(length)])
    rows.step()
    assert kv.nbytes <= 1.5 * (long + 7 * 8) * CELL_BYTES


def test_rows_move_among_longer_ones_as_they_grow() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    for length in (2 * SHORT_STEP - 3, 2 * SHORT_STEP - 1, 5, 4 * SHORT_STEP - 2):
        rows.join([token % tiny.VOCABULARY for token in range(length)])
    for token in range(6):
        assert rows.step() < 1e-4
        rows.append(token)


def test_rows_that_outgrow_their_block_together_do_not_copy_it_each() -> None:
    count = 64
    rows, kv = held(Room(rows=count, bytes=1 << 30))
    length = 2 * SHORT_STEP - 2
    rows.join_together([[1] * (length + number % 2) for number in range(count)])
    decode_zeros(kv)
    transient = [decode_zeros(kv) for _ in range(3)]  # half of them moves in one step, and half in the next
    assert kv.nbytes == 3 * SHORT_STEP * count * CELL_BYTES
    assert max(transient) < 3 * 2 * SHORT_STEP * count * CELL_BYTES


def decode_zeros(kv: Blocks) -> int:
    """The most bytes that it takes meanwhile."""
    active = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(kv.decode(mx.zeros((len(kv.arrange()),), mx.int32)))
    return mx.get_peak_memory() - active


def test_all_room_is_given_back_when_all_rows_have_left() -> None:
    gc.collect()  # what earlier tests left must not go meanwhile
    active = mx.get_active_memory()
    rows, kv = held(Room(rows=8, bytes=1 << 30))
    for prompt in ([1, 2], [token % tiny.VOCABULARY for token in range(COLUMN_STEP)]):
        rows.join(prompt)
    rows.step()
    assert mx.get_active_memory() >= active + kv.nbytes
    rows.leave(0)
    rows.leave(0)
    assert kv.nbytes == 0
    assert mx.get_active_memory() < active + CELL_BYTES * SHORT_STEP


def test_the_layout_takes_the_bytes_that_it_tells() -> None:
    rows, kv = held(Room(rows=8, bytes=1 << 30))
    rows.join([1, 2])
    rows.join([1] * (COLUMN_STEP + 1))
    assert kv.nbytes == (SHORT_STEP + 2 * COLUMN_STEP) * CELL_BYTES


def test_many_rows_find_room() -> None:
    rows = Rows(ATTENTION, Blocks(ATTENTION))
    for row in range(11):
        rows.join(list(range(row, row + 1 + row % 4)))
    assert rows.step() < 1e-4


def test_rows_of_one_length_are_attended_to_without_a_mask() -> None:
    assert _Places([5, 5]).mask(None) is None
    assert _Places([5]).mask(6) is None
    assert _Places([5, 4]).mask(None) is not None
    assert _Places([5, 5]).mask(3) is not None


def test_a_window_hides_what_lies_before_it() -> None:
    mask = _Places([5, 2]).mask(3)
    assert mask is not None
    assert mask[:, 0, 0].astype(mx.int32).tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
