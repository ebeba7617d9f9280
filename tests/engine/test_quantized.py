"""Keys and values in fewer bits: a row gives the same alone and among others, in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings

from mlxrpc_server.engine.blocks import Blocks
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.load import CannotLoad, proven
from mlxrpc_server.engine.room import COLUMN_STEP, UNBOUNDED, Room
from mlxrpc_server.types import RowId
from tests.engine import architectures, tiny
from tests.engine.rows import Rows, for_model, joint_operations, run
from tests.engine.running import GREEDY, Run, alone, row
from tests.same_tokens import Judge

WIDE, NARROW = architectures.plain(head_dim=64), architectures.plain(head_dim=32)
PROBE = [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8], [4, 5, 9]]

both = pytest.mark.parametrize("bits", [8, 4])


class Packed:
    """A model that answers as its rows do where keys and values are in so many bits."""

    def __init__(self, model: Any, bits: int) -> None:
        self._model = model
        self._kv = for_model(model, UNBOUNDED, bits)

    def __call__(self, tokens: mx.array) -> mx.array:
        logits: mx.array = self._model(tokens, cache=self._kv.open())
        return logits


def packed(model: Any, bits: int) -> tuple[Rows, KV]:
    kv = for_model(model, UNBOUNDED, bits)
    whole = Packed(model, bits)
    return Rows(model, kv, lambda _model, tokens: tiny.logits_alone(whole, tokens)), kv


def prefilled(model: Any, kv: KV, tokens: Sequence[int], chunk: int) -> mx.array:
    """The next logits of a row whose prompt was fed in such chunks."""
    cache = kv.open()
    for start in range(0, len(tokens) - 1, chunk):
        model(mx.array([tokens[start : min(start + chunk, len(tokens) - 1)]]), cache=cache)
    kv.join([RowId(1)], cache, [len(tokens) - 1])
    kv.arrange()
    return kv.decode(mx.array([tokens[-1]]))


def varied(length: int) -> list[int]:
    return [(29 * place + place // 7) % tiny.VOCABULARY for place in range(length)]


@settings(max_examples=25)
@given(script=joint_operations)
@both
@pytest.mark.parametrize("model", [WIDE, NARROW], ids=["groups of 64", "groups of 32"])
def test_rows_give_the_logits_of_rows_alone_whoever_joins_and_leaves(
    model: Any, bits: int, script: list[tuple[str, Any]]
) -> None:
    rows, _kv = packed(model, bits)
    assert run(rows, script) < 0.05  # what a number that falls to the other side of a step may do


@both
def test_a_batch_gives_solo_tokens(bits: int) -> None:
    rows = [row(number, varied(length), 30) for number, length in enumerate((1, 6, 40, 3))]
    batch = Run(WIDE, prefill_tokens=16, kv_bits=bits)
    for one in rows:
        batch.batch.submit(one)
        batch.step(3)
    batch.to_end()
    for one in rows:
        solo = alone(WIDE, row(one.id, one.prompt, 30), kv_bits=bits)
        Judge(Packed(WIDE, bits)).check(one.prompt, GREEDY, solo, batch.tokens(one.id))


@both
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(bits: int) -> None:
    tokens = varied(COLUMN_STEP + 40)
    at_once, in_chunks = (prefilled(WIDE, for_model(WIDE, UNBOUNDED, bits), tokens, chunk) for chunk in (1000, 32))
    assert float(mx.abs(at_once - in_chunks).max()) < 0.05


@pytest.mark.parametrize(("bits", "part"), [(8, (64 + 8) / 256), (4, (32 + 8) / 256)])
def test_rows_take_what_their_bits_scales_and_biases_take(bits: int, part: float) -> None:
    rows, kv = packed(WIDE, bits)
    plain = Rows(WIDE, as_computed := for_model(WIDE))
    for prompt in ([1, 2, 3], varied(COLUMN_STEP + 9)):
        rows.join(prompt)
        plain.join(prompt)
    assert kv.nbytes == part * as_computed.nbytes
    assert for_model(WIDE, Room(rows=2, bytes=kv.nbytes), bits).fits([3, COLUMN_STEP + 9])
    assert not for_model(WIDE, Room(rows=2, bytes=kv.nbytes - 1), bits).fits([3, COLUMN_STEP + 9])


def test_fewer_bits_are_further_from_what_was_computed() -> None:
    tokens = varied(50)
    exact, eight, four = (prefilled(WIDE, for_model(WIDE, UNBOUNDED, bits), tokens, 64) for bits in (None, 8, 4))
    errors = [float(mx.abs(exact - one).max()) for one in (eight, four)]
    assert 0 < errors[0] < errors[1] / 4
    assert errors[1] < float(mx.abs(exact).max()) / 2


@both
def test_a_model_whose_rows_hold_in_them_is_proven(bits: int) -> None:
    assert isinstance(proven(WIDE, PROBE, mx.float32, kv_bits=bits), Blocks)


@pytest.mark.parametrize(
    "model",
    [tiny.attention(), tiny.sliding_window(), architectures.latent()],
    ids=["heads of eight", "sliding window", "attention of its own"],
)
def test_a_model_that_cannot_do_with_fewer_bits_is_not_loaded_with_more(model: Any) -> None:
    with pytest.raises(CannotLoad, match="kv_bits is 4"):
        proven(model, PROBE, mx.float32, kv_bits=4)
