from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server import demo
from serving.cells import Abilities, Closed, LongPrompt, Open, Seeds, mixture
from serving.exchange import Sampling
from serving.prompts import Prompts
from serving.weights import tokenizer

BYTES = Prompts(tokenizer(1_000))
BUILT_IN = Prompts.of(demo.source())
ALL = Abilities(seeds=True, penalties=True)


@pytest.mark.parametrize("prompts", [BYTES, BUILT_IN], ids=["bytes", "built-in"])
@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_a_prompt_has_exactly_its_tokens_as_text_and_as_ids(prompts: Prompts, tokens: int, seed: int) -> None:
    ask = prompts.ask(tokens, 4, seed, Sampling())
    assert len(ask.token_ids) == tokens
    assert tuple(prompts.tokenizer.encode(ask.text).ids) == ask.token_ids


@pytest.mark.parametrize(
    "cell",
    [
        Closed(8, 2, prompt=12, tokens=4, cap=1, warm=1),
        Open(rate=9, seconds=2, prompt=12, tokens=4, cap=1),
        LongPrompt(4, prompt=12, tokens=4, long_prompt=40, after=1, cap=1),
    ],
    ids=lambda cell: cell.section,
)
def test_a_cell_is_the_same_for_every_contender_and_asks_nothing_twice(cell: Closed | Open | LongPrompt) -> None:
    seeds = Seeds(round=1, cell=3)
    job = cell.job(BYTES, seeds, ALL)
    assert job == cell.job(BYTES, seeds, ALL)
    jobs = [job, cell.warm_up(BYTES, seeds, ALL), cell.job(BYTES, Seeds(2, 3), ALL), cell.job(BYTES, Seeds(1, 4), ALL)]
    texts = [ask.text for one in jobs if one for stream in one.streams for ask in stream.asks]
    assert len(texts) == len(set(texts))


def test_a_quarter_of_mixed_streams_is_greedy_and_no_two_are_alike() -> None:
    every = [mixture(stream, ALL) for stream in range(64)]
    assert sum(sampling.temperature == 0 for sampling in every) == 16
    assert len(set(every)) == 64


def test_mixed_streams_ask_only_for_what_a_server_honours() -> None:
    plain = mixture(5, Abilities(seeds=False, penalties=False))
    assert (plain.seed, plain.repetition_penalty) == (None, None)
