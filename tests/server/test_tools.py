"""Tools on their way into a prompt, and calls on their way out of what models write."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server import demo, parse
from mlxrpc_server.errors import InvalidRequest
from mlxrpc_server.sections import Markers
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.tools import CallFormat, CallReader
from mlxrpc_server.types import Conversation, Message, RequestId, Tool, ToolCall, ToolChoice
from tests import noise_model
from tests.server.tokenizers import folder_with

CITY = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})
NOW = Tool("now", "", {})
TOOLS = (CITY, ADD, NOW)

FAMILIES = sorted(
    module.name for module in pkgutil.iter_modules(importlib.import_module("mlx_lm.tool_parsers").__path__)
)

WEATHER = ("get_weather", {"city": "Oslo"})
SUM = ("add", {"a": 2, "b": 3})
WRITTEN: list[tuple[str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("json_tools", '\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n', [WEATHER]),
    ("json_tools", '{"name": "now"}', [("now", {})]),
    ("json_tools", '{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}', [SUM]),
    ("function_gemma", "call:get_weather{city:<escape>Oslo<escape>}", [WEATHER]),
    ("gemma4", 'call:get_weather{city:<|"|>Oslo<|"|>}call:add{a:2,b:3}', [WEATHER, SUM]),
    ("glm47", "get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n", [WEATHER]),
    ("glm47", "add<arg_key>a</arg_key><arg_value>2</arg_value><arg_key>b</arg_key><arg_value>3</arg_value>", [SUM]),
    ("laguna", "now", [("now", {})]),
    (
        "kimi_k2",
        '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 2, "b": 3}<|tool_call_end|>',
        [SUM],
    ),
    (
        "kimi_k3",
        (
            '<|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Oslo'
            "<|close|>argument<|sep|><|close|>call<|sep|>"
        ),
        [WEATHER],
    ),
    (
        "longcat",
        "get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Oslo</longcat_arg_value>",
        [WEATHER],
    ),
    ("minicpm5", '"add"><param name="a">2</param><param name="b">3</param>', [SUM]),
    (
        "minimax_m2",
        (
            '\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n<invoke name="add">\n'
            '<parameter name="a">2</parameter><parameter name="b">3</parameter></invoke>'
        ),
        [WEATHER, SUM],
    ),
    ("mistral", '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]', [WEATHER]),
    ("mistral", 'get_weather[ARGS]{"city": "Oslo"}add[ARGS]{"a": 2, "b": 3}', [WEATHER, SUM]),
    (
        "muse_spark",
        '<atem:invoke name="get_weather"><atem:parameter name="city">Oslo</atem:parameter></atem:invoke>',
        [WEATHER],
    ),
    ("pythonic", '[get_weather(city="Oslo"), add(a=2, b=3)]', [WEATHER, SUM]),
    ("qwen3_coder", "\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>", [WEATHER]),
    ("qwen3_coder", "<function=add><parameter=a>2</parameter><parameter=b>3</parameter></function>", [SUM]),
]


def reader(family: str, origin: str = "7 1.5") -> CallReader:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
    markers = Markers(module.tool_call_start, module.tool_call_end)
    return CallReader(CallFormat(family, markers, module.parse_tool_call), TOOLS, origin)


def said(calls: tuple[ToolCall, ...]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("family", "body", "expected"), WRITTEN)
def test_each_family_is_read_as_it_writes(family: str, body: str, expected: list[tuple[str, dict[str, Any]]]) -> None:
    assert said(reader(family).read(body)) == expected


def test_every_family_has_an_example() -> None:
    assert sorted({family for family, _, _ in WRITTEN}) == FAMILIES


@pytest.mark.parametrize(
    "body",
    [
        "",
        "nothing",
        '{"name": "get_weather"',
        '{"name": "unheard_of", "arguments": {}}',
        '{"arguments": {}}',
        '{"name": ["get_weather"], "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1e999}}',
        '[{"name": "now"}, {"name": "unheard_of"}]',
        "[" * 100_000,
        "7",
    ],
)
def test_what_is_no_call_of_the_tools_is_none(body: str) -> None:
    assert reader("json_tools").read(body) == ()


PIECES = st.sampled_from([
    *("get_weather", "add", "now", "{", "}", "[", "]", "(", ")", '"', ":", "=", "<", ">", ",", "a", "1", "\n", "\\ud800", "é"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<escape>", "call:", "<invoke ", "</invoke>", "name="),
    *("<function=", "</function>", "<parameter=", "</parameter>", "[ARGS]", '{"name": "add", "arguments": ', "{}", "null"),
    *(body for _, body, _ in WRITTEN),
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FAMILIES), st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40))
def test_no_text_at_all_makes_a_parser_fail_or_give_what_cannot_be_sent(family: str, body: str) -> None:
    for call in reader(family).read(body):
        assert call.name in {tool.name for tool in TOOLS}
        assert isinstance(json.loads(call.arguments), dict)
        sent = pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
        assert pb.ToolCall.FromString(sent.SerializeToString()) == sent


def test_arguments_keep_their_order_their_large_numbers_and_their_letters() -> None:
    body = '{"name": "add", "arguments": {"b": 123456789012345678901234567890, "a": "é\\ud83d\\ude00"}}'
    (call,) = reader("json_tools").read(body)
    assert call.arguments == '{"b": 123456789012345678901234567890, "a": "é😀"}'


def test_half_a_surrogate_pair_stays_escaped() -> None:
    (call,) = reader("json_tools").read('{"name": "add", "arguments": {"a": "\\ud83d"}}')
    assert call.arguments == '{"a": "\\ud83d"}'


def test_ids_are_those_of_the_answer_again_and_no_other_ones() -> None:
    body = '[{"name": "now"}, {"name": "now"}]'
    first, again, other = reader("json_tools"), reader("json_tools"), reader("json_tools", "7 1.6")
    ids = [call.id for read in (first, again, other) for _ in range(2) for call in read.read(body)]
    assert ids[:4] == ids[4:8]
    assert len(set(ids)) == 8
    assert all(len(each) == 9 and each.isalnum() for each in ids)


def test_an_id_that_the_model_wrote_is_kept_unless_it_comes_twice() -> None:
    body = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    kimi = reader("kimi_k2")
    (first,), (second,) = kimi.read(body), kimi.read(body)
    assert first.id == "functions.now:0"
    assert len(second.id) == 9


# Prompts

ASKED = Message("user", "What is the weather in Oslo?")
CALLED = Message("assistant", "", tool_calls=(ToolCall("c1", "get_weather", '{"city": "Oslo"}'),))
SHOWN = """{% for tool in tools or [] %}{{ tool | tojson }};{% endfor %}{% for message in messages -%}
{{ message.role }}:{{ message.content }}{{ message.tool_calls | tojson if message.tool_calls }}|
{%- endfor %}{% if false %}<tool_call>{{ tool_call.name }}{% endif %}{{ 'go' if add_generation_prompt }}"""


def test_templates_are_given_tools_and_calls_as_they_expect_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, SHOWN))
    rendered = tokenizer.render(Conversation((ASKED, CALLED), tools=(CITY, NOW)), 0.0)
    parameters = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    assert rendered == (
        '{"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": '
        f'{parameters}}}}};{{"type": "function", "function": {{"name": "now", "description": "", "parameters": '
        '{"type": "object", "properties": {}}}};user:What is the weather in Oslo?|assistant:[{"id": "c1", '
        '"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]|go'
    )


def test_tools_that_must_not_be_called_are_not_shown(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, SHOWN))
    hidden = tokenizer.render(Conversation((ASKED,), tools=(CITY,), hides_tools=True), 0.0)
    assert hidden == tokenizer.render(Conversation((ASKED,)), 0.0)


def test_a_template_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }}"}]
    folder = folder_with(tmp_path, None, chat_template=templates, tool_parser_type="json_tools")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.render(Conversation((ASKED,)), 0.0) == "plain"
    assert tokenizer.render(Conversation((ASKED,), tools=(CITY, ADD)), 0.0) == "2"


def refusal(tokenizer: Tokenizer, conversation: Conversation) -> list[str]:
    with pytest.raises(InvalidRequest) as refused:
        tokenizer.prompt(conversation, 0.0)
    return [violation.path for violation in refused.value.violations]


@pytest.mark.parametrize("template", [None, "{{ messages }}", "{{ tools }}"])
def test_a_model_that_takes_no_tools_refuses_them(tmp_path: Path, template: str | None) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, template))
    for hides in (False, True):
        assert refusal(tokenizer, Conversation((ASKED,), tools=(CITY,), hides_tools=hides)) == ["tools"]


def test_chatml_has_no_place_for_calls(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, None))
    assert refusal(tokenizer, Conversation((ASKED, CALLED))) == ["input.conversation"]


# Continued messages

BEGUN = Conversation((ASKED, Message("assistant", "In Oslo ")), continues=True)


@pytest.mark.parametrize("folder", [demo.source(), noise_model.folder()], ids=["built-in", "noise"])
def test_a_continued_message_is_left_open(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    asked = tokenizer.render(Conversation((ASKED,)), 0.0)
    assert tokenizer.render(BEGUN, 0.0) == asked + "In Oslo "


def test_a_continued_message_is_left_open_in_chatml_too(tmp_path: Path) -> None:
    rendered = Tokenizer.load(folder_with(tmp_path, None)).render(BEGUN, 0.0)
    assert rendered.endswith("<|im_start|>assistant\nIn Oslo ")


def test_white_space_that_a_template_cuts_off_stays_where_it_is_continued(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}{{ 'go' if add_generation_prompt }}"
    assert Tokenizer.load(folder_with(tmp_path, template)).render(BEGUN, 0.0) == f"{ASKED.content}|In Oslo "


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}", "{{ messages[1].content * 2 }}", "{{ messages[-1:] }}"]
)
def test_a_template_that_does_not_write_the_message_just_once_cannot_continue_it(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, template))
    assert refusal(tokenizer, BEGUN) == ["input.conversation.continue_final_message"]


# Requests


def parsed(text: str) -> Any:
    request = text_format.Parse(text, pb.GenerateRequest())
    return parse.generation(request, RequestId("r"))


def test_tools_arrive_with_the_conversation() -> None:
    request = parsed("""
        input { conversation {
            messages { role: ROLE_USER parts { text: "a" } }
            messages { role: ROLE_ASSISTANT tool_calls { id: "c" name: "f" arguments: "{\\"x\\": 1}" } }
            messages { role: ROLE_TOOL parts { text: "b" } tool_call_id: "c" }
            messages { role: ROLE_ASSISTANT parts { text: "d" } }
            continue_final_message: true
        } }
        tools { name: "f" description: "F." parameters: "{\\"type\\": \\"object\\"}" }
        tools { name: "g" }
        output { reasoning: REASONING_FORMAT_INLINE }
    """)
    assert request.inline_reasoning
    assert request.input == Conversation(
        (
            Message("user", "a"),
            Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"x": 1}'),)),
            Message("tool", "b", tool_call_id="c"),
            Message("assistant", "d"),
        ),
        tools=(Tool("f", "F.", {"type": "object"}), Tool("g", "", {})),
        continues=True,
    )


@pytest.mark.parametrize(
    ("choice", "expected", "hidden"),
    [
        ("", ToolChoice(), False),
        ("tool_choice { mode: MODE_AUTO }", ToolChoice(), False),
        ("tool_choice { mode: MODE_NONE }", ToolChoice(), True),
        ("tool_choice { mode: MODE_REQUIRED }", ToolChoice(("f", "g")), False),
        ('tool_choice { name: "g" }', ToolChoice(("g",), once=True), False),
    ],
)
def test_a_choice_arrives(choice: str, expected: ToolChoice, hidden: bool) -> None:
    asked = 'input { conversation { messages { role: ROLE_USER parts { text: "a" } } } } tools { name: "f" } tools { name: "g" }'
    request = parsed(f"{asked} {choice}")
    assert (request.tool_choice, request.input.hides_tools) == (expected, hidden)
