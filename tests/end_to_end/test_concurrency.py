"""Many streams together: each gives what it gives alone, whatever joins it or leaves beside it."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from tests.end_to_end.crowd import Crowd
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import VOCABULARY, Received, same_tokens, stream, streaming

STREAMS = 64
PLACES = 12
TEXTS = ["안녕하세요, 오늘은", "the quiet river 🌊", "👩‍💻", "e\u0301\u0327", "def count(words):"]


def wished(number: int) -> pb.StreamGenerateRequest:
    """Of prompts, lengths, seeds and settings as mixed as callers'; a quarter of them greedy."""
    chance = random.Random(number)  # noqa: S311
    ids = [chance.randrange(1000) for _ in range(chance.randint(1, 30))]
    prompt = chance.choice(TEXTS) if number % 3 == 0 else ids
    request = streaming(prompt, seed=chance.getrandbits(64), max_tokens=chance.randint(8, 24))
    request.sampling.temperature = 0.0 if number % 4 == 0 else chance.choice([0.3, 1.0, 1.7])
    if chance.random() < 0.5:
        request.sampling.top_p = chance.choice([0.3, 0.9])
    if chance.random() < 0.3:
        request.sampling.top_k = chance.choice([5, 60, VOCABULARY])
    if chance.random() < 0.3:
        request.sampling.min_p = chance.choice([0.01, 0.3])
    return request


WISHES = [wished(number) for number in range(STREAMS)]


@pytest.fixture(scope="module")
def alone(server: RunningServer) -> list[Received]:
    """Each by itself, the server's only one."""
    return [stream(server, wish) for wish in WISHES]


def check(server: RunningServer, alone: list[Received], together: list[Received]) -> None:
    for wish, solo, received in zip(WISHES, alone, together, strict=True):
        if same_tokens(server, wish, solo.token_ids, received.token_ids):
            assert received.text == solo.text
            assert received.end.finish_reason == solo.end.finish_reason
            assert received.end.usage == solo.end.usage


async def test_64_streams_at_once_give_what_each_gives_alone(server: RunningServer, alone: list[Received]) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        crowd = Crowd(InferenceServiceStub(channel))
        together = await asyncio.gather(*(crowd.stream(wish) for wish in WISHES))
    assert crowd.most > STREAMS // 3, "they did not run together"
    check(server, alone, together)


async def test_neighbours_that_come_and_go_change_nothing(server: RunningServer, alone: list[Received]) -> None:
    """Few places, so that each end lets another one join; and some callers who go away in the middle."""
    places = asyncio.Semaphore(PLACES)

    async with grpc.aio.insecure_channel(server.address) as channel:
        crowd = Crowd(InferenceServiceStub(channel))

        async def in_turn(number: int) -> Received:
            async with places:
                if number % 3 == 0:
                    await crowd.leave_early(WISHES[-number], deltas=1 + number % 5)
                return await crowd.stream(WISHES[number])

        order = random.Random(1).sample(range(STREAMS), STREAMS)  # noqa: S311
        received = await asyncio.gather(*(in_turn(number) for number in order))
    together = dict(zip(order, received, strict=True))
    check(server, alone, [together[number] for number in range(STREAMS)])


def test_the_wishes_are_mixed(alone: list[Received]) -> None:
    assert sum(wish.sampling.temperature == 0 for wish in WISHES) == STREAMS // 4
    assert len({wish.stop.max_tokens for wish in WISHES}) > 10
    assert len({received.started.prompt_tokens for received in alone}) > 10
    assert len({tuple(received.token_ids) for received in alone}) == STREAMS
