"""What stands around a generation: request ids, reflection, message sizes, the count of a prompt, the list of models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from tests import noise_model
from tests.end_to_end.asking import detail
from tests.end_to_end.refusals import refusal
from tests.end_to_end.running import RunningServer, running_server
from tests.end_to_end.streams import MODEL, TIMEOUT, generate, prompt, said, stream, streaming, unary

KEY = "x-request-id"
SEVERAL = """
preload = []
{listed}
[[models]]
name = "plain"
source = "{plain}"
description = "The noise model without a chat template"

[[models]]
name = "broken"
source = "{broken}"
"""
LISTED = """
[[models]]
name = "{name}"
source = "{noise}"
aliases = ["{name}-also"]
display_name = "Number {number}"
description = "{description}"
"""
NAMES = ["kiwi", "apple", "fig", "banana", "grape"]


@pytest.fixture(scope="module")
def unloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Many models, and none of them is ever loaded."""
    folder = tmp_path_factory.mktemp("several")
    config = folder / "mlxrpc.toml"
    config.write_text(
        SEVERAL.format(
            listed="".join(map(listed, range(len(NAMES)))),
            plain=without_template(folder / "plain"),
            broken=broken(folder / "broken"),
        )
    )
    with running_server("--config", str(config)) as running:
        yield running
        assert not running.info().models, "a model was loaded"


def listed(number: int) -> str:
    description = "A round fruit" if number % 2 else "A long FRUIT"
    return LISTED.format(name=NAMES[number], number=number, noise=noise_model.folder(), description=description)


def without_template(folder: Path) -> Path:
    folder.mkdir()
    for file in noise_model.folder().iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    del content["chat_template"]
    settings.unlink()
    settings.write_text(json.dumps(content), encoding="utf-8")
    return folder


def broken(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{")
    return folder


# Request ids


def echoed(call: Any) -> str:
    (value,) = [value for key, value in call.trailing_metadata() if key == KEY]
    return str(value)


def ids_of_every_ending(server: RunningServer, *given: tuple[str, str]) -> list[str]:
    """Of a unary answer, of a stream, and of errors of both."""
    good, bad = streaming("Hi", max_tokens=1), streaming("", max_tokens=1)
    _, call = server.inference.Generate.with_call(unary(good), metadata=given, timeout=TIMEOUT)
    events = server.inference.StreamGenerate(good, metadata=given, timeout=TIMEOUT)
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "finished"]
    errors = [
        refusal(lambda: server.inference.Generate(unary(bad), metadata=given, timeout=TIMEOUT)).error,
        refusal(lambda: list(server.inference.StreamGenerate(bad, metadata=given, timeout=TIMEOUT))).error,
    ]
    return [echoed(ended) for ended in (call, events, *errors)]


@pytest.mark.parametrize("given", ["a", "id-7/of:many~", "x" * 128])
def test_a_request_id_is_echoed(server: RunningServer, given: str) -> None:
    assert set(ids_of_every_ending(server, (KEY, given))) == {given}
    assert given in {line.get("request_id") for line in server.log_lines()}


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129])
def test_an_id_is_made_where_none_or_a_bad_one_is_given(server: RunningServer, given: str | None) -> None:
    made = ids_of_every_ending(server, *([] if given is None else [(KEY, given)]))
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[!-~]{8,128}", value) for value in made)
    assert set(made) <= {line.get("request_id") for line in server.log_lines()}


# Reflection and sizes


def test_reflection_lists_the_services(server: RunningServer) -> None:
    common = "grpc.reflection.v1alpha.ServerReflection"
    known = ProtoReflectionDescriptorDatabase(server.channel)
    assert set(known.get_services()) == {"mlxrpc.v1.InferenceService", "grpc.health.v1.Health", common}
    file = known.FindFileContainingSymbol("mlxrpc.v1.InferenceService")
    assert file.name == "mlxrpc/v1/inference.proto"
    admin = ProtoReflectionDescriptorDatabase(server.admin_channel)
    assert set(admin.get_services()) == {"mlxrpc.v1.ModelAdminService", common}


@pytest.fixture(scope="module")
def unlimited(server: RunningServer) -> Iterator[Any]:
    """A client that would send anything."""
    with grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel:
        yield InferenceServiceStub(channel)


def test_a_prompt_above_grpcs_usual_limit_is_counted(unlimited: Any) -> None:
    request = pb.CountTokensRequest(input=prompt([1000] * 2_500_000))
    assert request.ByteSize() > 4 * 1024 * 1024
    counted = unlimited.CountTokens(request, timeout=TIMEOUT)
    assert counted.token_count == 2_500_000
    assert not counted.fits


def test_a_message_that_is_too_large_is_refused_by_grpc(unlimited: Any, server: RunningServer) -> None:
    request = pb.CountTokensRequest(input=prompt("x" * (64 * 1024 * 1024)))
    with pytest.raises(grpc.RpcError) as error:
        unlimited.CountTokens(request, timeout=TIMEOUT)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert generate(server, streaming("Hi", max_tokens=1)).usage.completion_tokens == 1


