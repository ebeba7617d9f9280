"""A server that speaks the contract and has no model: it answers every prompt with the same four tokens.

A real gRPC server on a port of its own. What a test wants otherwise it sets: `events`, `failures`, `hold`.
"""

# ruff: noqa: N802 -- the RPCs' names are the contract's.

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

SERVICE = "mlxrpc.v1.InferenceService"
PIECES = {11: "Hello", 12: " from", 13: " mlxrpc", 14: "."}
END = 2
SEED = 7
WAIT = 20.0  # seconds; no test that passes waits so long

MODELS = [
    model_pb2.Model(name="broken", state=model_pb2.MODEL_STATE_FAILED, state_reason="config.json\nis missing"),
    model_pb2.Model(
        name="demo",
        aliases=["default"],
        description="The built-in model",
        state=model_pb2.MODEL_STATE_LOADED,
        architecture="llama",
        context_length=4096,
        weights_bytes=12_345_678,
        capabilities=model_pb2.Capabilities(chat_template=True, batching=True),
    ),
]


CONTEXT = 4096


@dataclass(frozen=True)
class Failure:
    """An error as the contract describes it: a sentence, a reason with facts, and details."""

    code: grpc.StatusCode
    message: str
    reason: str = "TEST"
    metadata: dict[str, str] = field(default_factory=dict)
    details: Sequence[Message] = ()

    def status(self) -> status_pb2.Status:
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain="mlxrpc", metadata=self.metadata)
        return status_pb2.Status(
            code=code_pb2.Code.Value(self.code.name),
            message=self.message,
            details=[packed(each) for each in (info, *self.details)],
        )

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        return (
            ("x-request-id", "request-1"),
            ("grpc-retry-pushback-ms", "10"),
            ("grpc-status-details-bin", self.status().SerializeToString()),
        )


def packed(message: Message) -> Packed:
    result = Packed()
    result.Pack(message)
    return result


def violations(*pairs: tuple[str, str]) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[violation(field=path, description=text, reason="OUT_OF_RANGE") for path, text in pairs]
    )


