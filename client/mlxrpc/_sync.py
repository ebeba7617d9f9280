"""The client for threads: only what does I/O. What is sent and what comes back is decided in the pure modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc

from mlxrpc import _channel, _errors, _requests
from mlxrpc._channel import DEFAULT_TARGET, Metadata, Option, Pairs
from mlxrpc._messages import Prompt
from mlxrpc._models import Model, ModelList
from mlxrpc._requests import CountOptions, GenerateOptions, StreamOptions
from mlxrpc._results import Completion, Delta, OnPrefill, Transcript
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub


class Client:
    """A connection to a server; share one among threads, and close it or use it as a context manager.

    `target` is HOST:PORT, `dns:///HOST:PORT` to balance over all of the host's addresses that say they are healthy, or whatever
    else gRPC understands. `credentials` are gRPC's, for TLS; without them the connection is in clear. `token` is sent as
    "Bearer". `timeout`, in seconds, holds for calls that give none; without one, calls may take as long as they need.
    `channel_options` are gRPC's, and replace ours.

    >>> with mlxrpc.Client(target) as client:
    ...     print(client.generate("Hello"))
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

    def generate(
        self,
        prompt: Prompt | None = None,
        /,
        *,
        request: pb.GenerateRequest | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Generates a completion and returns it whole.

        `prompt` is a str (what the user says), messages, `mlxrpc.Text` (raw) or `mlxrpc.Tokens`. The keywords are those of
        `mlxrpc.GenerateOptions`: what is absent or None is left to the model's defaults. `request` is a proto to start from, with
        prompt and keywords put over it. `timeout` is in seconds. Fails with `mlxrpc.Error`.

        >>> completion = client.generate("Hello", temperature=0.7, seed=42, max_tokens=2)
        >>> completion.text, completion.finish_reason, completion.usage.completion_tokens
        ('Hello from', <FinishReason.MAX_TOKENS: 'max_tokens'>, 2)
        """
        message = _requests.build(pb.GenerateRequest, prompt, options, request)
        with translated():
            response = self._stub.Generate(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
        return Completion(response)

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
    ) -> Stream:
        """Generates a completion and gives it piece by piece. As generate(), with the keywords of `mlxrpc.StreamOptions`.

        Leaving the context cancels what is left of the call. `on_prefill` is called as the prompt is computed. A stream that was
        cut goes on, on any server with the same model, with the same arguments and `resume=stream.resumption()`.

        >>> with client.stream("Hello", max_tokens=2) as stream:
        ...     for delta in stream:
        ...         print(repr(delta.text), list(delta.token_ids))
        'Hello' [11]
        ' from' [12]
        >>> stream.text
        'Hello from'
        """
        if on_prefill is not None:
            options["prefill_progress"] = True
        message = _requests.build(pb.StreamGenerateRequest, prompt, options, request)
        call = self._stub.StreamGenerate(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
        resumed = message.resume if message.HasField("resume") else None
        return Stream(call, Transcript(resumed, on_prefill))

    def count_tokens(
        self,
        prompt: Prompt | None = None,
        /,
        *,
        request: pb.CountTokensRequest | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[CountOptions],
    ) -> pb.CountTokensResponse:
        """Counts a prompt's tokens as generate() would build it, without loading the model. Keywords: `mlxrpc.CountOptions`.

        >>> count = client.count_tokens(mlxrpc.Text("one two three"))
        >>> count.token_count, count.context_length, count.fits
        (3, 4096, True)
        """
        message = _requests.build(pb.CountTokensRequest, prompt, options, request)
        with translated():
            return self._stub.CountTokens(message, timeout=self._seconds(timeout), metadata=self._pairs(metadata))

    def models(
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
        """The models that the server may serve, loaded or not, by name: those which fulfil all that is given.

        `query` is words to find, `states` such as "loaded", `capabilities` such as "tools". The list's `server` says who answered.
        `timeout` holds for each page of up to 1,000 models.

        >>> for model in client.models(states=["loaded"]):
        ...     print(model.name, model.context_length)
        demo 4096
        """
        request = _requests.list_models_request(
            query=query, states=states, max_size_bytes=max_size_bytes, capabilities=capabilities
        )
        models: list[Model] = []
        while True:
            with translated():
                page = self._stub.ListModels(request, timeout=self._seconds(timeout), metadata=self._pairs(metadata))
            models.extend(Model(each) for each in page.models)
            if not page.next_page_token:
                return ModelList(models, page.server)
            request.page_token = page.next_page_token

    def close(self) -> None:
        """Closes the connection; calls that are open end with `mlxrpc.Cancelled`."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _pairs(self, metadata: Metadata | None) -> Pairs:
        return _channel.call_metadata(None, self._metadata, metadata)


class Stream:
    """A completion as it is made: iterate over its deltas, within `with`, which cancels the call on leaving."""

    def __init__(self, call: EventCall, transcript: Transcript) -> None:
        self._call = call
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

    def result(self) -> Completion:
        """Reads what is left of the stream, and gives the whole, as generate() would have."""
        for _ in self:
            pass
        return self._transcript.completion()

    def resumption(self) -> pb.Resume | None:
        """What `stream(..., resume=...)` needs to go on from here, on this or another server."""
        return self._transcript.resumption()

    def cancel(self) -> None:
        """Ends the call, if it has not ended; the server stops generating."""
        self._call.cancel()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        while (event := self._next_event()) is not None:
            delta = self._transcript.take(event)
            if delta is not None:
                return delta
        self._transcript.end()
        raise StopIteration

    def _next_event(self) -> pb.StreamGenerateResponse | None:
        with translated():
            return next(self._call, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class EventCall(Protocol):
    """What gRPC gives for a stream that was begun."""

    def __iter__(self) -> Iterator[pb.StreamGenerateResponse]: ...
    def __next__(self) -> pb.StreamGenerateResponse: ...
    def cancel(self) -> object: ...


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, more: Iterable[Option] = ()) -> grpc.Channel:
    options = _channel.channel_options(target, more)
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


@contextmanager
def translated() -> Iterator[None]:
    """gRPC's errors leave as ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _errors.from_call(error) from error
