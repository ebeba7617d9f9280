"""Client and AsyncClient against a real server: what they do, and that they do the same."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

import mlxrpc
from mlxrpc.v1 import inference_pb2 as pb
from tests.client.fake_server import (
    END,
    PIECES,
    UNKNOWN_MODEL,
    WAIT,
    Failure,
    FakeInference,
    FakeServer,
    usual_events,
    violations,
)

WHOLE = "Hello from mlxrpc."
BAD = Failure(
    grpc.StatusCode.INVALID_ARGUMENT,
    "two fields are wrong",
    details=[violations(("sampling.top_p", "must be at most 1"), ("stop.max_tokens", "must be at least 1"))],
)


def test_a_completion_says_everything_about_itself(client: mlxrpc.Client) -> None:
    completion = client.generate("Hello there", return_token_ids=True)
    assert (completion.text, str(completion), completion.model) == (WHOLE, WHOLE, "demo")
    assert (completion.finish_reason, completion.matched_stop) == ("stop_token", END)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 5)
    assert completion.token_ids == (*PIECES, END)
    assert (completion.seed, completion.response_id, completion.fingerprint) == (7, "response-1", "print-1")
    assert (completion.timings.prefill, completion.timings.tokens_per_second) == (0.5, 80)
    assert isinstance(completion.proto, pb.GenerateResponse)


def test_a_stream_gives_its_parts_and_then_the_whole(client: mlxrpc.Client) -> None:
    with client.stream("Hello") as stream:
        assert (stream.started is None, stream.finished is None, stream.text) == (True, True, "")
        first = next(iter(stream))
        assert (first.text, list(first.token_ids)) == ("Hello", [11])
        assert (stream.text, stream.token_ids) == ("Hello", (11,))
        assert (stream.started is None, stream.finished is None) == (False, True)
        assert [delta.text for delta in stream] == [" from", " mlxrpc", ".", ""]
        assert stream.finished is not None
        assert (stream.finished.finish_reason, stream.finished.text) == ("stop_token", WHOLE)
    assert (stream.text, stream.token_ids) == (WHOLE, (*PIECES, END))


async def test_sync_and_async_streamed_and_whole_agree(server: FakeServer, client: mlxrpc.Client) -> None:
    options: Any = {"seed": 3, "return_token_ids": True}
    whole = client.generate("Hello", **options)
    with client.stream("Hello", **options) as stream:
        assert stream.result().proto == whole.proto
    async with mlxrpc.AsyncClient(server.target) as other:
        assert (await other.generate("Hello", **options)).proto == whole.proto
        async with other.stream("Hello", **options) as async_stream:
            assert (await async_stream.result()).proto == whole.proto
        assert await other.count_tokens("one two") == client.count_tokens("one two")
        ours, theirs = client.models(), await other.models()
        assert [model.proto for model in theirs] == [model.proto for model in ours]
    sent = server.inference.requests
    assert sent[0] == sent[2]
    assert sent[1] == sent[3]


def test_leaving_the_context_cancels_the_call(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.hold = True
    with client.stream("Hello") as stream:
        assert next(stream).text == "Hello"
        assert not fake.ended.is_set()
    assert fake.ended.wait(WAIT)


async def test_leaving_the_async_context_cancels_the_call(server: FakeServer) -> None:
    server.inference.hold = True
    async with mlxrpc.AsyncClient(server.target) as client, client.stream("Hello") as stream:
        assert (await anext(aiter(stream))).text == "Hello"
        assert not server.inference.ended.is_set()
    assert await asyncio.to_thread(server.inference.ended.wait, WAIT)


async def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    server.inference.hold = True
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            begun.set()

    async with mlxrpc.AsyncClient(server.target) as client:
        stream = client.stream("Hello")
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.inference.ended.wait, WAIT)


def test_reading_on_after_the_context_is_an_error(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.hold = True
    with client.stream("Hello") as stream:
        next(stream)
    with pytest.raises(mlxrpc.Cancelled):
        stream.result()


async def test_a_stream_that_was_cancelled_is_no_cancelled_task(server: FakeServer) -> None:
    server.inference.hold = True
    async with mlxrpc.AsyncClient(server.target) as client:
        async with client.stream("Hello") as stream:
            await anext(aiter(stream))
        with pytest.raises(mlxrpc.Cancelled):
            await stream.result()


async def test_a_stream_that_the_server_cancels_is_no_cancelled_task(server: FakeServer) -> None:
    server.inference.failures = [Failure(grpc.StatusCode.CANCELLED, "gone")] * 2
    async with mlxrpc.AsyncClient(server.target) as client:
        with pytest.raises(mlxrpc.Cancelled):
            await client.generate("Hello")
        async with client.stream("Hello") as stream:
            with pytest.raises(mlxrpc.Cancelled):
                await stream.result()


def test_a_failed_call_says_what_was_wrong(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.failures = [BAD]
    with pytest.raises(mlxrpc.InvalidArgument, match="two fields are wrong") as caught:
        client.generate("Hello", top_p=2, max_tokens=0)
    assert [each.field for each in caught.value.violations] == ["sampling.top_p", "stop.max_tokens"]
    assert caught.value.request_id == "request-1"
    with client.stream("Hello", model="nobody") as stream, pytest.raises(mlxrpc.NotFound) as missing:
        next(stream)
    assert missing.value.nearest == ("demo",)


async def test_an_async_call_fails_with_the_same_errors(server: FakeServer) -> None:
    server.inference.failures = [BAD]
    async with mlxrpc.AsyncClient(server.target) as client:
        with pytest.raises(mlxrpc.InvalidArgument) as caught:
            await client.generate("Hello")
        assert [each.field for each in caught.value.violations] == ["sampling.top_p", "stop.max_tokens"]
        async with client.stream("Hello", model="nobody") as stream:
            with pytest.raises(mlxrpc.NotFound, match=UNKNOWN_MODEL.message):
                await stream.result()


def test_a_stream_that_ends_well_without_finished_is_an_error(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.events = list(usual_events(pb.StreamGenerateRequest()))[:-1]
    with client.stream("Hello") as stream, pytest.raises(mlxrpc.IncompleteStream):
        stream.result()
    assert stream.text == WHOLE


async def test_an_async_stream_without_finished_is_an_error(server: FakeServer) -> None:
    server.inference.events = list(usual_events(pb.StreamGenerateRequest()))[:-1]
    async with mlxrpc.AsyncClient(server.target) as client, client.stream("Hello") as stream:
        with pytest.raises(mlxrpc.IncompleteStream):
            await stream.result()


def test_a_stream_that_was_cut_is_resumed_elsewhere(client: mlxrpc.Client) -> None:
    with client.stream("Hello", seed=3) as broken:
        text = next(broken).text + next(broken).text
    with FakeServer().running() as other, mlxrpc.Client(other.target) as second:
        with second.stream("Hello", seed=3, resume=broken.resumption()) as stream:
            rest = stream.result()
        sent = other.inference.requests[0].resume
    assert text + rest.text == WHOLE
    assert (*broken.token_ids, *rest.token_ids) == (*PIECES, END)
    assert (list(sent.token_ids), sent.seed, sent.fingerprint) == ([11, 12], 3, "print-1")


async def test_progress_of_the_prefill_is_told_where_wanted(server: FakeServer, client: mlxrpc.Client) -> None:
    seen: list[int] = []
    with client.stream("Hello", on_prefill=lambda progress: seen.append(progress.total_tokens)) as stream:
        stream.result()
    async with (
        mlxrpc.AsyncClient(server.target) as other,
        other.stream("Hello", on_prefill=lambda progress: seen.append(progress.total_tokens)) as twin,
    ):
        await twin.result()
    assert seen == [1, 1]


async def test_the_timeout_is_the_calls_deadline(server: FakeServer, fake: FakeInference) -> None:
    fake.hold = True
    with mlxrpc.Client(server.target, timeout=WAIT) as client:
        with pytest.raises(mlxrpc.DeadlineExceeded):
            client.generate("Hello", timeout=0.05)
        client.count_tokens("Hello")
    async with mlxrpc.AsyncClient(server.target, timeout=0.05) as other, other.stream("Hello") as stream:
        with pytest.raises(mlxrpc.DeadlineExceeded):
            await stream.result()
    assert fake.time_left[0] < 1 < fake.time_left[1]


def test_models_are_listed_over_all_pages(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.page_size = 1
    models = client.models()
    assert [(model.name, model.state) for model in models] == [("broken", "failed"), ("demo", "loaded")]
    assert (models.server.version, len(fake.requests)) == ("1.2.3", 2)


def test_models_are_filtered_by_the_server(client: mlxrpc.Client, fake: FakeInference) -> None:
    found = client.models("dem", states=["loaded"], max_size_bytes=10, capabilities=["tools"])
    assert [model.name for model in found] == ["demo"]
    wanted = fake.requests[0].filter
    assert (wanted.query, wanted.max_size_bytes, wanted.capabilities.tools) == ("dem", 10, True)


@pytest.mark.parametrize("filters", [{"states": ["lost"]}, {"capabilities": ["flight"]}])
def test_a_filter_that_does_not_exist_is_refused(client: mlxrpc.Client, filters: Any) -> None:
    with pytest.raises(ValueError, match="there is no"):
        client.models(**filters)


def test_a_request_of_the_contract_is_sent_as_it_is(client: mlxrpc.Client, fake: FakeInference) -> None:
    request = pb.GenerateRequest(input=pb.Input(text="Hello"), cache=pb.Cache(tenant="red"))
    client.generate(request=request)
    assert fake.requests == [request]
