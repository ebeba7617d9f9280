"""Requests into values: every violation in one error, every default where nothing was said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc_server import faults, listing, parse, parse_prompt, tokenizer, types
from mlxrpc_server.errors import InvalidRequest, Violation
from mlxrpc_server.types import RequestId
from tests.arbitrary import arbitrary

ID = RequestId("id")
TEXT = 'input { text: "x" }'
USER = 'input { conversation { messages { role: ROLE_USER parts { text: "x" } } } }'


def generation(text: str) -> types.Request:
    return parse.generation(text_format.Parse(text, pb.GenerateRequest()), ID)


def stream(text: str) -> types.Request:
    return parse.generation(text_format.Parse(text, pb.StreamGenerateRequest()), ID)


def violations(text: str) -> list[Violation]:
    with pytest.raises(InvalidRequest) as refused:
        stream(text)
    return list(refused.value.violations)


def message(fields: str) -> str:
    return f"input {{ conversation {{ messages {{ {fields} }} }} }}"


def call(fields: str) -> str:
    return message(f"role: ROLE_ASSISTANT tool_calls {{ {fields} }}")


def continued(messages: str) -> str:
    first = 'messages { role: ROLE_USER parts { text: "x" } }'
    return f"input {{ conversation {{ continue_final_message: true {first} {messages} }} }}"


CONTINUED = "input.conversation.continue_final_message"
RESUME = 'resume { seed: 1 fingerprint: "f" create_time { seconds: 1 } }'

OUT_OF_RANGE = [
    ("", "input"),
    ("input {}", "input"),
    ("input { token_ids {} }", "input.token_ids.ids"),
    ("input { conversation {} }", "input.conversation.messages"),
    (message('parts { text: "x" }'), "input.conversation.messages[0].role"),
    (message('role: 9 parts { text: "x" }'), "input.conversation.messages[0].role"),
    (message("role: ROLE_USER"), "input.conversation.messages[0].parts"),
    (message('role: ROLE_USER parts { text: "x" } parts {}'), "input.conversation.messages[0].parts[1]"),
    (message(f'role: ROLE_USER parts {{ text: "" }} name: "{"x" * 65}"'), "input.conversation.messages[0].name"),
    (message('role: ROLE_USER parts { text: "" } tool_calls {}'), "input.conversation.messages[0].tool_calls"),
    (message('role: ROLE_USER parts { text: "" } reasoning: "x"'), "input.conversation.messages[0].reasoning"),
    (message('role: ROLE_USER parts { text: "" } tool_call_id: "x"'), "input.conversation.messages[0].tool_call_id"),
    (call('id: "c" arguments: "{}"'), "input.conversation.messages[0].tool_calls[0].name"),
    (call('name: "f"'), "input.conversation.messages[0].tool_calls[0].arguments"),
    (call('name: "f" arguments: "[]"'), "input.conversation.messages[0].tool_calls[0].arguments"),
    (
        call(f'name: "f" arguments: "{{}}{" " * 262_143}"'),
        "input.conversation.messages[0].tool_calls[0].arguments",
    ),
    (
        call(" } tool_calls { ".join([f"name: 'f' arguments: '{{}}{' ' * 209_714}'"] * 5)),
        "input.conversation.messages",
    ),
    (continued(""), CONTINUED),
    (continued('messages { role: ROLE_USER parts { text: "a" } }'), CONTINUED),
    (continued('messages { role: ROLE_ASSISTANT parts { text: "" } }'), CONTINUED),
    (continued('messages { role: ROLE_ASSISTANT reasoning: "r" }'), CONTINUED),
    (
        continued('messages { role: ROLE_ASSISTANT parts { text: "a" } tool_calls { name: "f" arguments: "{}" } }'),
        CONTINUED,
    ),
    (f"{TEXT} tools {{ name: 'f' }}", "tools"),
    (f"{USER} tools {{}}", "tools[0].name"),
    (f"{USER} tools {{ name: 'f.g' }}", "tools[0].name"),
    (f"{USER} tools {{ name: '{'f' * 65}' }}", "tools[0].name"),
    (f"{USER} tools {{ name: 'f' }} tools {{ name: 'f' }}", "tools[1].name"),
    (f"{USER} " + " ".join(f"tools {{ name: 'f{number}' }}" for number in range(129)), "tools"),
    (f"{USER} tools {{ name: 'f' parameters: '[]' }}", "tools[0].parameters"),
    (f"{USER} tools {{ name: 'f' parameters: '{{' }}", "tools[0].parameters"),
    (f"{USER} tools {{ name: 'f' parameters: '{{\"a\": NaN}}' }}", "tools[0].parameters"),
    (f"{USER} tools {{ name: 'f' parameters: '{{}}{' ' * 262_143}' }}", "tools[0].parameters"),
    (f"{USER} " + " ".join(f"tools {{ name: 'f{n}' parameters: '{{}}{' ' * 209_714}' }}" for n in range(5)), "tools"),
    (f"{USER} template {{ variables: '{{}}{' ' * 262_143}' }}", "template.variables"),
    (f"{USER} tool_choice {{}}", "tool_choice"),
    (f"{USER} tool_choice {{ mode: MODE_UNSPECIFIED }}", "tool_choice.mode"),
    (f"{USER} tool_choice {{ mode: MODE_AUTO }}", "tool_choice.mode"),
    (f"{USER} tool_choice {{ mode: MODE_REQUIRED }}", "tool_choice.mode"),
    (f"{USER} tool_choice {{ name: 'f' }}", "tool_choice.name"),
    (f"{USER} tools {{ name: 'f' }} tool_choice {{ mode: 9 }}", "tool_choice.mode"),
    (f"{USER} tools {{ name: 'f' parameters: '{{\"type\": \"string\"}}' }}", "tools[0].parameters"),
    (
        f"{USER} tools {{ name: 'f' }} tool_choice {{ name: 'f' }} constraint {{ json_object {{}} }}",
        "tool_choice.name",
    ),
    (
        f"{USER} tools {{ name: 'f' }} tool_choice {{ mode: MODE_REQUIRED }} constraint {{ json_object {{}} }}",
        "tool_choice.mode",
    ),
    (f"{USER} tools {{ name: 'f' }} tool_choice {{ name: 'g' }}", "tool_choice.name"),
    (f"{TEXT} constraint {{ json_schema: '' }}", "constraint.json_schema"),
    (f"{TEXT} constraint {{ json_schema: '{'x' * (256 * 1024 + 1)}' }}", "constraint.json_schema"),
    (f"{TEXT} constraint {{ regex: '{'x' * (8 * 1024 + 1)}' }}", "constraint.regex"),
    (f"{TEXT} constraint {{ grammar: '' }}", "constraint.grammar"),
    (f"{TEXT} constraint {{ choices {{}} }}", "constraint.choices.texts"),
    (f"{TEXT} constraint {{ choices {{ texts: ['a', ''] }} }}", "constraint.choices.texts[1]"),
    (f"{TEXT} constraint {{ choices {{ texts: ['a', 'b', 'a'] }} }}", "constraint.choices.texts[2]"),
    (f"{TEXT} template {{ enable_thinking: false }}", "template"),
    (f"{USER} template {{ variables: '{{' }}", "template.variables"),
    (f"{USER} template {{ variables: '[1]' }}", "template.variables"),
    (f"{USER} template {{ variables: '{{\"a\": NaN}}' }}", "template.variables"),
    (f"{USER} template {{ variables: '{'[' * 100_000}' }}", "template.variables"),
    (f"{USER} template {{ variables: '{'1' * 5_000}' }}", "template.variables"),
    (f"{USER} template {{ variables: '{{\"messages\": 1}}' }}", "template.variables"),
    (f"{USER} template {{ variables: '{{\"enable_thinking\": true}}' }}", "template.variables"),
    (f"{TEXT} sampling {{ temperature: nan }}", "sampling.temperature"),
    (f"{TEXT} sampling {{ temperature: -0.1 }}", "sampling.temperature"),
    (f"{TEXT} sampling {{ temperature: 100.1 }}", "sampling.temperature"),
    (f"{TEXT} sampling {{ temperature: inf }}", "sampling.temperature"),
    (f"{TEXT} sampling {{ top_p: 0 }}", "sampling.top_p"),
    (f"{TEXT} sampling {{ top_p: 1.1 }}", "sampling.top_p"),
    (f"{TEXT} sampling {{ top_p: nan }}", "sampling.top_p"),
    (f"{TEXT} sampling {{ min_p: -0.1 }}", "sampling.min_p"),
    (f"{TEXT} sampling {{ min_p: 1.1 }}", "sampling.min_p"),
    (f"{TEXT} sampling {{ min_tokens_to_keep: 0 }}", "sampling.min_tokens_to_keep"),
    (f"{TEXT} sampling {{ xtc_probability: 1.1 }}", "sampling.xtc_probability"),
    (f"{TEXT} sampling {{ xtc_threshold: 0.6 }}", "sampling.xtc_threshold"),
    (f"{TEXT} sampling {{ repetition_penalty: 0 }}", "sampling.repetition_penalty"),
    (f"{TEXT} sampling {{ repetition_penalty: nan }}", "sampling.repetition_penalty"),
    (f"{TEXT} sampling {{ repetition_penalty: 100.1 }}", "sampling.repetition_penalty"),
    (f"{TEXT} sampling {{ presence_penalty: 2.1 }}", "sampling.presence_penalty"),
    (f"{TEXT} sampling {{ presence_penalty: nan }}", "sampling.presence_penalty"),
    (f"{TEXT} sampling {{ frequency_penalty: -2.1 }}", "sampling.frequency_penalty"),
    (f"{TEXT} sampling {{ logit_bias {{ key: 7 value: nan }} }}", "sampling.logit_bias[7]"),
    (f"{TEXT} sampling {{ logit_bias {{ key: 7 value: -100.1 }} }}", "sampling.logit_bias[7]"),
    (f"{TEXT} sampling {{ frequency_penalty: -inf }}", "sampling.frequency_penalty"),
    (f"{TEXT} stop {{ max_tokens: 0 }}", "stop.max_tokens"),
    (f"{TEXT} stop {{ max_tokens: 3 min_tokens: 4 }}", "stop.min_tokens"),
    (f"{TEXT} stop {{ sequences: '' }}", "stop.sequences[0]"),
    (f"{TEXT} stop {{ sequences: ['a', '{'x' * 257}'] }}", "stop.sequences[1]"),
    (f"{TEXT} stop {{ sequences: {['x'] * 17} }}", "stop.sequences"),
    (f"{TEXT} stop {{ token_ids: {[1] * 257} }}", "stop.token_ids"),
    (f"{TEXT} output {{ logprobs: 21 }}", "output.logprobs"),
    (f"{TEXT} output {{ reasoning: 9 }}", "output.reasoning"),
    (f"{TEXT} tool_choice {{}}", "tool_choice"),
    (f"{TEXT} tool_choice {{ mode: MODE_UNSPECIFIED }}", "tool_choice.mode"),
    (f"{TEXT} constraint {{}}", "constraint"),
    (f"{TEXT} cache {{ tenant: '{'x' * 129}' }}", "cache.tenant"),
    (f"{TEXT} resume {{ fingerprint: 'f' create_time {{}} }}", "resume.seed"),
    (f"{TEXT} resume {{ seed: 1 create_time {{}} }}", "resume.fingerprint"),
    (f"{TEXT} resume {{ seed: 1 fingerprint: 'f' }}", "resume.create_time"),
    (f"{TEXT} resume {{ seed: 1 fingerprint: 'f' create_time {{ seconds: -1 }} }}", "resume.create_time"),
    (f"{TEXT} resume {{ seed: 1 fingerprint: 'f' create_time {{ nanos: -1 }} }}", "resume.create_time"),
    (f"{TEXT} {RESUME} sampling {{ seed: 2 }}", "sampling.seed"),
    (f"{TEXT} {RESUME.replace('seed: 1', 'seed: 1 token_ids: [1, 2]')} stop {{ max_tokens: 1 }}", "resume.token_ids"),
    (f"{TEXT} stream_options {{ min_delta_tokens: 0 }}", "stream_options.min_delta_tokens"),
    (f"{TEXT} stream_options {{ min_delta_tokens: 1025 }}", "stream_options.min_delta_tokens"),
    (f"{TEXT} stream_options {{ max_delta_delay {{}} }}", "stream_options.max_delta_delay"),
    (f"{TEXT} stream_options {{ max_delta_delay {{ seconds: 10 nanos: 1 }} }}", "stream_options.max_delta_delay"),
    (f"{TEXT} stream_options {{ max_delta_delay {{ seconds: 1 nanos: -1 }} }}", "stream_options.max_delta_delay"),
]

NOT_SUPPORTED = [
    (message("role: ROLE_USER parts { image {} }"), "input.conversation.messages[0].parts[0].image"),
]

SAME_AS_UNSET = [
    "template {}",
    "cache {}",
    "stop { min_tokens: 0 ignore_eos: false }",
    "output { reasoning: REASONING_FORMAT_SEPARATE }",
    "tool_choice { mode: MODE_NONE }",
    "stream_options { min_delta_tokens: 1 max_delta_delay { nanos: 100000000 } }",
    "sampling {}",
]


@pytest.mark.parametrize(("text", "path"), OUT_OF_RANGE)
def test_a_field_out_of_range_is_named_by_its_path(text: str, path: str) -> None:
    found = violations(text)
    assert [violation.path for violation in found if violation.reason == "INVALID_VALUE"] == [path]


@pytest.mark.parametrize(("text", "path"), NOT_SUPPORTED)
def test_what_is_not_offered_yet_is_refused_with_its_path(text: str, path: str) -> None:
    assert [(violation.path, violation.reason) for violation in violations(text)] == [(path, "FIELD_NOT_SUPPORTED")]


@pytest.mark.parametrize("fields", SAME_AS_UNSET)
def test_a_field_that_says_what_unset_means_is_accepted(fields: str) -> None:
    assert stream(f"{TEXT} {fields}") == stream(TEXT)


def test_all_violations_come_in_one_error() -> None:
    found = violations("""
        input { conversation {
            messages { role: ROLE_USER parts { text: "a" } }
            messages { parts { text: "b" } parts { image {} } }
        } }
        sampling { temperature: nan top_p: 2 repetition_penalty: 0 logit_bias { key: 5 value: 101 } }
        stop { max_tokens: 0 sequences: "" }
        template { variables: "1" }
        output { logprobs: 21 }
        constraint {}
        tools { name: "f" } tools { name: "?" }
        resume {}
        stream_options { min_delta_tokens: 0 }
    """)
    assert sorted(violation.path for violation in found) == [
        "constraint",
        "input.conversation.messages[1].parts[1].image",
        "input.conversation.messages[1].role",
        "output.logprobs",
        "resume.create_time",
        "resume.fingerprint",
        "resume.seed",
        "sampling.logit_bias[5]",
        "sampling.repetition_penalty",
        "sampling.temperature",
        "sampling.top_p",
        "stop.max_tokens",
        "stop.sequences[0]",
        "stream_options.min_delta_tokens",
        "template.variables",
        "tools[1].name",
    ]


def test_too_many_biases_are_refused() -> None:
    request = pb.GenerateRequest(input=pb.Input(text="x"))
    request.sampling.logit_bias.update(dict.fromkeys(range(1025), 1.0))
    with pytest.raises(InvalidRequest, match="1,025 entries"):
        parse.generation(request, ID)


def test_an_endless_list_of_faults_is_cut() -> None:
    parts = [pb.Part()] * (2 * faults.MAX_FAULTS)
    conversation = pb.Conversation(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)])
    with pytest.raises(InvalidRequest) as refused:
        parse.generation(pb.GenerateRequest(input=pb.Input(conversation=conversation)), ID)
    assert len(refused.value.violations) == faults.MAX_FAULTS


def test_echoed_values_are_cut() -> None:
    (found,) = violations(f"{TEXT} stop {{ sequences: '{'x' * 100_000}' }}")
    assert len(found.description) < 200
    assert "100,000 characters" in found.description


def test_what_was_not_said_is_left_open() -> None:
    assert generation(TEXT) == types.Request(id=ID, model=types.ModelName(""), input=types.TextInput("x"))


def test_everything_that_is_said_arrives() -> None:
    request = stream("""
        model: "m"
        input { token_ids { ids: [1, 2] } }
        sampling { temperature: 0 top_p: 0.5 top_k: 4294967295 min_p: 0.25 seed: 18446744073709551615
            repetition_penalty: 100 repetition_context_size: 4294967295 presence_penalty: -2 frequency_penalty: 2
            logit_bias { key: 9 value: -100 } logit_bias { key: 0 value: 0 } }
        stop { max_tokens: 9 min_tokens: 9 max_reasoning_tokens: 0 sequences: ["a", "b"] token_ids: [3] ignore_eos: true }
        output { token_ids: true logprobs: 20 }
        resume { token_ids: [4] seed: 18446744073709551615 fingerprint: "f" create_time { seconds: 5 nanos: 500000000 } }
        cache { tenant: "t" bypass: true }
        stream_options { prefill_progress: true min_delta_tokens: 8 max_delta_delay { nanos: 250000000 } }
    """)
    assert request == types.Request(
        id=ID,
        model=types.ModelName("m"),
        input=types.TokenInput((1, 2)),
        sampling=types.SamplingChoice(
            temperature=0,
            top_p=0.5,
            top_k=2**32 - 1,
            min_p=0.25,
            repetition_penalty=100,
            repetition_context_size=2**32 - 1,
            presence_penalty=-2,
            frequency_penalty=2,
            logit_bias=((0, 0.0), (9, -100.0)),
        ),
        seed=2**64 - 1,
        stop=types.Stop(9, ("a", "b"), (3,), ignore_eos=True, min_tokens=9, max_reasoning_tokens=0),
        resume=types.Resume(token_ids=(4,), seed=2**64 - 1, fingerprint="f", create_time=5.5),
        prefill_progress=True,
        token_details=True,
        logprobs=20,
        coalescing=types.Coalescing(min_tokens=8, max_delay=0.25),
        cache=types.Cache(tenant="t", bypass=True),
    )


def test_log_probabilities_bring_the_tokens_details_and_zero_is_not_unset() -> None:
    request = generation(f"{TEXT} output {{ logprobs: 0 }}")
    assert (request.token_details, request.logprobs) == (True, 0)
    request = generation(f"{TEXT} output {{ token_ids: true }}")
    assert (request.token_details, request.logprobs) == (True, None)


def test_a_conversation_arrives_with_what_its_template_is_given() -> None:
    request = generation("""
        input { conversation {
            messages { role: ROLE_SYSTEM parts { text: "be" } parts { text: " brief" } }
            messages { role: ROLE_USER name: "ada" parts { text: "" } }
            messages { role: ROLE_ASSISTANT reasoning: "hm" }
            messages { role: ROLE_TOOL tool_call_id: "1" parts { text: "42" } }
        } }
        template { enable_thinking: false variables: "{\\"day\\": [1, null]}" }
    """)
    assert request.input == types.Conversation(
        messages=(
            types.Message("system", "be brief"),
            types.Message("user", "", name="ada"),
            types.Message("assistant", "", reasoning="hm"),
            types.Message("tool", "42", tool_call_id="1"),
        ),
        enable_thinking=False,
        variables={"day": [1, None]},
    )


@pytest.mark.parametrize(
    "given, written",
    [
        ("", 0),
        ("tools { name: 'f' description: 'F.' parameters: '{}' } tools { name: 'g' }", 6),
        ("template { variables: '{\"a\": 1}' }", 8),
        ("tools { name: 'f' parameters: '{}' } tool_choice { mode: MODE_NONE } template { variables: '{}' }", 2),
    ],
)
def test_the_length_of_a_conversation_has_all_that_its_template_is_given(given: str, written: int) -> None:
    bare = tokenizer.length(generation(USER).input)
    assert tokenizer.length(generation(f"{USER} {given}").input) == bare + written


def test_the_length_of_a_conversation_has_its_calls_and_reasoning() -> None:
    said = 'role: ROLE_ASSISTANT reasoning: "hm" tool_calls { name: "f" arguments: "{}" } parts { text: "abc" }'
    assert tokenizer.length(generation(message(said)).input) == 8


@pytest.mark.parametrize("name", parse_prompt.SERVER_VARIABLES)
def test_variables_may_not_replace_what_the_server_gives(name: str) -> None:
    (found,) = violations(f'{USER} template {{ variables: \'{{"{name}": 1, "style": 1}}\' }}')
    assert (found.path, found.description) == ("template.variables", f"{name!r} is the server's to give")


def test_the_contract_lists_every_name_that_variables_may_not_have() -> None:
    contract = Path(__file__).parents[2] / "proto/mlxrpc/v1/inference.proto"
    comment = contract.read_text(encoding="utf-8").partition("set themselves are")[2].partition("string variables")[0]
    assert set(re.findall(r"[a-z]+_?[a-z_]*", comment)) == set(parse_prompt.SERVER_VARIABLES)


def test_counting_makes_the_same_checks() -> None:
    request = text_format.Parse(
        'input { conversation { messages { parts { image {} } } } } template { variables: "1" } tools {}',
        pb.CountTokensRequest(),
    )
    with pytest.raises(InvalidRequest) as refused:
        parse.count(request)
    assert {violation.path for violation in refused.value.violations} == {
        "input.conversation.messages[0].role",
        "input.conversation.messages[0].parts[0].image",
        "template.variables",
        "tools[0].name",
    }


def test_a_count_arrives() -> None:
    text = 'model: "m" input { text: "x" } return_token_ids: true return_prompt: true'
    counted = parse.count(text_format.Parse(text, pb.CountTokensRequest()))
    assert counted == parse.CountRequest(types.ModelName("m"), types.TextInput("x"), True, True)


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_page_sizes_are_bounded(asked: int, size: int) -> None:
    assert parse.list_models(pb.ListModelsRequest(page_size=asked)).size == size


def test_a_wrong_list_request_names_all_its_faults() -> None:
    request = pb.ListModelsRequest(
        page_size=-1,
        filter=pb.ListModelsFilter(
            states=[model_pb2.MODEL_STATE_LOADED, model_pb2.MODEL_STATE_UNSPECIFIED], query="x" * 257
        ),
    )
    with pytest.raises(InvalidRequest) as refused:
        parse.list_models(request)
    assert [violation.path for violation in refused.value.violations] == [
        "page_size",
        "filter.states[1]",
        "filter.query",
    ]


def test_a_filter_arrives() -> None:
    text = 'filter { states: MODEL_STATE_LOADED query: " Qwen  4B" max_size_bytes: 0 capabilities { vision: true } }'
    page = parse.list_models(text_format.Parse(text, pb.ListModelsRequest()))
    assert page.filter == listing.Filter(
        frozenset({model_pb2.MODEL_STATE_LOADED}), frozenset({"qwen", "4b"}), 0, frozenset({"vision"})
    )


T = TypeVar("T")


def understood(read: Callable[[], T]) -> T | None:
    """None where the request was refused in the one way in which it may be."""
    try:
        return read()
    except InvalidRequest:
        return None


@settings(max_examples=300, deadline=None)
@given(arbitrary(pb.StreamGenerateRequest))
def test_any_generation_is_understood_or_refused(request: pb.StreamGenerateRequest) -> None:
    parsed = understood(lambda: parse.generation(request, ID))
    if parsed is not None:
        assert parsed.model == request.model
        assert (parsed.constraint is not None) == request.HasField("constraint")
        assert (parsed.logprobs is not None) == request.output.HasField("logprobs")


@settings(max_examples=100, deadline=None)
@given(arbitrary(pb.GenerateRequest))
def test_both_generation_rpcs_understand_the_same(request: pb.GenerateRequest) -> None:
    """Their fields have the same numbers, so one's bytes are the other's."""
    streamed = pb.StreamGenerateRequest.FromString(request.SerializeToString())
    assert outcome(request) == outcome(streamed)


def outcome(request: parse.GenerationRequest) -> str:
    try:
        return repr(parse.generation(request, ID))
    except InvalidRequest as error:
        return repr(error.violations)


@settings(max_examples=100, deadline=None)
@given(arbitrary(pb.CountTokensRequest))
def test_any_count_is_understood_or_refused(request: pb.CountTokensRequest) -> None:
    parsed = understood(lambda: parse.count(request))
    assert parsed is None or parsed.return_prompt == request.return_prompt


@settings(max_examples=100, deadline=None)
@given(arbitrary(pb.ListModelsRequest))
def test_any_listing_is_understood_or_refused(request: pb.ListModelsRequest) -> None:
    page = understood(lambda: parse.list_models(request))
    assert page is None or 1 <= page.size <= listing.LARGEST_PAGE


@given(st.floats())
def test_no_temperature_outside_its_range_gets_through(value: float) -> None:
    request = pb.GenerateRequest(input=pb.Input(text="x"), sampling=model_pb2.Sampling(temperature=value))
    if 0 <= value <= 100:
        assert parse.generation(request, ID).sampling.temperature == value
    else:
        with pytest.raises(InvalidRequest):
            parse.generation(request, ID)
