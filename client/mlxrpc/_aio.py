"""The client for asyncio: only what does I/O. What is sent and what comes back is decided in the pure modules."""

# ruff: noqa: ASYNC109 -- `timeout` is the call's deadline, which gRPC keeps and the server is told.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from grpc import aio

from mlxrpc import _channel, _errors, _requests
from mlxrpc._channel import DEFAULT_TARGET, Metadata, Option, Pairs
from mlxrpc._messages import Prompt
from mlxrpc._models import Model, ModelList
from mlxrpc._requests import CountOptions, GenerateOptions, StreamOptions
from mlxrpc._results import Completion, Delta, OnPrefill, Transcript
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub

Response = TypeVar("Response")


class AsyncClient:
    """As `mlxrpc.Client`, for asyncio. Made and used within one event loop; share one among tasks.

    >>> async def main():
    ...     async with mlxrpc.AsyncClient(target) as client:
    ...         print(await client.generate("Hello"))
    >>> asyncio.run(main())
    Hello from mlxrpc.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        channel_options: Iterable[Option] = (),
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._metadata = _channel.call_metadata(token, metadata)
        self._channel = open_channel(target, credentials, channel_options)
        self._stub = InferenceServiceStub(self._channel)

    async def generate(
        self,
        prompt: Prompt | None = None,
        /,
        *,
        request: pb.GenerateRequest | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Generates a completion and returns it whole; see `mlxrpc.Client.generate`. Cancelling the task cancels the call.

        >>> async def main():
        ...     async with mlxrpc.AsyncClient(target) as client:
        ...         first, second = await asyncio.gather(client.generate("Hello"), client.generate("Hello", max_tokens=1))
        ...         print(first, "|", second)
        >>> asyncio.run(main())
        Hello from mlxrpc. | Hello
        """
        message = _requests.build(pb.GenerateRequest, prompt, options, request)
        call = self._stub.Generate(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
        return Completion(await translated(call))

    def stream(
        self,
        prompt: Prompt | None = None,
        /,
        *,
        request: pb.StreamGenerateRequest | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        on_prefill: OnPrefill | None = None,
        **options: Unpack[StreamOptions],
    ) -> AsyncStream:
        """Generates a completion and gives it piece by piece; see `mlxrpc.Client.stream`. Nothing to await before `async with`.

        >>> async def main():
        ...     async with mlxrpc.AsyncClient(target) as client:
        ...         async with client.stream("Hello") as stream:
        ...             async for delta in stream:
        ...                 print(delta.text, end="")
        >>> asyncio.run(main())
        Hello from mlxrpc.
        """
        if on_prefill is not None:
            options["prefill_progress"] = True
        message = _requests.build(pb.StreamGenerateRequest, prompt, options, request)
        call = self._stub.StreamGenerate(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
        resumed = message.resume if message.HasField("resume") else None
        return AsyncStream(call, Transcript(resumed, on_prefill))

    async def count_tokens(
        self,
        prompt: Prompt | None = None,
        /,
        *,
        request: pb.CountTokensRequest | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[CountOptions],
    ) -> pb.CountTokensResponse:
        """Counts a prompt's tokens as generate() would build it; see `mlxrpc.Client.count_tokens`."""
        message = _requests.build(pb.CountTokensRequest, prompt, options, request)
        call = self._stub.CountTokens(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
        return await translated(call)

    async def models(
        self,
        query: str | None = None,
        /,
        *,
        states: Sequence[str] | None = None,
        max_size_bytes: int | None = None,
        capabilities: Sequence[str] | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> ModelList:
        """The models that the server may serve, loaded or not, by name; see `mlxrpc.Client.models`."""
        request = _requests.list_models_request(
            query=query, states=states, max_size_bytes=max_size_bytes, capabilities=capabilities
        )
        models: list[Model] = []
        while True:
            call = self._stub.ListModels(request, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
            page = await translated(call)
            models.extend(Model(each) for each in page.models)
            if not page.next_page_token:
                return ModelList(models, page.server)
            request.page_token = page.next_page_token

    async def close(self) -> None:
        """Closes the connection; calls that are open end with `mlxrpc.Cancelled`."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _pairs(self, metadata: Metadata | None) -> Pairs:
        return _channel.call_metadata(None, self._metadata, metadata)


class AsyncStream:
    """As `mlxrpc.Stream`, for `async with` and `async for`."""

    def __init__(
        self,
        call: aio.UnaryStreamCall[pb.StreamGenerateRequest, pb.StreamGenerateResponse],
        transcript: Transcript,
    ) -> None:
        self._call = call
        self._events = aiter(call)
        self._transcript = transcript

    @property
    def started(self) -> pb.Started | None:
        """Model, seed and prompt size. None until the first delta, or the end, has come."""
        return self._transcript.started

    @property
    def finished(self) -> Completion | None:
        """The whole, with finish reason, usage and timings. None until the end."""
        return self._transcript.completion() if self._transcript.finished else None

    @property
    def text(self) -> str:
        """The text so far; after a resumption, the new one alone."""
        return self._transcript.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids so far; after a resumption, the new ones alone."""
        return self._transcript.token_ids

    async def result(self) -> Completion:
        """Reads what is left of the stream, and gives the whole, as generate() would have."""
        async for _ in self:
            pass
        return self._transcript.completion()

    def resumption(self) -> pb.Resume | None:
        """What `stream(..., resume=...)` needs to go on from here, on this or another server."""
        return self._transcript.resumption()

    def cancel(self) -> None:
        """Ends the call, if it has not ended; the server stops generating."""
        self._call.cancel()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while (event := await translated(anext(self._events, None))) is not None:
            delta = self._transcript.take(event)
            if delta is not None:
                return delta
        self._transcript.end()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, more: Iterable[Option] = ()) -> aio.Channel:
    options = _channel.channel_options(target, more)
    if credentials is None:
        return aio.insecure_channel(target, options=options)
    return aio.secure_channel(target, credentials, options=options)


async def translated(step: Awaitable[Response]) -> Response:
    """gRPC's errors leave as ours."""
    try:
        return await step
    except aio.AioRpcError as error:
        raise _errors.from_call(error) from error
    except asyncio.CancelledError:
        # A call that was cancelled by the server, by cancel() or by close() looks to grpc.aio's reader as if its task had been.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _errors.Cancelled("the call was cancelled", grpc.StatusCode.CANCELLED) from None
