"""A client that keeps a server busy until it is killed: `busy.py streams|prompts ADDRESS`. Says "busy" once it does."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import grpc

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from mlxrpc.v1.inference_pb2_grpc import InferenceServiceAsyncStub  # exists in the type stubs alone

STREAMS = 32
LONG = ("the quick brown fox 안녕 🙂 " * 5000)[:100_000]


def request(prompt: int, tokens: int) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[(7 * place) % 1000 for place in range(prompt)])),
        sampling=model_pb2.Sampling(temperature=0),
        stop=pb.Stop(max_tokens=tokens, ignore_eos=True),
    )


async def stream(stub: InferenceServiceAsyncStub, started: asyncio.Barrier) -> None:
    first = True
    while True:
        async for event in stub.StreamGenerate(request(prompt=32, tokens=2000)):
            if first and event.HasField("delta"):
                first = False
                await started.wait()


async def count(stub: InferenceServiceAsyncStub, started: asyncio.Barrier) -> None:
    """Two in turns, so that the next prompt is there when one is done."""
    first = True
    while True:
        await stub.CountTokens(pb.CountTokensRequest(input=pb.Input(text=LONG)))
        if first:
            first = False
            await started.wait()


async def main(kind: str, address: str) -> None:
    work, tasks = {"streams": (stream, STREAMS), "prompts": (count, 2)}[kind]
    started = asyncio.Barrier(tasks + 1)
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work(InferenceServiceStub(channel), started))
        await started.wait()
        print("busy", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
