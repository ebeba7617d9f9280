"""The sampler: what a seed gives is a promise, and a row's draw is its own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from mlxrpc_server.engine.noise import chance, gumbel
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling

VOCABULARY = 50
WORD = 0xFFFFFFFF

# Written down once. A change of any of them breaks what callers were promised of their seeds.
GOLDEN_BITS_OF_ZERO = [772366229, 3364027127, 3839490961, 2749390875]
GOLDEN_BITS_OF_THE_LARGEST = [2672987107, 3259458831, 3046521432]
GOLDEN_NOISE = [1.303573, 1.456486, 0.247240, 0.238127]
GOLDEN_CHANCES = [0.415403, 0.802852, 0.238955]
GOLDEN_DRAWS = [17, 26, 6, 12, 25, 13, 20, 17, 13, 27, 26, 6]

seeds = st.integers(0, 2**64 - 1)
positions = st.integers(0, 2**32 - 1)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 7, VOCABULARY, 10**6]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=seeds,
    min_tokens_to_keep=st.sampled_from([1, 1, 5, 2**32 - 1]),
    xtc_probability=st.sampled_from([0.0, 0.0, 0.5]),
    end_ids=st.sampled_from([(), (3,), (7, 0)]),
)


def sampling(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 1, **rest: Any
) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, **rest)


def logits(rows: int, seed: int = 0, width: int = VOCABULARY) -> mx.array:
    return mx.random.normal((rows, width), key=mx.random.key(seed)) * 3


def at(*places: int) -> mx.array:
    return mx.array(places, dtype=mx.uint32)


def drawn(rows: list[Sampling], scored: mx.array, places: list[int]) -> Any:
    return Draws(rows).draw(scored, at(*places)).tolist()


def kept(row: Sampling, scored: mx.array) -> set[int]:
    """The ids that the row's filters leave."""
    scores = Draws([row]).scores(scored, at(0))
    return set(np.flatnonzero(np.isfinite(np.array(scores[0]))).tolist())


def finalised(bits: int) -> int:
    bits = ((bits ^ bits >> 16) * 0x7FEB352D) & WORD
    bits = ((bits ^ bits >> 15) * 0x846CA68B) & WORD
    return bits ^ bits >> 16


def row_bits(seed: int, position: int, salt: int) -> int:
    key = finalised(seed & WORD ^ salt)
    key = finalised(key ^ seed >> 32)
    return finalised(key ^ position)


def noise_bits(seed: int, position: int, token: int) -> int:
    """The promise in plain integers: 32 random bits for each (seed, position, token)."""
    keys = [row_bits(seed, position, salt) for salt in (0x9E3779B9, 0xC2B2AE35)]
    hashed = finalised(keys[0] ^ token * 0x85EBCA6B & WORD)
    return finalised((hashed + keys[1]) & WORD)


def plain_noise(seed: int, position: int, token: int) -> float:
    """In float32 up to the uniform number, whose rounding shows where it is nearly 1."""
    uniform = (np.float32(noise_bits(seed, position, token)) + np.float32(0.5)) * np.float32(2**-32)
    return float(-np.log(-np.log1p(-min(float(uniform), 1 - 2**-24))))


def noise(seed: int, position: int, width: int) -> Any:
    low, high = mx.array([seed & WORD], dtype=mx.uint32), mx.array([seed >> 32], dtype=mx.uint32)
    return gumbel(low, high, at(position), width)[0].tolist()


@given(seed=seeds, position=positions)
def test_noise_is_the_promised_hash_of_seed_position_and_token(seed: int, position: int) -> None:
    expected = [plain_noise(seed, position, token) for token in range(40)]
    assert noise(seed, position, 40) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_noise_never_changes_between_versions() -> None:
    assert [noise_bits(0, 0, token) for token in range(4)] == GOLDEN_BITS_OF_ZERO
    assert [noise_bits(2**64 - 1, 4095, token) for token in (0, 1, 151_935)] == GOLDEN_BITS_OF_THE_LARGEST
    assert noise(123456789, 17, 4) == pytest.approx(GOLDEN_NOISE, abs=1e-5)