# Counting

TALK = pb.Conversation(messages=[said("안녕하세요 😀"), said("Hi", pb.ROLE_ASSISTANT), said("e\u0301?")])
TOLD = pb.Conversation(messages=[said("Be kind.", pb.ROLE_SYSTEM), said("Hi"), said("42", pb.ROLE_TOOL)])
PROMPTS = [
    prompt("Hello"),
    prompt("안녕하세요 e\u0301 👩‍💻"),
    prompt("<|im_start|>user\n<|im_end|>"),
    prompt([5, 6, 7, 1275]),
    prompt(TALK),
    prompt(TOLD),
]


@pytest.mark.parametrize("model", [MODEL, "dated"])
@pytest.mark.parametrize("given", PROMPTS, ids=["text", "unicode", "special", "ids", "talk", "told"])
def test_the_count_is_what_generating_reports(configured: RunningServer, given: pb.Input, model: str) -> None:
    request = streaming("", max_tokens=1, model=model)
    request.input.CopyFrom(given)
    count = pb.CountTokensRequest(model=model, input=given, return_token_ids=True)
    counted = configured.inference.CountTokens(count, timeout=TIMEOUT)
    assert stream(configured, request).started.prompt_tokens == counted.token_count
    assert generate(configured, request).usage.prompt_tokens == counted.token_count == len(counted.token_ids)
    assert counted.context_length == 4096
    assert counted.fits


def test_a_models_own_system_prompt_counts(configured: RunningServer) -> None:
    request = streaming(pb.Conversation(messages=[said("Hi")]), max_tokens=1, model="small")
    count = pb.CountTokensRequest(model="small", input=request.input, return_prompt=True)
    counted = configured.inference.CountTokens(count, timeout=TIMEOUT)
    assert "Be brief." in counted.prompt
    assert stream(configured, request).started.prompt_tokens == counted.token_count


def test_the_template_counts(server: RunningServer) -> None:
    request = streaming(TALK, max_tokens=1)
    request.template.enable_thinking = False
    count = pb.CountTokensRequest(input=request.input, template=request.template)
    counted = server.inference.CountTokens(count, timeout=TIMEOUT).token_count
    assert counted == stream(server, request).started.prompt_tokens
    assert counted > stream(server, streaming(TALK, max_tokens=1)).started.prompt_tokens


def test_what_does_not_fit_is_counted(configured: RunningServer) -> None:
    for tokens, fits in ((47, True), (48, False), (5000, False)):
        request = pb.CountTokensRequest(model="small", input=prompt([5] * tokens))
        counted = configured.inference.CountTokens(request, timeout=TIMEOUT)
        assert (counted.token_count, counted.context_length, counted.fits) == (tokens, 48, fits)


@pytest.mark.parametrize("given", PROMPTS, ids=["text", "unicode", "special", "ids", "talk", "told"])
def test_counting_needs_no_loaded_model(unloaded: RunningServer, server: RunningServer, given: pb.Input) -> None:
    count = pb.CountTokensRequest(model="kiwi", input=given, return_token_ids=True, return_prompt=True)
    counted = unloaded.inference.CountTokens(count, timeout=TIMEOUT)
    count.model = ""
    assert counted == server.inference.CountTokens(count, timeout=TIMEOUT)
    assert not unloaded.info().models
    assert unloaded.info().cached_tokenizers


def test_ids_and_prompt_are_returned_where_asked_for(unloaded: RunningServer) -> None:
    counted = unloaded.inference.CountTokens(pb.CountTokensRequest(input=prompt(TALK)), timeout=TIMEOUT)
    assert counted.token_count
    assert not counted.token_ids
    assert not counted.prompt


def test_a_model_without_a_template_talks_chatml(unloaded: RunningServer) -> None:
    request = pb.CountTokensRequest(model="plain", input=prompt(TOLD), return_prompt=True)
    assert unloaded.inference.CountTokens(request, timeout=TIMEOUT).prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_known_model_that_cannot_be_loaded_says_why(unloaded: RunningServer) -> None:
    count = pb.CountTokensRequest(model="broken", input=prompt("Hi"))
    for answer in (
        refusal(lambda: stream(unloaded, streaming("Hi", model="broken"))),
        refusal(lambda: unloaded.inference.CountTokens(count, timeout=TIMEOUT)),
    ):
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_UNUSABLE")
        (violation,) = detail(answer.error, error_details_pb2.PreconditionFailure).violations
        assert violation.subject == "broken"
        assert violation.description


# Listing


def page(server: RunningServer, **asked: Any) -> pb.ListModelsResponse:
    return server.inference.ListModels(pb.ListModelsRequest(**asked), timeout=TIMEOUT)


def names(server: RunningServer, **wanted: Any) -> list[str]:
    return [model.name for model in page(server, filter=pb.ListModelsFilter(**wanted)).models]


