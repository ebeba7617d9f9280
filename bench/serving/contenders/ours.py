"""mlxrpc: StreamGenerate over gRPC, text in, text and ids out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc.aio

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from serving.exchange import Answer, Ask, Sampling


@dataclass(frozen=True, slots=True)
class Ours:
    name: str = "mlxrpc"
    seeds: bool = True

    def command(self, model: Path, port: int, rows: int) -> list[str]:
        command = [sys.executable, "-m", "mlxrpc_server", "--model", f"bench={model}", "--listen", f"127.0.0.1:{port}"]
        command += ["--max-loaded-models", "1", "--max-rows", str(rows)]
        return [*command, "--max-in-flight", "1024", "--longest-wait", "300"]

    def environment(self) -> dict[str, str]:
        return {}

    def client(self, address: str) -> OursClient:
        return OursClient(address)


class OursClient:
    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._address)
        self._stub = InferenceServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def ask(self, answer: Answer) -> None:
        async for event in self._stub.StreamGenerate(request(answer.asked)):
            match event.WhichOneof("event"):
                case "started":
                    answer.prompt_tokens = event.started.prompt_tokens
                case "delta":
                    answer.heard(len(event.delta.token_ids))
                case "finished":
                    answer.completion_tokens = event.finished.usage.completion_tokens


def request(ask: Ask) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(
        input=pb.Input(text=ask.text),
        sampling=sampling(ask.sampling),
        stop=pb.Stop(max_tokens=ask.max_tokens, ignore_eos=True),
    )


def sampling(chosen: Sampling) -> model_pb2.Sampling:
    message = model_pb2.Sampling(temperature=chosen.temperature, top_p=chosen.top_p)
    if chosen.seed is not None:
        message.seed = chosen.seed
    if chosen.repetition_penalty is not None:
        message.repetition_penalty = chosen.repetition_penalty
    return message
