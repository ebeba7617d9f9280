"""The inference RPCs over a real connection; only the generations themselves are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from mlxrpc.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from mlxrpc_server import parse
from mlxrpc_server.calls import Calls
from mlxrpc_server.catalog import Catalog, ModelConfig
from mlxrpc_server.events import Delta, Event, PrefillProgress
from mlxrpc_server.generation import Service
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.servicer import InferenceService
from mlxrpc_server.tokenizer import Tokenizers
from mlxrpc_server.types import FinishReason, ModelName, RequestId, SamplingChoice, TextInput
from tests import noise_model
from tests.fakes import (
    ScriptedService,
    catalog,
    connected,
    finished,
    no_model,
    saying,
    started,
    two_deltas,
    until,
)

if TYPE_CHECKING:
    from mlxrpc.v1.inference_pb2_grpc import InferenceServiceAsyncStub  # exists in the type stubs alone

TEXT = pb.Input(text="x")


def registered(service: Service, calls: Calls | None = None) -> Callable[[grpc.aio.Server], None]:
    return lambda server: add_inference(InferenceService(service, calls or Calls()), server)


def stub(channel: grpc.aio.Channel) -> InferenceServiceAsyncStub:
    return InferenceServiceStub(channel)


async def generated(service: Service, **fields: Any) -> pb.GenerateResponse:
    async with connected(registered(service)) as channel:
        return await stub(channel).Generate(pb.GenerateRequest(input=TEXT, **fields))


async def streamed(service: Service, **fields: Any) -> list[pb.StreamGenerateResponse]:
    async with connected(registered(service)) as channel:
        call = stub(channel).StreamGenerate(pb.StreamGenerateRequest(input=TEXT, **fields))
        return [event async for event in call]


async def test_a_unary_response_is_the_whole_stream() -> None:
    response = await generated(ScriptedService(two_deltas))
    assert response.text == "Hello"
    assert (response.model, response.seed, response.fingerprint) == ("m", 7, "f")
    assert response.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert not response.HasField("matched_stop")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 2)
    assert [(token.id, token.bytes) for token in response.tokens] == [(1, b"Hel"), (2, b"lo"), (3, b"")]
    assert response.timings == pb.Timings(
        queue=Duration(nanos=250_000_000),
        model_load=Duration(nanos=125_000_000),
        prefill=Duration(nanos=500_000_000),
        time_to_first_token=Duration(nanos=500_000_000),
        decode=Duration(seconds=2),
        tokens_per_second=1.5,
    )


async def test_a_stream_tells_every_event() -> None:
    events: list[Event] = [
        started("ignored", create_time=1.5),
        PrefillProgress(2, 3),
        Delta("Hi", (1, 2)),
        finished(FinishReason.STOP_SEQUENCE, "!"),
    ]
    first, progress, delta, last = await streamed(ScriptedService(saying(*events)))
    assert first.started == pb.Started(
        response_id="ignored",
        model="m",
        seed=7,
        prompt_tokens=3,
        create_time=Timestamp(seconds=1, nanos=500_000_000),
        fingerprint="f",
    )
    assert (progress.prefill_progress.processed_tokens, progress.prefill_progress.total_tokens) == (2, 3)
    assert delta.delta == pb.Delta(text="Hi", token_ids=[1, 2])
    assert last.finished.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert last.finished.matched_stop.sequence == "!"


async def test_a_stop_token_is_told_by_its_id_also_when_it_is_0() -> None:
    last = (await streamed(ScriptedService(saying(started(), finished(FinishReason.STOP_TOKEN, 0)))))[-1]
    assert last.finished.matched_stop.WhichOneof("kind") == "token_id"


async def test_without_a_new_token_there_is_no_time_to_the_first() -> None:
    script = saying(started(), finished(first=None))
    assert not (await generated(ScriptedService(script))).timings.HasField("time_to_first_token")


def test_every_finish_reason_has_a_value_in_the_contract() -> None:
    names = {reason.name for reason in FinishReason}
    assert names <= {name.removeprefix("FINISH_REASON_") for name in dict(pb.FinishReason.items())}


async def test_the_request_reaches_the_service_as_it_was_meant() -> None:
    service = ScriptedService(two_deltas)
    await streamed(
        service, model="m", stream_options=pb.StreamOptions(prefill_progress=True), output=pb.Output(token_ids=True)
    )
    (request,) = service.requests
    assert (request.model, request.prefill_progress, request.token_details) == ("m", True, True)


async def test_a_create_time_comes_back_as_the_same_float() -> None:
    """A resumed stream renders its template with it, so not even its last bit may move."""
    create_time = 1_793_000_000.123_456_7
    (first, *_) = await streamed(ScriptedService(saying(started(create_time=create_time), finished())))
    resume = pb.Resume(seed=1, fingerprint="f", create_time=first.started.create_time)
    request = parse.generation(pb.GenerateRequest(input=TEXT, resume=resume), RequestId("id"))
    assert request.resume is not None
    assert request.resume.create_time == create_time


async def test_a_large_request_is_read_beside_the_loop() -> None:
    parts = [pb.Part(text="")] * 500_000
    conversation = pb.Conversation(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)])
    request = pb.GenerateRequest(input=pb.Input(conversation=conversation))
    service, calls = ScriptedService(two_deltas), Calls()
    async with connected(registered(service, calls)) as channel:
        large = asyncio.ensure_future(stub(channel).Generate(request))
        await until(lambda: calls.open == 1)
        assert not service.requests
        await stub(channel).Generate(pb.GenerateRequest(input=TEXT))
        await large
    assert service.requests[0].input == TextInput("x")


# CountTokens: a real tokenizer, and no model at all.


@pytest.fixture
async def counting() -> AsyncIterator[Service]:
    config = ModelConfig(
        name=ModelName("noise"), source=noise_model.folder(), aliases=("d",), system_prompt="Be brief."
    )
    tokenizers = Tokenizers()
    yield Service(Catalog([config]), tokenizers, Models(no_model, Limits()))
    await tokenizers.close()


INPUTS = [
    'text: "안녕 👋"',
    "token_ids { ids: [5, 6, 7] }",
    'conversation { messages { role: ROLE_USER parts { text: "안녕" } } }',
    'conversation { messages { role: ROLE_SYSTEM parts { text: "Hm" } } messages { role: ROLE_USER parts { text: "x" } } }',
]


async def counted(service: Service, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
    async with connected(registered(service)) as channel:
        return await stub(channel).CountTokens(request)


@pytest.mark.parametrize("given", INPUTS)
async def test_a_count_is_what_generate_would_feed(counting: Service, given: str) -> None:
    request = pb.CountTokensRequest(
        input=text_format.Parse(given, pb.Input()), return_token_ids=True, return_prompt=True
    )
    response = await counted(counting, request)
    plan = await counting.plan(parse.generation(pb.GenerateRequest(input=request.input), RequestId("id")))
    assert list(response.token_ids) == list(plan.prompt)
    assert response.token_count == len(plan.prompt)
    assert response.fits
    assert response.context_length == plan.entry.context_length


async def test_the_counted_prompt_has_the_models_system_prompt(counting: Service) -> None:
    given = text_format.Parse(INPUTS[2], pb.Input())
    response = await counted(counting, pb.CountTokensRequest(model="d", input=given, return_prompt=True))
    assert "Be brief." in response.prompt
    assert not response.token_ids


async def test_a_count_says_that_a_prompt_does_not_fit(counting: Service) -> None:
    context = counting.catalog.find("").context_length
    for length, fits in ((context - 1, True), (context, False)):
        given = pb.Input(token_ids=pb.TokenIds(ids=[1] * length))
        response = await counted(counting, pb.CountTokensRequest(input=given))
        assert (response.token_count, response.fits) == (length, fits)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('input { text: "" }', grpc.StatusCode.INVALID_ARGUMENT),
        ("input { token_ids { ids: 4294967295 } }", grpc.StatusCode.INVALID_ARGUMENT),
        ('model: "demi" input { text: "x" }', grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_count_makes_generates_checks(counting: Service, text: str, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await counted(counting, text_format.Parse(text, pb.CountTokensRequest()))
    assert failed.value.code() is code


async def test_a_broken_tokenizer_is_a_failed_precondition(tmp_path: Path) -> None:
    service = ScriptedService(two_deltas, catalog(tmp_path, "m"))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await counted(service, pb.CountTokensRequest(input=TEXT))
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# ListModels: real files, nothing loaded.


async def listed(service: Service, **fields: Any) -> pb.ListModelsResponse:
    async with connected(registered(service)) as channel:
        return await stub(channel).ListModels(pb.ListModelsRequest(**fields))


async def test_models_are_told_by_their_files_and_their_configuration(tmp_path: Path) -> None:
    models = catalog(
        tmp_path,
        "tiny",
        aliases=("t",),
        display_name="Tiny",
        description="Says little.",
        max_output_tokens=9,
        defaults=SamplingChoice(temperature=0.5),
        system_prompt="Be brief.",
    )
    (tmp_path / "tiny" / "chat_template.jinja").write_text("")
    response = await listed(ScriptedService(two_deltas, models))
    assert list(response.models) == [
        model_pb2.Model(
            name="tiny",
            aliases=["t"],
            display_name="Tiny",
            description="Says little.",
            state=model_pb2.MODEL_STATE_AVAILABLE,
            architecture="llama",
            context_length=128,
            max_output_tokens=9,
            parameter_count=64,
            weights_bytes=256,
            default_sampling=model_pb2.Sampling(temperature=0.5),
            default_system_prompt="Be brief.",
            capabilities=model_pb2.Capabilities(chat_template=True, constraints=True, batching=True),
        )
    ]
    assert response.server.name == "mlxrpc"
    assert list(response.server.features) == sorted(response.server.features)


async def test_a_model_whose_files_cannot_be_read_says_so(tmp_path: Path) -> None:
    models = Catalog([ModelConfig(name=ModelName("lost"), source=tmp_path / "nowhere")])
    (model,) = (await listed(ScriptedService(two_deltas, models))).models
    assert model.state == model_pb2.MODEL_STATE_FAILED
    assert "config.json" in model.state_reason
    assert not model.HasField("context_length")
    assert not model.HasField("weights_bytes")


@pytest.mark.parametrize(
    ("name", "content", "brings"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("chat_template.json", '{"chat_template": "x"}', False),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "[]", False),
        ("tokenizer_config.json", "{", False),
        ("README.md", "", False),
    ],
)
async def test_a_chat_template_is_found_where_tokenizers_keep_it(
    tmp_path: Path, name: str, content: str, brings: bool
) -> None:
    models = catalog(tmp_path, "m")
    (tmp_path / "m" / name).write_text(content)
    (model,) = (await listed(ScriptedService(two_deltas, models))).models
    assert model.capabilities.chat_template is brings


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    service = ScriptedService(two_deltas, catalog(tmp_path, "c", "a", "e", "b", "d"))
    names: list[str] = []
    token = ""
    while True:
        page = await listed(service, page_size=2, page_token=token)
        names += [model.name for model in page.models]
        if not (token := page.next_page_token):
            break
    assert names == ["a", "b", "c", "d", "e"]


async def test_another_server_goes_on_with_a_page(tmp_path: Path) -> None:
    one = ScriptedService(two_deltas, catalog(tmp_path / "one", "a", "b"))
    other = ScriptedService(two_deltas, catalog(tmp_path / "other", "a", "b"))
    token = (await listed(one, page_size=1)).next_page_token
    assert [model.name for model in (await listed(other, page_token=token)).models] == ["b"]


@pytest.mark.parametrize("change", ["filter", "token"])
async def test_a_page_token_holds_for_its_own_filter_and_as_it_was(tmp_path: Path, change: str) -> None:
    service = ScriptedService(two_deltas, catalog(tmp_path, "a", "b"))
    token = (await listed(service, page_size=1)).next_page_token
    fields: dict[str, Any] = {"page_token": token}
    if change == "filter":
        fields["filter"] = pb.ListModelsFilter(query="b")
    else:
        fields["page_token"] = token.swapcase()
    with pytest.raises(grpc.aio.AioRpcError, match="page_token") as failed:
        await listed(service, **fields)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_filter_leaves_models_out(tmp_path: Path) -> None:
    service = ScriptedService(two_deltas, catalog(tmp_path, "qwen3", "llama"))
    response = await listed(service, filter=pb.ListModelsFilter(query="QWEN"))
    assert [model.name for model in response.models] == ["qwen3"]