def test_chances_never_change_between_versions() -> None:
    given, places = (0, 123456789, 2**64 - 1), (0, 17, 4095)
    low, high = at(*(seed & WORD for seed in given)), at(*(seed >> 32 for seed in given))
    promised = [row_bits(seed, place, 0x27D4EB2F) / 2**32 for seed, place in zip(given, places, strict=True)]
    assert promised == pytest.approx(GOLDEN_CHANCES, abs=1e-6)
    assert chance(low, high, at(*places)).tolist() == pytest.approx(promised, abs=1e-6)


def test_draws_never_change_between_versions() -> None:
    scored = mx.array([[0.5 * (token % 7) for token in range(30)]])
    row = sampling(temperature=0.8, top_p=0.95, top_k=20, seed=20)
    assert [drawn([row], scored, [place])[0] for place in range(12)] == GOLDEN_DRAWS


def test_noise_is_finite_at_both_ends_of_the_hash() -> None:
    everything = gumbel(at(*range(64)), at(*range(64)), at(*range(64)), 4096)
    assert bool(mx.isfinite(everything).all())


@settings(max_examples=60)
@given(rows=st.lists(samplings, min_size=1, max_size=6), data=st.data())
def test_a_draw_depends_on_neither_neighbours_nor_order(rows: list[Sampling], data: st.DataObject) -> None:
    scored = logits(len(rows), seed=data.draw(st.integers(0, 99)))
    places = [data.draw(positions) for _ in rows]
    together = drawn(rows, scored, places)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = drawn([rows[i] for i in order], scored[mx.array(order)], [places[i] for i in order])
    alone = [drawn([row], scored[i : i + 1], [places[i]])[0] for i, row in enumerate(rows)]
    assert together == alone
    assert [together[i] for i in order] == shuffled