TOO_LONG = Failure(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is too long", "PROMPT_TOO_LONG")
UNKNOWN_MODEL = Failure(
    grpc.StatusCode.NOT_FOUND,
    "there is no model 'nobody' here; the nearest name is demo",
    "MODEL_NOT_FOUND",
    {"model": "nobody", "nearest": "demo"},
)


class FakeInference(InferenceServiceServicer):
    """Remembers what it was asked, and answers by the contract."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.time_left: list[float] = []
        self.failures: list[Failure] = []  # the next calls fail with these
        self.events: list[pb.StreamGenerateResponse] | None = None  # sent in place of the usual ones
        self.failure_at_the_end: Failure | None = None
        self.hold = False  # calls go on until they are cancelled, or released
        self.released = threading.Event()
        self.page_size = 1000
        self.ended = threading.Event()  # set when a stream has ended, for whatever reason

    def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        self._received(request, context)
        if self.hold:
            self.released.wait(WAIT)
        ids, finished = completed(request)
        return pb.GenerateResponse(
            response_id="response-1",
            model="demo",
            text=text_of(ids),
            tokens=[token(each) for each in ids] if request.output.token_ids else (),
            finish_reason=finished.finish_reason,
            matched_stop=finished.matched_stop if finished.HasField("matched_stop") else None,
            usage=finished.usage,
            timings=finished.timings,
            seed=seed_of(request),
            fingerprint="print-1",
        )

    def StreamGenerate(self, request: pb.StreamGenerateRequest, context: Any) -> Iterator[pb.StreamGenerateResponse]:
        self._received(request, context)
        if prompt_tokens(request.input) > CONTEXT:
            abort(context, TOO_LONG)
        try:
            for event in self.events if self.events is not None else usual_events(request):
                yield event
                if event.HasField("delta") and self.hold:
                    yield from self._empty_deltas()
            if self.failure_at_the_end is not None:
                abort(context, self.failure_at_the_end)
        finally:  # also where gRPC drops this generator, because the call was cancelled
            self.ended.set()

    def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:
        self._received(request, context)
        count = prompt_tokens(request.input)
        ids = range(count) if request.return_token_ids else ()
        prompt = "the prompt" if request.return_prompt else ""
        return pb.CountTokensResponse(
            token_count=count, context_length=CONTEXT, token_ids=ids, prompt=prompt, fits=True
        )

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        self._received(request, context)
        states, query = set(request.filter.states), request.filter.query.lower()
        found = [each for each in MODELS if (not states or each.state in states) and query in each.name]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, self.page_size)
        return pb.ListModelsResponse(
            models=found[start:end],
            next_page_token=str(end) if end < len(found) else "",
            server=model_pb2.Server(name="mlxrpc", version="1.2.3"),
        )

    def _received(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left.append(context.time_remaining())
        if self.failures:
            abort(context, self.failures.pop(0))
        if getattr(request, "model", "") == "nobody":
            abort(context, UNKNOWN_MODEL)

    def _empty_deltas(self) -> Iterator[pb.StreamGenerateResponse]:
        """One now and then: by sending, a threaded server learns that the call was cancelled."""
        while not self.released.wait(0.01):
            yield pb.StreamGenerateResponse(delta=pb.Delta())


def usual_events(request: Any) -> Iterator[pb.StreamGenerateResponse]:
    ids, finished = completed(request)
    yield pb.StreamGenerateResponse(
        started=pb.Started(
            response_id="response-1",
            model="demo",
            seed=seed_of(request),
            prompt_tokens=prompt_tokens(request.input),
            create_time=Timestamp(seconds=1000),
            fingerprint="print-1",
        )
    )
    if request.stream_options.prefill_progress:
        progress = pb.PrefillProgress(processed_tokens=1, total_tokens=1)
        yield pb.StreamGenerateResponse(prefill_progress=progress)
    for each in ids:
        delta = pb.Delta(text=text_of([each]), token_ids=[each])
        if request.output.token_ids:
            delta.tokens.append(token(each))
        yield pb.StreamGenerateResponse(delta=delta)
    yield pb.StreamGenerateResponse(finished=finished)


def completed(request: Any) -> tuple[list[int], pb.Finished]:
    """The new ids, and how they end."""
    whole = [*PIECES, END]
    limit = request.stop.max_tokens or len(whole)
    ids = whole[:limit]
    usage = pb.Usage(prompt_tokens=prompt_tokens(request.input), completion_tokens=len(ids))
    timings = pb.Timings(
        prefill=Duration(nanos=500_000_000), time_to_first_token=Duration(nanos=250_000_000), tokens_per_second=80
    )
    finished = pb.Finished(finish_reason=pb.FINISH_REASON_MAX_TOKENS, usage=usage, timings=timings)
    if ids[-1] == END:
        finished.finish_reason = pb.FINISH_REASON_STOP_TOKEN
        finished.matched_stop.token_id = END
    return ids[len(request.resume.token_ids) :], finished


def prompt_tokens(given: pb.Input) -> int:
    """A token for each word."""
    if given.WhichOneof("kind") == "token_ids":
        return len(given.token_ids.ids)
    texts = [part.text for message in given.conversation.messages for part in message.parts]
    return len(" ".join([given.text, *texts]).split())


def text_of(ids: Sequence[int]) -> str:
    return "".join(PIECES.get(each, "") for each in ids)


def token(token_id: int) -> pb.Token:
    return pb.Token(id=token_id, bytes=PIECES.get(token_id, "").encode())


def seed_of(request: Any) -> int:
    return int(request.sampling.seed) if request.sampling.HasField("seed") else SEED


def abort(context: Any, failure: Failure) -> NoReturn:
    context.set_trailing_metadata(failure.trailers())
    context.abort(failure.code, failure.message)
    raise AssertionError("abort raises")


class WatchedHealth(HealthServicer):
    """The standard health service; says when somebody follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = threading.Event()

    def Watch(self, *arguments: Any, **more: Any) -> Any:
        try:
            return super().Watch(*arguments, **more)
        finally:
            self.watched.set()


class FakeServer:
    """The server around it: its address, its servicer and its health."""

    def __init__(self) -> None:
        self.inference = FakeInference()
        self.health = WatchedHealth()
        self.set_health(SERVICE, serving=True)
        self.set_health(f"{SERVICE}/demo", serving=True)
        self.set_health(f"{SERVICE}/broken", serving=False)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        add_InferenceServiceServicer_to_server(self.inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def set_health(self, name: str, *, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        self.health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    def wait_for_watch(self) -> None:
        assert self.health.watched.wait(WAIT)

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        self._server.start()
        try:
            yield self
        finally:
            self.inference.released.set()
            self._server.stop(grace=None).wait()
