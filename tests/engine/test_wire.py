"""Frames between the processes, however they are cut."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine import wire
from mlxrpc_server.types import LogProbs, RowId, Sampling

SAMPLING = Sampling(temperature=0.1, top_p=0.2, top_k=3, min_p=0.4, seed=2**64 - 1)
ROW = RowId(2**40)

DOWN: list[wire.Message] = [
    wire.Load(name="m", path="/a b", log_format="json", max_rows=4, prefill_tokens=5),
    wire.Submit(row=ROW, prompt=[1, 151_935], produced=[], sampling=SAMPLING, max_tokens=9, stop_ids=[2]),
    wire.Cancel(ROW),
    wire.Ask(number=3, tenant="누구", prompt=[1, 151_935]),
    wire.Shutdown(),
]
UP: list[wire.Message] = [
    wire.Progress("weights"),
    wire.Ready(
        vocabulary_size=9,
        batched=True,
        dtype="float32",
        device="cpu",
        parameter_count=2**40,
        memory_bytes=3,
    ),
    wire.Step(
        step=1,
        rows=[ROW],
        tokens=[7],
        left=[ROW],
        reasons=[wire.Left.STOP_TOKEN],
        prefilled=[(ROW, 3)],
        prefill_seconds=0.25,
        seconds=0.5,
        logprobs=[LogProbs(-0.5, (7, 3), (-0.5, -2.0))],
    ),
    wire.Stats(step=1, rows=2, waiting=3, memory_bytes=4),
    wire.Held(number=3, tokens=64),
    wire.Failed("여기까지 😀"),
]


def received(union: Any, *chunks: bytes) -> list[wire.Message]:
    frames = wire.Frames(union)
    return [message for chunk in chunks for message in frames.feed(chunk)]


@pytest.mark.parametrize(("union", "messages"), [(wire.Down, DOWN), (wire.Up, UP)], ids=["down", "up"])
def test_every_message_survives_the_journey(union: Any, messages: list[wire.Message]) -> None:
    assert {type(message) for message in messages} == set(get_args(union))
    assert received(union, b"".join(wire.encode(message) for message in messages)) == messages


@given(cuts=st.lists(st.integers(0, 500), max_size=30), order=st.permutations(range(len(UP))))
def test_frames_arrive_whole_however_the_bytes_are_cut(cuts: list[int], order: list[int]) -> None:
    messages = [UP[place] for place in order]
    data = b"".join(wire.encode(message) for message in messages)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    assert received(wire.Up, *(data[start:end] for start, end in pairwise(places))) == messages


def test_half_a_frame_gives_nothing_yet() -> None:
    assert received(wire.Up, wire.encode(UP[0])[:-1]) == []
    assert received(wire.Up, b"", b"\x01") == []


def test_a_frame_longer_than_any_message_is_refused_before_it_is_kept() -> None:
    frames = wire.Frames(wire.Up)
    with pytest.raises(ValueError, match="4,294,967,295 bytes is no message"):
        list(frames.feed(struct.pack("<I", 2**32 - 1)))


@given(body=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_value_error_or_a_message(body: bytes) -> None:
    """Nothing else may come out: whoever receives catches no more than that."""
    try:
        messages = received(wire.Up, struct.pack("<I", len(body)) + body)
    except ValueError:
        return
    assert isinstance(messages[0], wire.Message)


def test_a_message_for_the_other_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="is no message"):
        received(wire.Up, wire.encode(wire.Shutdown()))