def test_frequencies_follow_the_softmax() -> None:
    count, scored = 20_000, logits(1, seed=4, width=12) / 3
    draws = Draws([sampling(seed=99)] * count)
    tokens = np.array(draws.draw(mx.broadcast_to(scored, (count, 12)), mx.arange(count, dtype=mx.uint32)))
    expected = np.array(mx.softmax(scored[0])) * count
    chi_square = float(((np.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # one in a thousand at eleven degrees of freedom; the seed is fixed


def test_frequencies_follow_the_softmax_over_seeds_at_one_position() -> None:
    count, scored = 20_000, logits(1, seed=5, width=12) / 3
    draws = Draws([sampling(seed=seed) for seed in range(count)])
    tokens = np.array(draws.draw(mx.broadcast_to(scored, (count, 12)), mx.full((count,), 7, dtype=mx.uint32)))
    expected = np.array(mx.softmax(scored[0])) * count
    assert float(((np.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum()) < 31.3


@given(seed=st.integers(0, 10_000), top_p=st.floats(0.01, 0.999))
def test_top_p_keeps_what_mlx_lm_keeps(seed: int, top_p: float) -> None:
    scored = logits(1, seed)
    expected = sample_utils.apply_top_p(normalised(scored), top_p)
    assert kept(sampling(top_p=top_p), scored) == finite(expected)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(257, 3000),
    spread=st.sampled_from([0.0, 0.01, 1.0, 20.0]),
    top_p=st.floats(0.01, 0.999),
    top_k=st.sampled_from([0, 300]),
)
def test_top_p_finds_its_edge_in_large_vocabularies_too(
    seed: int, width: int, spread: float, top_p: float, top_k: int
) -> None:
    """Kept is the smallest set of the likeliest that has the mass, ties with its last member included."""
    scored = logits(1, seed, width) * spread
    masses = np.array(mx.softmax(scored[0])).astype(np.float64)
    left = kept(sampling(top_p=top_p, top_k=top_k), scored)
    if top_k and len(left) == min(top_k, width):
        return
    least = min(masses[token] for token in left)
    assert left == set(np.flatnonzero(masses >= least).tolist())
    assert masses[masses >= least].sum() > top_p - 1e-4
    assert masses[masses > least].sum() < top_p + 1e-4


@given(seed=st.integers(0, 10_000), min_p=st.floats(0.001, 1.0))
def test_min_p_keeps_what_mlx_lm_keeps(seed: int, min_p: float) -> None:
    scored = logits(1, seed)
    expected = sample_utils.apply_min_p(normalised(scored), min_p)
    assert kept(sampling(min_p=min_p), scored) == finite(expected)


@given(seed=st.integers(0, 10_000), top_k=st.integers(1, VOCABULARY - 1))
def test_top_k_keeps_what_mlx_lm_keeps(seed: int, top_k: int) -> None:
    scored = logits(1, seed)
    expected = sample_utils.apply_top_k(normalised(scored), top_k)
    assert kept(sampling(top_k=top_k), scored) == finite(expected)


@given(seed=st.integers(0, 10_000), top_p=st.floats(0.3, 0.99), min_p=st.floats(0.001, 0.3), top_k=st.integers(1, 20))
def test_filters_together_keep_what_mlx_lm_keeps(seed: int, top_p: float, min_p: float, top_k: int) -> None:
    scored = logits(1, seed)
    left = sample_utils.apply_min_p(sample_utils.apply_top_p(normalised(scored), top_p), min_p)
    expected = sample_utils.apply_top_k(left, top_k)
    assert kept(sampling(top_p=top_p, min_p=min_p, top_k=top_k), scored) == finite(expected)


@given(seed=st.integers(0, 10_000), min_p=st.floats(0.001, 1.0), least=st.integers(1, VOCABULARY))
def test_min_p_leaves_as_many_as_it_must(seed: int, min_p: float, least: int) -> None:
    scored = logits(1, seed)
    expected = sample_utils.apply_min_p(normalised(scored), min_p, least)
    assert kept(sampling(min_p=min_p, min_tokens_to_keep=least), scored) == finite(expected)


@pytest.mark.parametrize(("least", "expected"), [(1, 1), (4, 4), (VOCABULARY, VOCABULARY), (2**32 - 1, VOCABULARY)])
def test_top_p_leaves_as_many_as_it_must(least: int, expected: int) -> None:
    assert len(kept(sampling(top_p=1e-6, min_tokens_to_keep=least), logits(1))) == expected


def test_top_k_may_leave_fewer_than_top_p_must() -> None:
    assert len(kept(sampling(top_p=1e-6, min_tokens_to_keep=9, top_k=3), logits(1))) == 3


@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 0.5), ends=st.sets(st.integers(0, VOCABULARY - 1)))
def test_xtc_removes_what_mlx_lm_removes(seed: int, threshold: float, ends: set[int]) -> None:
    scored = logits(1, seed)
    expected = sample_utils.apply_xtc(normalised(scored), 1.0, threshold, list(ends))
    row = sampling(xtc_probability=1.0, xtc_threshold=threshold, end_ids=tuple(ends))
    assert kept(row, scored) == finite(expected)


def test_xtc_removes_no_candidate_that_top_p_left_alone() -> None:
    """Of the probabilities 0.5, 0.3 and 0.2 only the first is left to it: there is none to prefer."""
    scored = mx.log(mx.array([[0.5, 0.3, 0.2]]))
    row: dict[str, Any] = {"xtc_probability": 1.0, "xtc_threshold": 0.1}
    assert kept(sampling(**row), scored) == {2}
    assert kept(sampling(top_p=0.75, **row), scored) == {1}
    assert kept(sampling(top_p=0.4, **row), scored) == {0}


def test_top_k_counts_what_xtc_left() -> None:
    scored = mx.log(mx.array([[0.4, 0.3, 0.2, 0.06, 0.04]]))
    assert kept(sampling(xtc_probability=1.0, xtc_threshold=0.1, top_k=2), scored) == {2, 3}
    assert kept(sampling(xtc_probability=1.0, xtc_threshold=0.1, top_k=1, top_p=0.95), scored) == {2}


def test_xtc_takes_its_chance_anew_at_each_token() -> None:
    scored = mx.broadcast_to(mx.log(mx.array([[0.5, 0.3, 0.2]])), (2000, 3))
    rows = [sampling(seed=7, xtc_probability=0.25)] * 2000
    left = mx.isfinite(Draws(rows).scores(scored, mx.arange(2000, dtype=mx.uint32)))[:, 0]
    assert 0.71 < float(left.mean()) < 0.79


def normalised(scored: mx.array) -> mx.array:
    return scored - mx.logsumexp(scored, axis=-1, keepdims=True)


def finite(scores: mx.array) -> set[int]:
    return set(np.flatnonzero(np.isfinite(np.array(scores[0]))).tolist())


def test_filters_act_on_each_row_by_its_own_values() -> None:
    scored = mx.broadcast_to(logits(1), (3, VOCABULARY))
    rows = [sampling(top_k=3), sampling(), sampling(top_p=0.01)]
    counts = mx.isfinite(Draws(rows).scores(scored, at(1, 1, 1))).sum(axis=-1)
    assert counts.tolist() == [3, VOCABULARY, 1]


def test_of_equal_tokens_at_the_edge_of_top_k_the_lower_ids_stay() -> None:
    assert kept(sampling(top_k=3), mx.zeros((1, VOCABULARY))) == {0, 1, 2}


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**31 - 1])
def test_top_k_of_the_vocabulary_or_more_is_off(top_k: int) -> None:
    assert kept(sampling(top_k=top_k), logits(1)) == set(range(VOCABULARY))


