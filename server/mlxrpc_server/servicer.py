"""The inference RPCs. Each says which parts are asked in which order, and does none of it itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeVar, assert_never

from google.protobuf.message import Message

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceServicer
from mlxrpc_server import parse, protos
from mlxrpc_server.calls import Call, Calls, Context
from mlxrpc_server.description import describe
from mlxrpc_server.events import Delta, Event, Finished, PrefillProgress, Started
from mlxrpc_server.generation import Service
from mlxrpc_server.types import Request

T = TypeVar("T")

LARGE = 64 * 1024
"""Bytes. A request below it is read within some milliseconds, whatever is in it."""


class InferenceService(InferenceServiceServicer):
    def __init__(self, service: Service, calls: Calls) -> None:
        self._service = service
        self._calls = calls

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:  # noqa: N802
        async with self._calls.admit(context, "Generate") as call:
            asked = await _asked(request, call)
            answer = protos.UnaryResponse()
            async with aclosing(self._service.generate(asked, call.deadline)) as events:
                async for event in events:
                    _note(call, event)
                    answer.add(event)
            return answer.response

    # A coroutine that writes, not a generator: a cancel then reaches it as CancelledError, wherever it waits.
    async def StreamGenerate(  # type: ignore[override]  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        async with self._calls.admit(context, "StreamGenerate") as call:
            asked = await _asked(request, call)
            async with aclosing(self._service.generate(asked, call.deadline)) as events:
                # What is produced while a write is pending waits in the engine's hands, and is one event after it.
                async for event in events:
                    _note(call, event)
                    await call.write(protos.stream_event(event))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:  # noqa: N802
        async with self._calls.admit(context, "CountTokens") as call:
            asked = await _parsed(lambda: parse.count(request), request)
            entry = self._service.catalog.find(asked.model)
            await self._service.tokenizer(entry)
            prompt = await self._service.prompt(entry, asked.input, time.time())
            call.note(model=entry.name, prompt_tokens=len(prompt.token_ids))
            held = await self._service.held(entry, prompt)
            return protos.counted(
                prompt, entry.context_length, held, token_ids=asked.return_token_ids, text=asked.return_prompt
            )

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        async with self._calls.admit(context, "ListModels"):
            page = parse.list_models(request)
            known = await describe(self._service.catalog, self._service.models)
            models, next_page_token = page.of(known)
            return pb.ListModelsResponse(models=models, next_page_token=next_page_token, server=protos.server())


async def _asked(request: parse.GenerationRequest, call: Call) -> Request:
    asked = await _parsed(lambda: parse.generation(request, call.id), request)
    call.note(response_id=asked.id)
    return asked


async def _parsed(parse: Callable[[], T], request: Message) -> T:
    """A request of many megabytes takes seconds: those go into a thread, so that the loop goes on."""
    return await asyncio.to_thread(parse) if request.ByteSize() > LARGE else parse()


def _note(call: Call, event: Event) -> None:
    """For the log line: numbers and names, and no text."""
    match event:
        case PrefillProgress() | Delta():
            pass
        case Started():
            call.note(model=event.model, prompt_tokens=event.prompt_tokens)
        case Finished():
            call.note(
                cached_prompt_tokens=event.usage.cached_prompt_tokens,
                completion_tokens=event.usage.completion_tokens,
                finish_reason=event.reason.value,
                queue_seconds=round(event.timings.queue, 6),
                load_seconds=round(event.timings.model_load, 6),
                prefill_seconds=round(event.timings.prefill, 6),
                decode_seconds=round(event.timings.decode, 6),
            )
        case _:
            assert_never(event)
