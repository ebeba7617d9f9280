"""The CUDA kernels' logic, run thread by thread on this CPU, against the plain operations that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.kernels import draw as fused
from mlxrpc_server.engine.kernels.cuda import packed
from mlxrpc_server.engine.kernels.product import Form, Layer
from mlxrpc_server.engine.kernels.turn import Token, Turn, frequencies, turned
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling
from tests.engine import simt

pytestmark = pytest.mark.skipif(simt.COMPILER is None, reason="no g++ to build the kernels with")

PAGE = 32


def sampling(temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)


def drawn(logits: mx.array, positions: mx.array, rows: list[Sampling], threads: int) -> list[int]:
    columns = fused.columns(rows, coldest=1e-6)
    tokens = np.zeros(len(rows), dtype=np.uint32)
    simt.call(
        f"draw_{simt.DTYPES[logits.dtype]}",
        simt.memory(logits),
        len(rows),
        logits.shape[1],
        simt.memory(positions),
        simt.memory(columns.numbers),
        simt.memory(columns.settings),
        tokens,
        threads,
    )
    return [int(token) for token in tokens]


def near_ties_apart(logits: mx.array, positions: mx.array, rows: list[Sampling], tokens: list[int]) -> int:
    """How many rows drew another token than the plain path, and not because the two tie but for the last bits."""
    scores = Draws(rows).scores(logits, positions).astype(mx.float32)
    best = scores.max(axis=-1)
    mine = mx.take_along_axis(scores, mx.array(tokens)[:, None], axis=-1)[:, 0]
    return int((mine < best - 1e-5 * mx.maximum(1.0, mx.abs(best))).sum())


samplings = st.builds(
    sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01, 0.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 5000]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(samplings, min_size=1, max_size=3),
    width=st.integers(1, 700),
    spread=st.sampled_from([0.05, 1.0, 6.0]),
    dtype=st.sampled_from([mx.float32, mx.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_the_fused_draw_draws_what_the_plain_one_draws(
    rows: list[Sampling], width: int, spread: float, dtype: mx.Dtype, seed: int
) -> None:
    logits = (spread * mx.random.normal((len(rows), width), key=mx.random.key(seed))).astype(dtype)
    positions = mx.arange(len(rows), dtype=mx.uint32) + seed
    assert near_ties_apart(logits, positions, rows, drawn(logits, positions, rows, threads=64)) == 0


def test_of_equal_logits_at_the_edge_of_top_k_those_with_lower_ids_stay() -> None:
    rows = [sampling(5.0, top_k=3, seed=seed) for seed in range(40)]
    logits = mx.broadcast_to(mx.array([1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 1.0] * 20), (40, 140))
    positions = mx.zeros((40,), dtype=mx.uint32)
    tokens = drawn(logits, positions, rows, threads=64)
    assert set(tokens) == {0, 2, 3}
    assert tokens == Draws(rows).draw(logits, positions).tolist()


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    rows = [sampling(1.0, top_p=top_p, top_k=top_k, seed=9) for top_p in (1.0, 0.9) for top_k in (0, 5)]
    logits = mx.where(mx.arange(600) % 97 == 3, mx.zeros((4, 600)), -mx.inf)
    tokens = drawn(logits, mx.arange(4, dtype=mx.uint32), rows, threads=128)
    assert {token % 97 for token in tokens} == {3}


def test_logits_that_are_no_numbers_end_nothing() -> None:
    rows = [sampling(1.0, top_p=0.9, top_k=5), sampling(0.0), sampling(0.7, min_p=0.1)]
    logits = mx.full((3, 100), mx.nan)
    assert all(token < 100 for token in drawn(logits, mx.zeros((3,), mx.uint32), rows, threads=64))


@dataclass(frozen=True, slots=True)
class Shape:
    dtype: mx.Dtype
    size: int
    kv_heads: int
    group: int

    @property
    def name(self) -> str:
        return f"{simt.DTYPES[self.dtype]}_{self.size}_{self.kv_heads}_{self.group}"

    @property
    def scale(self) -> float:
        return float(self.size**-0.5)


TURNS = {
    Shape(mx.float32, 64, 2, 2): (64, False, True, True),
    Shape(mx.float32, 80, 1, 7): (26, True, False, False),
    Shape(mx.float32, 256, 1, 9): (128, False, True, False),
    Shape(mx.bfloat16, 96, 2, 1): (96, True, False, True),
    Shape(mx.bfloat16, 128, 2, 4): (128, False, True, True),
}
"""As the library has them: how many numbers turn, whether traditionally, and whether queries and keys are normed."""

SHAPES = list(TURNS)


def turn_of(shape: Shape) -> Turn:
    dims, traditional, *normed = TURNS[shape]
    query, key = (
        (1 + 0.3 * mx.random.normal((shape.size,), key=mx.random.key(place))).astype(shape.dtype) if one else None
        for place, one in enumerate(normed)
    )
    return Turn(frequencies(dims, 100), dims, traditional=traditional, query_norm=query, key_norm=key, eps=1e-2)


class Memory:
    """Rows of keys and values, written into pages by the kernel, in an order that is nobody's."""

    turn: Turn | None = None
    """Of what attends from now on."""

    def __init__(self, shape: Shape, lengths: list[int]) -> None:
        self.shape, self.lengths = shape, lengths
        most = max(lengths) // PAGE + 1
        self.page_bytes = shape.kv_heads * PAGE * shape.size * shape.dtype.size
        count = len(lengths) * most
        # Whatever is read by mistake is no number.
        self.bytes = np.full(2 * count * self.page_bytes + 16, 0xFF, dtype=np.uint8)
        self.first = -(-self.bytes.ctypes.data // 16) * 16
        self.order = np.random.default_rng(1).permutation(count).reshape(len(lengths), most)
        self.behind = count * self.page_bytes
        random = mx.random.split(mx.random.key(sum(lengths)), 2)
        self.keys, self.values = (
            mx.random.normal((len(lengths), shape.kv_heads, max(*lengths, 1), shape.size), key=key).astype(shape.dtype)
            for key in random
        )

    @property
    def scale_bits(self) -> int:
        return int(np.float32(self.shape.scale).view(np.int32))

    @property
    def held(self) -> np.ndarray[Any, Any]:
        return np.array(self.lengths, dtype=np.int32)

    def write(self) -> None:
        table, place = self.order.astype(np.uint64) * self.page_bytes + self.first, np.array([0, self.behind, 0, 0])
        keys, values, (rows, _, columns, _) = simt.memory(self.keys), simt.memory(self.values), self.keys.shape
        simt.call(f"write_{self.shape.name}", keys, values, rows, columns, table, table.shape[1], self.held, place)

    def attend(self, token: Token, chunk: int, window: int = 0) -> mx.array:
        """Of each row's new query, with its new key and value, in parts of so many tokens."""
        shape, work = self.shape, self.work(chunk)
        table = self.order.astype(np.uint64) * self.page_bytes + self.first
        place = np.array([0, self.behind, window, self.scale_bits])
        if self.turn:
            place = np.concatenate([place, np.array(packed(self.turn))])
        counters = np.zeros(len(self.lengths) * shape.kv_heads, dtype=np.uint32)
        out, partials = self.outputs(token, work)
        q, k, v = map(simt.memory, token)
        where = (table, table.shape[1], self.held, work, place, counters)
        simt.call(
            f"attend_{shape.name}{'_turned' if self.turn else ''}", q, k, v, *where, out, partials, len(work) // 2
        )
        assert not counters.any()
        return simt.numbers(out, shape.dtype)

    def work(self, chunk: int) -> np.ndarray[Any, Any]:
        """With some more parts than there are, as in a plan that is to last."""
        parts = [(row, part) for row, length in enumerate(self.lengths) for part in range((length + 40) // chunk + 1)]
        return np.array([chunk, *(number for part in parts for number in part)], dtype=np.int32)

    def outputs(self, token: Token, work: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        shape = self.shape
        partials = np.full(len(work) // 2 * shape.kv_heads * shape.group * (shape.size + 2), np.nan, dtype=np.float32)
        return np.zeros_like(simt.memory(token[0])), partials

    def take(self, token: Token) -> None:
        """The new token is one of those that the rows hold."""
        _, key, value = token
        room = mx.zeros((*self.keys.shape[:2], 1, self.shape.size), self.shape.dtype)
        self.keys, self.values = (mx.concatenate([old, room], axis=2) for old in (self.keys, self.values))
        for row, length in enumerate(self.lengths):
            self.keys[row, :, length] = key[row, :, 0]
            self.values[row, :, length] = value[row, :, 0]
        self.lengths = [length + 1 for length in self.lengths]

    def expected(self, token: Token, window: int = 0) -> mx.array:
        queries, key, value = token
        rows = []
        for row, length in enumerate(self.lengths):
            first = max(0, length + 1 - window) if window else 0
            place = slice(row, row + 1)
            keys = mx.concatenate([self.keys[place, :, first:length], key[place]], axis=2)
            values = mx.concatenate([self.values[place, :, first:length], value[place]], axis=2)
            exact = (one.astype(mx.float32) for one in (queries[place], keys, values))
            rows.append(mx.fast.scaled_dot_product_attention(*exact, scale=self.shape.scale))
        return mx.concatenate(rows)


class MetalMemory(Memory):
    """The same by the Metal twin, whose keys and values are two arrays."""

    @property
    def pages(self) -> tuple[simt.Address, simt.Address]:
        return simt.Address(self.first), simt.Address(self.first + self.behind)

    def place(self, window: int) -> np.ndarray[Any, Any]:
        return np.array([window, self.scale_bits, self.order.shape[1]], dtype=np.int32)

    def write(self) -> None:
        keys, values, (rows, _, columns, _) = simt.memory(self.keys), simt.memory(self.values), self.keys.shape
        where = (*self.pages, self.order.astype(np.int32), self.held, self.place(0))
        simt.call(f"metal_write_{self.shape.name}", keys, values, rows, columns, *where)

    def attend(self, token: Token, chunk: int, window: int = 0) -> mx.array:
        work = self.work(chunk)
        out, partials = self.outputs(token, work)
        split = len(work) // 2 > len(self.lengths)
        q, k, v = map(simt.memory, token)
        where = (*self.pages, self.order.astype(np.int32), self.held, work, self.place(window))
        simt.call(f"metal_attend_{self.shape.name}", q, k, v, *where, out, partials, len(work) // 2, split)
        return simt.numbers(out, self.shape.dtype)


def token_of(shape: Shape, rows: int, seed: int) -> Token:
    heads = (shape.kv_heads * shape.group, shape.kv_heads, shape.kv_heads)
    keys = mx.random.split(mx.random.key(seed), 3)
    queries, key, value = (
        mx.random.normal((rows, count, 1, shape.size), key=one).astype(shape.dtype)
        for count, one in zip(heads, keys, strict=True)
    )
    return queries, key, value


def differ(actual: mx.array, expected: mx.array) -> float:
    return float(mx.abs(actual.astype(mx.float32) - expected).max())


KINDS = pytest.mark.parametrize("kind", [Memory, MetalMemory], ids=["cuda", "metal"])


@KINDS
@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    chunk=st.sampled_from([64, 128, 1024]),
    window=st.sampled_from([0, 0, 1, 5, 70]),
)
def test_attention_over_pages_is_attention(
    kind: type[Memory], shape: Shape, lengths: list[int], chunk: int, window: int
) -> None:
    memory = kind(shape, lengths)
    memory.write()
    token = token_of(shape, len(lengths), seed=len(lengths))
    tolerance = 2e-5 if shape.dtype == mx.float32 else 2e-2
    assert differ(memory.attend(token, chunk, window), memory.expected(token, window)) < tolerance


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    chunk=st.sampled_from([64, 1024]),
    window=st.sampled_from([0, 0, 1, 70]),
)
def test_queries_and_keys_are_normed_and_turned_before_they_attend(
    shape: Shape, lengths: list[int], chunk: int, window: int
) -> None:
    memory = Memory(shape, lengths)
    memory.write()
    memory.turn = turn_of(shape)
    token = token_of(shape, len(lengths), seed=len(lengths))
    expected = memory.expected(turned(token, mx.array(lengths), memory.turn), window)
    assert differ(memory.attend(token, chunk, window), expected) < (1e-4 if shape.dtype == mx.float32 else 3e-2)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_key_that_is_kept_is_the_turned_one(shape: Shape) -> None:
    lengths = [62, 31, 0]
    memory = Memory(shape, lengths)
    memory.write()
    memory.turn = turn_of(shape)
    token = token_of(shape, 3, seed=4)
    memory.attend(token, chunk=64)
    memory.take(turned(token, mx.array(lengths), memory.turn))
    memory.turn = None
    again = token_of(shape, 3, seed=5)
    tolerance = 1e-4 if shape.dtype == mx.float32 else 3e-2
    assert differ(memory.attend(again, chunk=64), memory.expected(again)) < tolerance


@KINDS
def test_the_new_token_is_in_its_page_afterwards(kind: type[Memory]) -> None:
    shape, lengths = SHAPES[0], [62, 31, 0]
    memory = kind(shape, lengths)
    memory.write()
    token = token_of(shape, 3, seed=4)
    memory.attend(token, chunk=64)
    memory.take(token)
    again = token_of(shape, 3, seed=5)
    assert differ(memory.attend(again, chunk=64), memory.expected(again)) < 2e-5


FORMS = [Form(tiles, tall, 224 << 10) for tiles, tall in [(2, 16), (2, 64), (8, 16), (8, 32), (8, 128)]]
"""As many as the library has. None has other stages with a norm."""

EPS = 1e-5


def multiplied(
    form: Form,
    x: mx.array,
    layers: list[Layer],
    norm: mx.array | None = None,
    to: mx.array | None = None,
    *,
    gated: bool = False,
) -> list[mx.array]:
    """By the kernel, which takes three layers here, or two that are gated, or one that is added."""
    widths = [layer.width for layer in layers]
    # Whatever is not written is no number.
    outs = [np.full((x.shape[0], width), 0xFFFF, dtype=np.uint16) for width in widths]
    weights = [simt.memory(layer.weight) for layer in layers]
    biases = [None if layer.bias is None else simt.memory(layer.bias) for layer in layers]
    arrays = [
        0 if one is None else one.ctypes.data for three in zip(weights, biases, outs, strict=True) for one in three
    ]
    blocks = form.blocks(x.shape[0], [sum(widths)] if gated else widths)[0]
    around = {"gated": gated, "normed": norm is not None, "added": to is not None}
    kind = "_".join(name for name, wanted in around.items() if wanted) or "plain"
    simt.call(
        f"product_{form.tiles}_{form.wide}_{form.beside}_{form.stages}_{kind}",
        simt.memory(x),
        *x.shape,
        np.array(arrays, dtype=np.uint64),
        np.array(widths, dtype=np.int32),
        blocks,
        *(simt.Address(0) if one is None else simt.memory(one) for one in (norm, to)),
    )
    return [simt.numbers(out, mx.bfloat16) for out in (outs[:1] if gated else outs)]


def some(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(mx.bfloat16)


def exact(x: mx.array, layer: Layer, norm: mx.array | None = None) -> mx.array:
    """The product, nothing rounded on the way."""
    x = x.astype(mx.float32)
    x = x if norm is None else mx.fast.rms_norm(x, norm.astype(mx.float32), EPS)
    product = x @ layer.weight.astype(mx.float32).T
    return product if layer.bias is None else product + layer.bias


def apart(actual: mx.array, expected: mx.array) -> float:
    """As a part of the largest number."""
    return differ(actual, expected) / float(mx.abs(expected).max())


ROWS = st.integers(1, 128)
DEPTHS = st.integers(1, 90).map(lambda eights: 8 * eights)
WIDTHS = st.integers(1, 30).map(lambda eights: 8 * eights)


def layers_of(widths: list[int], depth: int, *, biased: bool) -> list[Layer]:
    return [
        Layer(some(width, depth, seed=width + seed), some(width, seed=depth + seed) if biased else None)
        for seed, width in enumerate(widths)
    ]


def norm_of(depth: int, normed: bool) -> mx.array | None:
    return 3 * some(depth, seed=depth) if normed else None


@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    rows=ROWS,
    depth=DEPTHS,
    widths=st.lists(WIDTHS, min_size=3, max_size=3),
    biased=st.booleans(),
    normed=st.booleans(),
)
def test_products_of_several_layers_are_theirs(
    form: Form, rows: int, depth: int, widths: list[int], *, biased: bool, normed: bool
) -> None:
    x, layers, norm = some(rows, depth, seed=rows), layers_of(widths, depth, biased=biased), norm_of(depth, normed)
    for layer, actual in zip(layers, multiplied(form, x, layers, norm), strict=True):
        assert apart(actual, exact(x, layer, norm)) <= (2**-6 if normed else 2**-8)


@settings(max_examples=15, deadline=None)
@given(
    form=st.sampled_from([form for form in FORMS if form.gates]),
    rows=ROWS,
    depth=DEPTHS,
    width=WIDTHS,
    biased=st.booleans(),
    normed=st.booleans(),
)
def test_a_gated_product_is_two(form: Form, rows: int, depth: int, width: int, *, biased: bool, normed: bool) -> None:
    x, layers, norm = some(rows, depth, seed=rows), layers_of([width] * 2, depth, biased=biased), norm_of(depth, normed)
    gate, up = (exact(x, layer, norm) for layer in layers)
    (actual,) = multiplied(form, x, layers, norm, gated=True)
    assert apart(actual, gate * mx.sigmoid(gate) * up) <= 2**-6


@settings(max_examples=15, deadline=None)
@given(form=st.sampled_from(FORMS), rows=ROWS, depth=DEPTHS, width=WIDTHS, biased=st.booleans())
def test_a_product_is_added_to_what_there_is(form: Form, rows: int, depth: int, width: int, *, biased: bool) -> None:
    x, to = some(rows, depth, seed=rows), 10 * some(rows, width, seed=depth)
    (layer,) = layers_of([width], depth, biased=biased)
    (actual,) = multiplied(form, x, [layer], to=to)
    assert apart(actual, to + exact(x, layer)) <= 2**-8
