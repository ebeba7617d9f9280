"""Tokens per second over all streams, and how long the first of each takes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import grpc

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub

STREAMS = (1, 8, 32)
TOKENS = 64
HEADER = ("streams", "tokens/s", "tokens/s each", "first token, p50 s")


def rows(address: str) -> Iterator[tuple[str, ...]]:
    for streams in STREAMS:
        seconds, firsts = asyncio.run(together(address, streams))
        rate = streams * TOKENS / seconds
        yield str(streams), f"{rate:.0f}", f"{rate / streams:.0f}", f"{statistics.median(firsts):.3f}"


async def together(address: str, streams: int) -> tuple[float, list[float]]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        await first_token(stub, tokens=1)
        begun = time.perf_counter()
        firsts = await asyncio.gather(*(first_token(stub, TOKENS) for _ in range(streams)))
        return time.perf_counter() - begun, firsts


async def first_token(stub: InferenceServiceStub, tokens: int) -> float:
    """Of a stream that is read to its end."""
    begun, first = time.perf_counter(), 0.0
    async for event in stub.StreamGenerate(request(prompt=32, tokens=tokens)):
        if not first and event.HasField("delta"):
            first = time.perf_counter() - begun
    return first


def request(prompt: int, tokens: int) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[(7 * place) % 1000 for place in range(prompt)])),
        sampling=model_pb2.Sampling(temperature=0),
        stop=pb.Stop(max_tokens=tokens, ignore_eos=True),
    )
