"""The seam around every RPC, seen from both ends of a real connection."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from mlxrpc.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from mlxrpc_server.calls import Calls
from mlxrpc_server.errors import Unavailable
from mlxrpc_server.events import Delta, Event
from mlxrpc_server.servicer import InferenceService
from mlxrpc_server.types import Request
from tests.fakes import Script, ScriptedService, connected, refusing, saying, started, two_deltas

if TYPE_CHECKING:
    from mlxrpc.v1.inference_pb2_grpc import InferenceServiceAsyncStub  # exists in the type stubs alone

REQUEST = pb.StreamGenerateRequest(input=pb.Input(text="a secret"))
UNARY = pb.GenerateRequest(input=pb.Input(text="a secret"))

RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "60s",
                    "maxBackoff": "60s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""Backs off for a minute wherever the server does not say better."""


class Held:
    """A script that begins, and then goes on only when it is let."""

    def __init__(self, *first: Event) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self._first = first

    async def script(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            for event in self._first:
                yield event
            self.begun.set()
            await self.go_on.wait()
            async for event in two_deltas(request):
                yield event
        finally:
            self.ended.set()


def registered(script: Script, calls: Calls) -> Callable[[grpc.aio.Server], None]:
    return lambda server: add_inference(InferenceService(ScriptedService(script), calls), server)


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    """Whatever a test did: in the end no call is open."""
    calls = Calls()
    yield calls
    async with asyncio.timeout(10):
        await calls.all_ended()


def stub(channel: grpc.aio.Channel) -> InferenceServiceAsyncStub:
    return InferenceServiceStub(channel)


async def failure(script: Script, calls: Calls, request: pb.StreamGenerateRequest = REQUEST) -> grpc.aio.AioRpcError:
    async with connected(registered(script, calls)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub(channel).StreamGenerate(request):
                pass
    return failed.value


async def next_event(call: grpc.aio.UnaryStreamCall[Any, Any]) -> str | None:
    message = await call.read()
    assert isinstance(message, pb.StreamGenerateResponse)
    return message.WhichOneof("event")


def status_in(error: grpc.aio.AioRpcError) -> Status:
    """Checks too that code and message are those of the call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert isinstance(status, Status)
    return status


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "mlxrpc_server.calls"]


async def test_a_refusal_reaches_the_caller_with_its_details(calls: Calls) -> None:
    error = await failure(refusing(Unavailable("QUEUE_FULL", "there are too many", 2.0)), calls)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "there are too many"
    info = ErrorInfo()
    status_in(error).details[0].Unpack(info)
    assert info.reason == "QUEUE_FULL"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "2000"


async def test_a_wrong_request_never_reaches_the_service(calls: Calls) -> None:
    error = await failure(two_deltas, calls, pb.StreamGenerateRequest())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "input: is required: text, conversation or token_ids"


async def test_the_largest_refusal_fits_into_trailers(calls: Calls) -> None:
    conversation = pb.Conversation(messages=[pb.Message(name="안" * 1000)] * 500)
    error = await failure(two_deltas, calls, pb.StreamGenerateRequest(input=pb.Input(conversation=conversation)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert status_in(error).details


async def test_a_bug_is_told_by_its_request_id_alone(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    error = await failure(refusing(ZeroDivisionError("secret")), calls)
    assert error.code() is grpc.StatusCode.INTERNAL
    request_id = dict(error.trailing_metadata())["x-request-id"]
    assert isinstance(request_id, str)
    assert request_id in str(error.details())
    assert b"secret" not in status_in(error).SerializeToString()
    (line,) = lines(caplog)
    assert (line.levelname, vars(line)["request_id"]) == ("ERROR", request_id)
    assert line.exc_info is not None
    assert line.exc_info[0] is ZeroDivisionError


async def test_an_error_behind_the_first_events_leaves_them(calls: Calls) -> None:
    script = refusing(Unavailable("ENGINE_DIED", "gone", 1.0), started(), Delta("Hel", (1,)))
    async with connected(registered(script, calls)) as channel:
        call = stub(channel).StreamGenerate(REQUEST)
        assert await next_event(call) == "started"
        assert await next_event(call) == "delta"
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await call.read()


@pytest.mark.parametrize("given", ["abc-1", "!" * 128])
async def test_the_request_id_comes_back(calls: Calls, given: str) -> None:
    async with connected(registered(two_deltas, calls)) as channel:
        unary = stub(channel).Generate(UNARY, metadata=(("x-request-id", given),))
        assert dict(await unary.trailing_metadata())["x-request-id"] == given
        streaming = stub(channel).StreamGenerate(REQUEST, metadata=(("x-request-id", given),))
        assert dict(await streaming.initial_metadata())["x-request-id"] == given
        assert [event async for event in streaming]
        assert dict(await streaming.trailing_metadata())["x-request-id"] == given


@pytest.mark.parametrize(
    "given", [(), (("x-request-id", ""),), (("x-request-id", "a b"),), (("x-request-id", "x" * 129),)]
)
async def test_without_a_good_request_id_there_is_a_new_one(calls: Calls, given: tuple[tuple[str, str], ...]) -> None:
    async with connected(registered(two_deltas, calls)) as channel:
        unary = stub(channel).Generate(UNARY, metadata=given)
        response = await unary
        request_id = dict(await unary.trailing_metadata())["x-request-id"]
    assert request_id == response.response_id
    assert len(request_id) == 32


async def test_response_ids_differ_under_one_request_id(calls: Calls) -> None:
    async with connected(registered(two_deltas, calls)) as channel:
        twice = [await stub(channel).Generate(UNARY, metadata=(("x-request-id", "same"),)) for _ in range(2)]
    assert twice[0].response_id != twice[1].response_id


async def test_the_deadline_arrives(calls: Calls) -> None:
    service = ScriptedService(two_deltas)
    begin = asyncio.get_running_loop().time()
    async with connected(lambda server: add_inference(InferenceService(service, calls), server)) as channel:
        await stub(channel).Generate(UNARY, timeout=100)
        await stub(channel).Generate(UNARY)
    near, none = service.deadlines
    assert near is not None
    assert begin + 90 < near < begin + 200
    assert none is None


async def test_a_call_is_logged_once_without_its_text(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(registered(two_deltas, calls)) as channel:
        await stub(channel).Generate(UNARY, metadata=(("x-request-id", "abc"),))
    (line,) = lines(caplog)
    facts = vars(line)
    assert (facts["rpc"], facts["code"], facts["request_id"], facts["model"]) == ("Generate", "OK", "abc", "m")
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (3, 2)
    assert "secret" not in repr(facts)


async def test_a_cancel_ends_the_generation_and_is_logged(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    held = Held(started())
    async with connected(registered(held.script, calls)) as channel:
        call = stub(channel).StreamGenerate(REQUEST)
        assert await next_event(call) == "started"
        assert calls.open == 1
        call.cancel()
        await held.ended.wait()
        await calls.all_ended()
    (line,) = lines(caplog)
    assert (vars(line)["code"], line.levelname) == ("CANCELLED", "INFO")


async def test_a_deadline_ends_the_generation(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    held = Held(started())
    async with connected(registered(held.script, calls)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub(channel).Generate(UNARY, timeout=0.1)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await calls.all_ended()
    assert [vars(line)["code"] for line in lines(caplog)] in (["DEADLINE_EXCEEDED"], ["CANCELLED"])


async def test_a_caller_who_leaves_in_the_middle_of_a_flood_is_no_bug(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def flood(_request: Request) -> AsyncGenerator[Event, None]:
        yield started()
        while True:
            yield Delta("x" * 1000, (1,))

    async with connected(registered(flood, calls)) as channel:
        for _ in range(20):
            call = stub(channel).StreamGenerate(REQUEST)
            await call.read()
            call.cancel()
        await calls.all_ended()
    assert {(vars(line)["code"], line.levelname) for line in lines(caplog)} == {("CANCELLED", "INFO")}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        ("00-nonsense", None),
    ],
)
async def test_the_trace_that_a_caller_names_stands_in_the_log_line(
    calls: Calls, caplog: pytest.LogCaptureFixture, given: str, told: str | None
) -> None:
    caplog.set_level(logging.INFO)
    async with connected(registered(two_deltas, calls)) as channel:
        await stub(channel).Generate(UNARY, metadata=(("traceparent", given),))
        await calls.all_ended()
    assert [vars(line).get("trace_id") for line in lines(caplog)] == [told]


async def test_before_the_first_event_a_call_can_be_retried_by_grpc(calls: Calls) -> None:
    """It retries only what has sent nothing, and at once only because the pushback says so."""
    attempts = 0

    def script(request: Request) -> AsyncGenerator[Event, None]:
        nonlocal attempts
        attempts += 1
        return refusing(Unavailable("QUEUE_FULL", "full", 0.001))(request) if attempts == 1 else two_deltas(request)

    async with connected(registered(script, calls), options=[("grpc.service_config", RETRIES)]) as channel:
        async with asyncio.timeout(30):
            events = [event async for event in stub(channel).StreamGenerate(REQUEST)]
    assert attempts == 2
    assert len(events) == 4


async def test_a_draining_server_sends_new_calls_elsewhere_and_ends_the_others(calls: Calls) -> None:
    held = Held()
    async with connected(registered(held.script, calls)) as channel:
        running = asyncio.ensure_future(stub(channel).Generate(UNARY))
        await held.begun.wait()
        calls.drain()
        for refused in (
            stub(channel).Generate(UNARY),
            stub(channel).CountTokens(pb.CountTokensRequest(input=pb.Input(text="x"))),
            stub(channel).ListModels(pb.ListModelsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as failed:
                await refused
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(failed.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert calls.open == 1
        held.go_on.set()
        assert (await running).text == "Hello"


async def test_draining_waits_until_the_last_call_has_ended(calls: Calls) -> None:
    held = Held()
    async with connected(registered(held.script, calls)) as channel:
        running = asyncio.ensure_future(stub(channel).Generate(UNARY))
        await held.begun.wait()
        waiting = asyncio.create_task(calls.all_ended())
        held.go_on.set()
        await running
        await waiting
    assert calls.open == 0


async def test_events_in_any_number_arrive_in_order(calls: Calls) -> None:
    deltas = [Delta(str(place), (place,)) for place in range(500)]
    async with connected(registered(saying(started(), *deltas), calls)) as channel:
        events = [event async for event in stub(channel).StreamGenerate(REQUEST)]
    assert [event.delta.text for event in events[1:]] == [delta.text for delta in deltas]
