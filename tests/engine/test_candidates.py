"""The draw on a CPU, against the passes over the whole vocabulary that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.candidates import Rows
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling

COLDEST = 1e-6
LAST_BITS = 1e-5

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-9, 0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.99999, 0.95, 0.5, 0.01, 0.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 300, 5000]),
    min_p=st.sampled_from([0.0, 1e-30, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def sampling(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0
) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)


def drawn(rows: list[Sampling], logits: mx.array, positions: mx.array) -> list[int]:
    return [int(token) for token in np.array(Rows(rows, COLDEST).draw(logits, positions))]


def wrong(rows: list[Sampling], logits: mx.array, positions: mx.array) -> list[int]:
    """The places of rows whose token is not one that the passes may give, as far as float32's last bits decide."""
    shortfalls = np.full(len(rows), np.inf)
    tokens = np.array(drawn(rows, logits, positions))
    for variant in variants(rows):
        scores = np.array(Draws(variant).scores(logits.astype(mx.float32), positions))
        best = scores.max(axis=-1)
        below = (best - scores[np.arange(len(rows)), tokens]) / np.maximum(1.0, np.abs(best))
        shortfalls = np.minimum(shortfalls, below)
    return [int(place) for place in np.flatnonzero(shortfalls > LAST_BITS)]


def variants(rows: list[Sampling]) -> Iterator[list[Sampling]]:
    """With the nucleus' edge where it is, and a little to each side: sums depend on their order."""
    for move in (0.0, LAST_BITS, -LAST_BITS):
        yield [replace(row, top_p=row.top_p * (1 + move) if row.top_p < 1 else 1.0) for row in rows]


@st.composite
def vocabularies(draw: st.DrawFn) -> mx.array:
    """Logits of one row: steep or flat, with equals or without, in any order, with some ruled out."""
    width = draw(st.one_of(st.integers(1, 700), st.integers(2049, 9000)))
    numbers = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=width)
    logits = numbers * draw(st.sampled_from([0.0, 0.05, 1.0, 6.0]))
    if draw(st.booleans()):
        logits = np.round(logits, 1)
    if draw(st.booleans()):
        logits = np.sort(logits)
    if draw(st.booleans()):
        logits[np.arange(width) % draw(st.integers(2, 99)) > 0] = -np.inf
    return mx.array(logits.astype(np.float32))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(samplings, min_size=1, max_size=4), logits=vocabularies(), position=st.integers(0, 2**32 - 5))
def test_it_draws_what_passes_over_the_vocabulary_draw(rows: list[Sampling], logits: mx.array, position: int) -> None:
    spread = mx.broadcast_to(logits, (len(rows), logits.size))
    places = mx.array([position + place for place in range(len(rows))], dtype=mx.uint32)
    assert wrong(rows, spread, places) == []


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_a_nucleus_of_a_large_vocabulary_ends_where_it_does_for_the_passes(spread: float, top_p: float) -> None:
    rows = [sampling(3.0, top_p=top_p, seed=seed) for seed in range(8)]
    logits = mx.random.normal((8, 32_000), key=mx.random.key(1)) * spread
    assert wrong(rows, logits, mx.arange(8, dtype=mx.uint32)) == []


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_logits_of_half_the_width_are_drawn_from_as_well(dtype: mx.Dtype) -> None:
    rows = [sampling(0.8, top_p=0.9, seed=seed) for seed in range(8)]
    logits = (mx.random.normal((8, 500), key=mx.random.key(2)) * 3).astype(dtype)
    assert wrong(rows, logits, mx.arange(8, dtype=mx.uint32)) == []


def test_of_equal_logits_at_the_edge_of_top_k_those_with_lower_ids_stay() -> None:
    rows = [sampling(5.0, top_k=3, seed=seed) for seed in range(40)]
    logits = mx.broadcast_to(mx.array([1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 1.0] * 20), (40, 140))
    assert set(drawn(rows, logits, mx.zeros((40,), dtype=mx.uint32))) == {0, 2, 3}


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    rows = [sampling(2.0, top_p=top_p, top_k=top_k, seed=9) for top_p in (1.0, 0.9) for top_k in (0, 5, 500)]
    logits = mx.where(mx.arange(600) % 97 == 3, mx.zeros((6, 600)), -mx.inf)
    assert {token % 97 for token in drawn(rows, logits, mx.arange(6, dtype=mx.uint32))} == {3}


@pytest.mark.parametrize("broken", [mx.nan, mx.inf, -mx.inf])
def test_a_row_of_no_numbers_gets_a_token_and_leaves_the_others_theirs(broken: float) -> None:
    rows = [sampling(1.0, top_p=0.9, top_k=5), sampling(0.7, min_p=0.1), sampling(0.0)]
    logits = mx.random.normal((3, 100), key=mx.random.key(3))
    sound = drawn(rows, logits, mx.zeros((3,), dtype=mx.uint32))
    logits[0] = broken
    tokens = drawn(rows, logits, mx.zeros((3,), dtype=mx.uint32))
    assert tokens[0] < 100
    assert tokens[1:] == sound[1:]