ALL = sorted([*NAMES, "plain", "broken"])


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 0, 1000, 2**31 - 1])
def test_pages_hold_every_model_once_and_in_order(unloaded: RunningServer, size: int) -> None:
    found: list[str] = []
    token = ""
    while token or not found:
        answer = page(unloaded, page_size=size, page_token=token)
        assert 1 <= len(answer.models) <= (size or 50)
        found += [model.name for model in answer.models]
        token = answer.next_page_token
    assert found == ALL


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ({}, ALL),
        ({"query": "fruit LONG"}, ["fig", "grape", "kiwi"]),
        ({"query": "number"}, sorted(NAMES)),
        ({"query": "kiwi-also"}, ["kiwi"]),
        ({"query": "qwen3 round"}, ["apple", "banana"]),
        ({"query": "nothing of that kind"}, []),
        ({"states": [model_pb2.MODEL_STATE_AVAILABLE]}, sorted([*NAMES, "plain"])),
        ({"states": [model_pb2.MODEL_STATE_LOADED, model_pb2.MODEL_STATE_FAILED]}, ["broken"]),
        ({"states": [model_pb2.MODEL_STATE_LOADED]}, []),
        ({"max_size_bytes": 0}, []),
        ({"max_size_bytes": 2**40}, sorted([*NAMES, "plain"])),
        ({"capabilities": model_pb2.Capabilities(chat_template=True)}, sorted(NAMES)),
        ({"capabilities": model_pb2.Capabilities(vision=True)}, []),
        ({"query": "fruit", "capabilities": model_pb2.Capabilities(chat_template=True)}, sorted(NAMES)),
    ],
    ids=str,
)
def test_a_filter_takes_what_fulfils_all_of_it(
    unloaded: RunningServer, wanted: dict[str, Any], expected: list[str]
) -> None:
    assert names(unloaded, **wanted) == expected


def test_a_filter_goes_through_the_pages(unloaded: RunningServer) -> None:
    wanted = pb.ListModelsFilter(query="long")
    first = page(unloaded, page_size=2, filter=wanted)
    second = page(unloaded, page_size=2, filter=wanted, page_token=first.next_page_token)
    assert [model.name for answer in (first, second) for model in answer.models] == ["fig", "grape", "kiwi"]
    assert not second.next_page_token


def test_a_page_token_is_good_for_its_own_filter_alone(unloaded: RunningServer) -> None:
    wanted = pb.ListModelsFilter(query="long")
    token = page(unloaded, page_size=1, filter=wanted).next_page_token
    for other in (pb.ListModelsFilter(), pb.ListModelsFilter(query="round")):
        answer = refusal(lambda other=other: page(unloaded, filter=other, page_token=token))  # type: ignore[misc]
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])
    for tampered in (token[:-1], token + "A", token.swapcase(), "x", "가"):
        answer = refusal(lambda t=tampered: page(unloaded, filter=wanted, page_token=t))  # type: ignore[misc]
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


def test_a_wrong_question_about_models_is_refused(unloaded: RunningServer) -> None:
    wanted = pb.ListModelsFilter(states=[model_pb2.MODEL_STATE_UNSPECIFIED], query="q" * 257)
    answer = refusal(lambda: page(unloaded, page_size=-1, filter=wanted))
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert answer.fields == ["filter.query", "filter.states[0]", "page_size"]


def test_a_model_is_listed_with_what_is_known_of_it(unloaded: RunningServer, server: RunningServer) -> None:
    (known,) = page(server).models
    assert (known.name, known.state, known.architecture) == (MODEL, model_pb2.MODEL_STATE_LOADED, "qwen3")
    assert known.memory_bytes >= known.weights_bytes > 4 * known.parameter_count - 1 > 0
    assert known.HasField("load_duration")
    assert known.default_sampling.temperature == 1.0
    answer = page(unloaded)
    models = {model.name: model for model in answer.models}
    assert (answer.server.name, bool(answer.server.version)) == ("mlxrpc", True)
    kiwi, broken = models["kiwi"], models["broken"]
    assert (list(kiwi.aliases), kiwi.display_name) == (["kiwi-also"], "Number 0")
    assert (kiwi.context_length, kiwi.weights_bytes) == (4096, known.weights_bytes)
    assert not kiwi.HasField("memory_bytes")
    assert not kiwi.HasField("load_duration")
    assert not broken.HasField("context_length")
    assert not broken.HasField("weights_bytes")
    assert not broken.architecture
    assert (broken.state, bool(broken.state_reason)) == (model_pb2.MODEL_STATE_FAILED, True)


def test_a_models_own_settings_are_listed(configured: RunningServer) -> None:
    (small,) = (model for model in page(configured).models if model.name == "small")
    assert (small.context_length, small.max_output_tokens, *small.aliases) == (48, 8, "tiny")
    assert small.default_system_prompt == "Be brief."
    assert small.default_sampling == model_pb2.Sampling(temperature=0.0)
