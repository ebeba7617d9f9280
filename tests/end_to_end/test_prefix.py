"""The prompt cache through the service: what it saves, whom it serves, and that answers are the same with and without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.asking import ask
from tests.end_to_end.known import LONG_TALK, SINGLE, Known
from tests.end_to_end.running import RunningServer, running_server, until
from tests.end_to_end.streams import TIMEOUT, Received, same_tokens, stream, streaming, streams

BLOCK = 64


@pytest.fixture(scope="module")
def fresh() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


def cached(received: Received) -> int:
    return int(received.end.usage.cached_prompt_tokens)


def asking(tokens: Sequence[int], tenant: str = "", *, bypass: bool = False) -> pb.StreamGenerateRequest:
    request = streaming(tokens, seed=None, max_tokens=12)
    request.sampling.temperature = 0.0
    request.stop.ignore_eos = True
    request.cache.CopyFrom(pb.Cache(tenant=tenant, bypass=bypass))
    return request


def ids(count: int, variant: int) -> list[int]:
    return [(11 * place + 37 * variant) % 1000 for place in range(count)]


def test_the_next_turn_is_told_what_it_saved(fresh: RunningServer) -> None:
    first = stream(fresh, asking(ids(300, 1)))
    again = [*ids(300, 1), *first.token_ids, *ids(40, 2)]
    second = stream(fresh, asking(again))
    assert (cached(first), cached(second)) == (0, 300 // BLOCK * BLOCK)
    without = stream(fresh, asking(again, bypass=True))
    assert cached(without) == 0
    same_tokens(fresh, asking(again), without.token_ids, second.token_ids)


def test_an_equal_prompt_leaves_a_token_to_compute(fresh: RunningServer) -> None:
    answers = [stream(fresh, asking(ids(4 * BLOCK, 3))) for _ in range(2)]
    assert cached(answers[1]) == 3 * BLOCK
    same_tokens(fresh, asking(ids(4 * BLOCK, 3)), answers[0].token_ids, answers[1].token_ids)


def test_tenants_share_nothing(fresh: RunningServer) -> None:
    tenants = ["a", "b", "", "a", "b", ""]
    found = [cached(stream(fresh, asking(ids(200, 4), tenant=tenant))) for tenant in tenants]
    assert found == [0, 0, 0, 192, 192, 192]


def test_counting_tokens_tells_what_is_cached(fresh: RunningServer) -> None:
    given = pb.Input(token_ids=pb.TokenIds(ids=ids(200, 5)))
    count = pb.CountTokensRequest(input=given)
    assert fresh.inference.CountTokens(count, timeout=TIMEOUT).cached_tokens == 0
    stream(fresh, asking(ids(200, 5), tenant="somebody"))
    assert fresh.inference.CountTokens(count, timeout=TIMEOUT).cached_tokens == 0
    stream(fresh, asking(ids(200, 5)))
    assert fresh.inference.CountTokens(count, timeout=TIMEOUT).cached_tokens == 192


def test_progress_begins_behind_what_is_cached(fresh: RunningServer) -> None:
    stream(fresh, ask(1500, 1, variant=6))
    received = stream(fresh, ask(1500, 1, variant=6, progress=True))
    assert [(one.processed_tokens, one.total_tokens) for one in received.progress] == [(1500, 1500)]


def test_what_is_stored_is_told_to_the_admin(fresh: RunningServer) -> None:
    before = fresh.loaded().prefix_bytes
    stream(fresh, asking(ids(1000, 7)))
    until(lambda: fresh.loaded().prefix_bytes > before, "the worker's report")
    assert fresh.loaded().prefix_bytes < fresh.loaded().memory_bytes


def test_a_crowd_of_tenants_hits_within_the_budget() -> None:
    with running_server("--prefix-bytes", "64MiB") as server:
        systems = {tenant: ids(512, 10 + number) for number, tenant in enumerate(("red", "green", "blue"))}
        for tenant, system in systems.items():
            stream(server, asking(system, tenant=tenant))
        asked = [(tenant, [*system, *ids(30, 50 + turn)]) for turn in range(8) for tenant, system in systems.items()]
        requests = [asking(tokens, tenant=tenant) for tenant, tokens in asked]
        answers = list(streams(server, requests))
        assert {cached(received) for received in answers} == {512 // BLOCK * BLOCK}
        assert server.loaded().prefix_bytes <= 64 << 20
        for request, received in zip(requests, answers, strict=True):
            request.cache.bypass = True
            same_tokens(server, request, stream(server, request).token_ids, received.token_ids)


def test_no_cache_where_the_operator_wants_none() -> None:
    with running_server("--prefix-bytes", "0") as server:
        assert [cached(stream(server, asking(ids(200, 8)))) for _ in range(2)] == [0, 0]
        assert server.loaded().prefix_bytes == 0


def test_the_built_in_model_recalls_through_the_cache() -> None:
    """From a place that only the cache still knows, in several branches of a conversation."""
    *talk, _ = LONG_TALK.messages
    branches = [asked for asked in SINGLE if asked.skill in ("sum", "name, ko", "small talk")]
    with running_server(built_in=True) as server:
        first, *others = [Known(one.skill, (*talk, *one.messages), one.answer) for one in branches]
        prompt_tokens = stream(server, first.request()).started.prompt_tokens
        for known in (LONG_TALK, *others):
            received = stream(server, known.request())
            assert received.text == known.answer
            assert cached(received) > 0.95 * prompt_tokens
