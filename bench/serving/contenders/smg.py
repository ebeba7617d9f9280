"""The smg gRPC servicer on mlx-lm's BatchGenerator: token ids in, token ids out.

It needs an older mlx-lm and so a Python environment of its own. Its messages are taken from its reflection
service: none of its packages is needed here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.exchange import Answer, Ask

SERVICE = "mlx.grpc.engine.MlxEngine"


@dataclass(frozen=True, slots=True)
class Smg:
    python: str = sys.executable
    path: str = ""
    """Folders to import from before all others, as in PYTHONPATH."""
    name: str = "smg-grpc-servicer"
    seeds: bool = True

    def command(self, model: Path, port: int, rows: int) -> list[str]:
        command = [self.python, "-m", "smg_grpc_servicer.mlx.server", "--model", str(model)]
        return [*command, "--host", "127.0.0.1", "--port", str(port), "--completion-batch-size", str(rows)]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(filter(None, [self.path, os.environ.get("PYTHONPATH", "")]))}

    def client(self, address: str) -> SmgClient:
        return SmgClient(address)


class SmgClient:
    def __init__(self, address: str) -> None:
        self._address = address
        self._asked = 0

    async def __aenter__(self) -> Self:
        with grpc.insecure_channel(self._address) as channel:
            service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE)
        method = service.FindMethodByName("Generate")
        self._request: Any = GetMessageClass(method.input_type)
        self._channel = grpc.aio.insecure_channel(self._address)
        self._generate: Any = self._channel.unary_stream(
            f"/{SERVICE}/Generate",
            request_serializer=self._request.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def ask(self, answer: Answer) -> None:
        async for event in self._generate(self._message(answer.asked)):
            if event.WhichOneof("response") == "chunk":
                answer.heard(len(event.chunk.token_ids))
            else:
                answer.prompt_tokens = event.complete.prompt_tokens
                answer.completion_tokens = event.complete.completion_tokens

    def _message(self, ask: Ask) -> Any:
        self._asked += 1
        message = self._request(request_id=f"{os.getpid()}-{self._asked}", stream=True)
        message.tokenized.input_ids.extend(ask.token_ids)
        chosen = message.sampling_params
        chosen.temperature, chosen.top_p = ask.sampling.temperature, ask.sampling.top_p
        chosen.max_tokens, chosen.ignore_eos = ask.max_tokens, True
        if ask.sampling.seed is not None:
            chosen.seed = ask.sampling.seed & 0x7FFFFFFF
        if ask.sampling.repetition_penalty is not None:
            chosen.repetition_penalty = ask.sampling.repetition_penalty
        return message