@pytest.mark.parametrize("top_p", [1e-6, 1e-45, 1e-300])
def test_a_tiny_top_p_keeps_the_likeliest_token(top_p: float) -> None:
    scored = logits(1)
    assert kept(sampling(top_p=top_p), scored) == {int(mx.argmax(scored))}


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_draws_the_likeliest_token(temperature: float) -> None:
    scored = logits(1, seed=8)
    scores = Draws([sampling(temperature)]).scores(scored, at(3))
    assert not bool(mx.isnan(scores).any())
    assert drawn([sampling(temperature)], scored, [3]) == [int(mx.argmax(scored))] != [0]


def test_a_high_temperature_draws_nearly_evenly() -> None:
    scored = mx.broadcast_to(logits(1), (400, VOCABULARY))
    tokens = drawn([sampling(100.0, seed=seed) for seed in range(400)], scored, [1] * 400)
    assert len(set(tokens)) == VOCABULARY


def test_greedy_rows_take_the_likeliest_token_beside_rows_that_draw() -> None:
    scored = logits(4, seed=2)
    rows = [sampling(0.0), sampling(1.5, seed=3), sampling(0.0, top_p=0.1), sampling(1.5, top_k=2)]
    tokens = drawn(rows, scored, [5, 5, 5, 5])
    assert [tokens[0], tokens[2]] == mx.argmax(scored, axis=-1)[mx.array([0, 2])].tolist()


def test_greedy_rows_alone_score_by_their_logits() -> None:
    scored = logits(2).astype(mx.bfloat16)
    assert Draws([sampling(0.0)] * 2).scores(scored, at(1, 2)) is scored


def test_tokens_that_the_model_forbids_are_never_drawn() -> None:
    scored = mx.where(mx.arange(VOCABULARY)[None] < 40, -mx.inf, logits(1))
    rows = [sampling(2.0, seed=seed) for seed in range(200)]
    assert min(drawn(rows, mx.broadcast_to(scored, (200, VOCABULARY)), list(range(200)))) >= 40
