"""What a caller writes, and what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

import mlxrpc
from mlxrpc import _requests
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.model_pb2 import Sampling


def conversation(*messages: pb.Message) -> pb.Input:
    return pb.Input(conversation=pb.Conversation(messages=messages))


def message(role: pb.Role.ValueType, *texts: str, **fields: Any) -> pb.Message:
    return pb.Message(role=role, parts=[pb.Part(text=text) for text in texts], **fields)


def generate(prompt: Any, **options: Any) -> pb.GenerateRequest:
    return _requests.build(pb.GenerateRequest, prompt, options)


HELLO = message(pb.ROLE_USER, "Hello")
CALL = pb.ToolCall(id="1", name="add", arguments='{"a": 1}')


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello", conversation(HELLO)),
        (mlxrpc.Text("Hello"), pb.Input(text="Hello")),
        (mlxrpc.Tokens([1, 2]), pb.Input(token_ids=pb.TokenIds(ids=[1, 2]))),
        (mlxrpc.user("Hello"), conversation(HELLO)),
        ({"role": "user", "content": "Hello"}, conversation(HELLO)),
        ([mlxrpc.system("Be brief."), HELLO], conversation(message(pb.ROLE_SYSTEM, "Be brief."), HELLO)),
        ([{"role": "user", "content": ["Hel", "lo"]}], conversation(message(pb.ROLE_USER, "Hel", "lo"))),
        ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], conversation(HELLO)),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "name": "add", "arguments": {"a": 1}}]}],
            conversation(message(pb.ROLE_ASSISTANT, tool_calls=[CALL])),
        ),
        (mlxrpc.assistant(tool_calls=[CALL]), conversation(message(pb.ROLE_ASSISTANT, tool_calls=[CALL]))),
        (mlxrpc.tool_result("2", "1"), conversation(message(pb.ROLE_TOOL, "2", tool_call_id="1"))),
        (pb.Conversation(messages=[HELLO]), conversation(HELLO)),
        (pb.Input(text="Hello"), pb.Input(text="Hello")),
    ],
)
def test_a_prompt_becomes_the_contracts_input(prompt: Any, expected: pb.Input) -> None:
    assert generate(prompt).input == expected


def test_an_image_is_a_part_among_texts() -> None:
    by_function = generate(mlxrpc.user(["Look: ", mlxrpc.image(b"...", "image/png")]))
    image = {"type": "image", "data": b"...", "mime_type": "image/png"}
    assert generate({"role": "user", "content": ["Look: ", image]}) == by_function
    assert by_function.input.conversation.messages[0].parts[1].image.mime_type == "image/png"


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ([1, 2], TypeError, "wrap token ids in mlxrpc.Tokens"),
        (["Hello"], TypeError, "mlxrpc.user"),
        (b"Hello", TypeError, "not bytes"),
        (None, TypeError, "a prompt is needed"),
        ({"role": "bot", "content": "Hello"}, ValueError, "one of system, user, assistant, tool, not 'bot'"),
        ({"role": "user", "contnt": "Hello"}, ValueError, "no 'contnt'"),
        ({"role": "user", "content": [{"type": "audio"}]}, ValueError, "a part is"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(prompt: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        generate(prompt)


def test_keywords_reach_their_fields_and_zero_is_not_absent() -> None:
    request = generate("Hello", temperature=0, seed=0, top_k=5, stop="\n", stop_token_ids=(3,), logit_bias={4: -100})
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("seed")
    assert not request.sampling.HasField("top_p")
    assert (request.sampling.top_k, dict(request.sampling.logit_bias)) == (5, {4: -100.0})
    assert (list(request.stop.sequences), list(request.stop.token_ids)) == (["\n"], [3])


def test_none_and_absent_are_the_same() -> None:
    nothing = dict.fromkeys(_requests.STREAM)
    built = _requests.build(pb.StreamGenerateRequest, "Hello", nothing)
    assert built == pb.StreamGenerateRequest(input=conversation(HELLO))


def test_json_is_given_as_text_or_as_what_it_says() -> None:
    schema = {"type": "object", "title": "한국어"}
    tools = [{"name": "add", "parameters": schema}]
    request = generate("Hello", json_schema=schema, tools=tools, template_variables={"date": "today"})
    assert request.constraint.json_schema == '{"type": "object", "title": "한국어"}'
    assert request.tools[0].parameters == request.constraint.json_schema
    assert request.template.variables == '{"date": "today"}'
    assert generate("Hello", json_schema=request.constraint.json_schema).constraint == request.constraint


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
        ("none", pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)),
        ("required", pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        ("add", pb.ToolChoice(name="add")),
        (pb.ToolChoice(name="auto"), pb.ToolChoice(name="auto")),
    ],
)
def test_tool_choice_is_a_mode_or_a_tools_name(choice: Any, expected: pb.ToolChoice) -> None:
    assert generate("Hello", tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"temprature": 1}, TypeError, "did you mean 'temperature'"),
        ({"min_delta_tokens": 1}, TypeError, "unexpected keyword argument 'min_delta_tokens'"),
        ({"top_k": -1}, ValueError, "top_k cannot be -1"),
        ({"temperature": "hot"}, TypeError, "temperature cannot be 'hot'"),
        ({"choices": "abc"}, TypeError, "choices cannot be 'abc'"),
        ({"reasoning": "loud"}, ValueError, "separate, inline"),
        ({"resume": 3}, TypeError, "resumption"),
        ({"tools": [{"nam": "add"}]}, ValueError, "a tool has no 'nam'"),
        ({"regex": "a", "grammar": "b"}, ValueError, "grammar and regex exclude each other"),
    ],
)
def test_a_wrong_keyword_is_named_as_it_was_written(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        generate("Hello", **options)


def test_a_request_is_copied_and_the_keywords_win() -> None:
    given = pb.GenerateRequest(model="a", input=pb.Input(text="x"), sampling=Sampling(temperature=1, top_p=0.5))
    built = _requests.build(pb.GenerateRequest, "Hello", {"temperature": 0.25}, given)
    assert (built.model, built.input) == ("a", conversation(HELLO))
    assert (built.sampling.temperature, built.sampling.top_p) == (0.25, 0.5)
    assert (given.sampling.temperature, given.input.text) == (1, "x")


def test_continuing_the_final_message_needs_a_conversation() -> None:
    begun = [mlxrpc.user("Hello"), mlxrpc.assistant("Well,")]
    assert generate(begun, continue_final_message=True).input.conversation.continue_final_message
    with pytest.raises(ValueError, match="goes with a conversation"):
        generate(mlxrpc.Text("Hello"), continue_final_message=True)


@pytest.mark.parametrize(
    ("options", "table"),
    [
        (mlxrpc.GenerateOptions, _requests.GENERATE),
        (mlxrpc.StreamOptions, _requests.STREAM),
        (mlxrpc.CountOptions, _requests.COUNT),
    ],
)
def test_the_typed_keywords_are_those_that_work(options: Any, table: dict[str, Any]) -> None:
    assert set(options.__annotations__) == set(table)


@pytest.mark.parametrize("kind", _requests.TABLES)
def test_every_field_of_the_contract_has_a_keyword(kind: Any) -> None:
    reached = {field.path for field in _requests.TABLES[kind].values()} | {"input"}
    missing = {path for path in fields(kind.DESCRIPTOR) if not any(f"{path}.".startswith(f"{r}.") for r in reached)}
    assert missing == set()


def fields(descriptor: Descriptor, above: str = "") -> Iterator[str]:
    """The paths of all fields that are not messages, as deep as messages of ours go."""
    for field in descriptor.fields:
        inside = field.message_type
        if (
            inside is None
            or inside.full_name.startswith("google.")
            or inside.GetOptions().map_entry
            or not inside.fields
        ):
            yield f"{above}{field.name}"
        else:
            yield from fields(inside, f"{above}{field.name}.")
