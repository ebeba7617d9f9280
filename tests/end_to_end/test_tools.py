"""The built-in model calls tools and uses their answers; whatever it is forced to call has valid arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlxrpc
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from tests import noise_model
from tests.end_to_end.known import TOOL, WEATHER
from tests.end_to_end.refusals import refusal
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import (
    TIMEOUT,
    Received,
    counted,
    generate,
    resuming,
    said,
    stream,
    streaming,
)

FUNCTION: Any = TOOL["function"]
CITY = pb.Tool(
    name=FUNCTION["name"], description=FUNCTION["description"], parameters=json.dumps(FUNCTION["parameters"])
)
ADD_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD = pb.Tool(name="add", parameters=json.dumps(ADD_SCHEMA))
NOW = pb.Tool(name="now")
QUESTION = said(WEATHER[1])
ANSWER = '{"temperature": 7, "sky": "rainy"}'


def asking(messages: Sequence[pb.Message], *tools: pb.Tool, max_tokens: int = 160) -> pb.StreamGenerateRequest:
    request = streaming(pb.Conversation(messages=messages), max_tokens=max_tokens)
    request.sampling.temperature = 0.0
    request.tools.extend(tools)
    return request


def calls(answer: Received | pb.GenerateResponse) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


@pytest.mark.parametrize("tools", [(CITY,), (ADD, CITY, NOW)])
def test_a_tool_is_called_and_its_answer_used(pebble: RunningServer, tools: Sequence[pb.Tool]) -> None:
    received = stream(pebble, asking([QUESTION], *tools))
    assert (received.text, calls(received)) == ("", [("get_weather", {"city": "Oslo"})])
    assert received.end.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert not received.end.HasField("matched_stop")
    (call,) = received.tool_calls
    result = pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(text=ANSWER)], tool_call_id=call.id)
    called = pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call])
    answer = stream(pebble, asking([QUESTION, called, result], *tools))
    assert answer.text == "In Oslo it is 7 degrees and rainy."
    assert answer.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN


def test_the_client_library_carries_the_conversation(pebble: RunningServer) -> None:
    with mlxrpc.Client(pebble.address) as client:
        talk: list[Any] = [mlxrpc.user(WEATHER[1])]
        first = client.generate(talk, tools=[FUNCTION], temperature=0)
        (call,) = first.tool_calls
        talk += [mlxrpc.assistant(first.text, tool_calls=[call]), mlxrpc.tool_result(ANSWER, call.id)]
        assert client.generate(talk, tools=[FUNCTION], temperature=0).text == "In Oslo it is 7 degrees and rainy."


def test_thinking_comes_before_the_call(pebble: RunningServer) -> None:
    request = asking([QUESTION], CITY)
    request.template.enable_thinking = True
    for choice in (pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO), pb.ToolChoice(name="get_weather")):
        request.tool_choice.CopyFrom(choice)
        received = stream(pebble, request)
        assert received.reasoning == "The tool get_weather can do this."
        assert (received.text, calls(received)) == ("", [("get_weather", {"city": "Oslo"})])


def test_the_call_and_its_id_are_the_same_however_it_is_asked_for(pebble: RunningServer) -> None:
    request = asking([QUESTION], CITY)
    received, whole = stream(pebble, request), generate(pebble, request)
    assert calls(received) == calls(whole)
    assert len({call.id for call in (*received.tool_calls, *whole.tool_calls)}) == 2, "two answers share an id"


def test_a_stream_cut_anywhere_goes_on_with_the_same_call(pebble: RunningServer) -> None:
    request = asking([QUESTION], CITY)
    request.template.enable_thinking = True
    whole = stream(pebble, request)
    counts = (whole.end.usage.completion_tokens, whole.end.usage.reasoning_tokens)
    for cut in range(len(whole.deltas) + 1):
        sent = whole.deltas[:cut]
        token_ids = [token for delta in sent for token in delta.token_ids]
        rest = stream(pebble, resuming(request, whole.started, token_ids))
        assert token_ids + rest.token_ids == whole.token_ids
        assert "".join(delta.reasoning for delta in sent) + rest.reasoning == whole.reasoning
        assert [*(call for delta in sent for call in delta.tool_calls), *rest.tool_calls] == whole.tool_calls
        assert (rest.end.usage.completion_tokens, rest.end.usage.reasoning_tokens) == counts
        assert rest.end.finish_reason == pb.FINISH_REASON_TOOL_CALLS


def test_without_tools_what_looks_like_a_call_is_text(pebble: RunningServer) -> None:
    shown = asking([QUESTION], CITY)
    request = streaming(list(counted(pebble, shown).token_ids), max_tokens=160)
    request.sampling.temperature = 0.0
    received = stream(pebble, request)
    assert received.text == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert received.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN


def test_a_call_that_is_cut_is_text(pebble: RunningServer) -> None:
    received = stream(pebble, asking([QUESTION], CITY, max_tokens=9))
    assert received.text.startswith('<tool_call>\n{"name": "')
    assert not received.tool_calls
    assert received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS


def test_no_tool_is_shown_where_none_may_be_called(pebble: RunningServer) -> None:
    plain, hidden = asking([QUESTION]), asking([QUESTION], CITY)
    hidden.tool_choice.mode = pb.ToolChoice.MODE_NONE
    assert stream(pebble, hidden).started.prompt_tokens == stream(pebble, plain).started.prompt_tokens


def test_the_one_tool_that_is_named_is_called_once(pebble: RunningServer) -> None:
    request = asking([QUESTION], CITY, ADD)
    request.tool_choice.name = "add"
    received = stream(pebble, request)
    ((name, arguments),) = calls(received)
    assert name == "add"
    jsonschema.validate(arguments, ADD_SCHEMA)
    assert (received.text, received.end.finish_reason) == ("", pb.FINISH_REASON_TOOL_CALLS)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**64 - 1), named=st.booleans())
def test_even_noise_makes_calls_with_valid_arguments(server: RunningServer, seed: int, named: bool) -> None:
    """A model of random weights, which has no wish to call anything."""
    short = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 8}}, "required": ["word"]}
    schemas: dict[str, Any] = {
        "add": ADD_SCHEMA,
        "say": short | {"additionalProperties": False},
        "now": {"maxProperties": 0},
    }
    tools = [pb.Tool(name=name, parameters=json.dumps(schema)) for name, schema in schemas.items()]
    request = asking([QUESTION], *tools, max_tokens=400)
    request.sampling.seed = seed
    request.sampling.temperature = 1.0
    request.tool_choice.CopyFrom(
        pb.ToolChoice(name="say") if named else pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    )
    received = stream(server, request)
    for name, arguments in calls(received):
        jsonschema.validate(arguments, schemas[name])
    if received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS:
        return
    assert received.end.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert not received.text
    assert [name for name, _ in calls(received)] == ["say"] if named else received.tool_calls


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_path(pebble: RunningServer) -> None:
    request = asking([QUESTION], CITY, pb.Tool(name="f", parameters='{"not": {"type": "integer"}}'))
    assert stream(pebble, request).tool_calls, "the model may call what is not enforced"
    request.tool_choice.mode = pb.ToolChoice.MODE_REQUIRED
    refused = refusal(lambda: stream(pebble, request))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["tools[1].parameters"])
    request.tool_choice.name = "get_weather"
    assert calls(stream(pebble, request)) == [("get_weather", {"city": "Oslo"})]


def test_a_final_message_is_continued(pebble: RunningServer) -> None:
    begun = said("The capital of", pb.ROLE_ASSISTANT)
    request = asking([said("What is the capital of Norway?"), begun])
    request.input.conversation.continue_final_message = True
    assert counted(pebble, request).prompt.endswith("assistant\nThe capital of")
    for answer in (stream(pebble, request), generate(pebble, request)):
        assert answer.text == " Norway is Oslo."


def test_the_models_say_what_they_can(pebble: RunningServer, server: RunningServer) -> None:
    wanted = pb.ListModelsFilter(capabilities=model_pb2.Capabilities(tools=True, thinking=True))
    for running, name in ((pebble, "mlxrpc/demo"), (server, noise_model.NAME)):
        response = running.inference.ListModels(pb.ListModelsRequest(filter=wanted), timeout=TIMEOUT)
        assert [model.name for model in response.models] == [name]
        assert "tools" in response.server.features
