"""What is wrong is refused, with everything that a program or a person needs to mend it."""

from __future__ import annotations

import re

import grpc
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.asking import detail
from tests.end_to_end.refusals import Refusal, refusal
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import (
    MODEL,
    TIMEOUT,
    VOCABULARY,
    counted,
    generate,
    prompt,
    said,
    stream,
    streaming,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MAX_DETAILS = 4096


def refused(server: RunningServer, request: pb.StreamGenerateRequest) -> Refusal:
    """By both RPCs, and with the same words."""
    streamed = refusal(lambda: stream(server, request))
    if not request.HasField("stream_options"):
        whole = refusal(lambda: generate(server, request))
        assert (whole.code, whole.error.details()) == (streamed.code, streamed.error.details())
        assert whole.info == streamed.info
    return streamed


def written(text: str) -> pb.StreamGenerateRequest:
    """A request that is right, save for what is written; a prompt is added where none is."""
    request = text_format.Parse(text, pb.StreamGenerateRequest())
    if not request.HasField("input") and "no input" not in text:
        request.input.text = "Hello"
    return request


def each(cases: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("text, field", cases, ids=[field for _, field in cases])


RESUME = 'resume { seed: 1 fingerprint: "f" create_time { seconds: 1 } '

# What is wrong without regard to any model, by field.
WRONG = [
    ("# no input", "input"),
    ("input {}", "input"),
    ("input { token_ids {} }", "input.token_ids.ids"),
    ("input { conversation {} }", "input.conversation.messages"),
    ("input { conversation { messages { role: ROLE_USER } } }", "input.conversation.messages[0].parts"),
    ('input { conversation { messages { parts { text: "" } } } }', "input.conversation.messages[0].role"),
    ('input { conversation { messages { role: 9 parts { text: "" } } } }', "input.conversation.messages[0].role"),
    ("input { conversation { messages { role: ROLE_USER parts {} } } }", "input.conversation.messages[0].parts[0]"),
    (
        'input { conversation { messages { role: ROLE_USER parts { text: "" } reasoning: "r" } } }',
        "input.conversation.messages[0].reasoning",
    ),
    (
        'input { conversation { messages { role: ROLE_USER parts { text: "" } tool_call_id: "c" } } }',
        "input.conversation.messages[0].tool_call_id",
    ),
    (
        'input { conversation { messages { role: ROLE_USER parts { text: "" } tool_calls { id: "c" } } } }',
        "input.conversation.messages[0].tool_calls",
    ),
    (
        f'input {{ conversation {{ messages {{ role: ROLE_USER parts {{ text: "" }} name: "{"n" * 65}" }} }} }}',
        "input.conversation.messages[0].name",
    ),
    ("template { enable_thinking: true }", "template"),
    ('tools { name: "f" }', "tools"),
    ("tool_choice { mode: MODE_AUTO }", "tool_choice.mode"),
    ('tool_choice { name: "f" }', "tool_choice.name"),
    *(
        (f"sampling {{ {field}: {value} }}", f"sampling.{field}")
        for field, values in {
            "temperature": ("-0.1", "100.1", "nan", "inf", "-inf"),
            "top_p": ("0", "-1", "1.1", "nan", "inf"),
            "min_p": ("-0.1", "1.1", "nan"),
            "min_tokens_to_keep": ("0",),
            "xtc_probability": ("-0.1", "1.1", "nan"),
            "xtc_threshold": ("-0.1", "0.6", "nan"),
            "repetition_penalty": ("0", "-1", "101", "nan"),
            "presence_penalty": ("-2.1", "2.1", "nan"),
            "frequency_penalty": ("-2.1", "2.1", "nan"),
        }.items()
        for value in values
    ),
    ("stop { max_tokens: 0 }", "stop.max_tokens"),
    ("stop { max_tokens: 3 min_tokens: 4 }", "stop.min_tokens"),
    ('stop { sequences: "" }', "stop.sequences[0]"),
    (f'stop {{ sequences: "a" sequences: "{"b" * 257}" }}', "stop.sequences[1]"),
    ("stop { " + 'sequences: "a" ' * 17 + "}", "stop.sequences"),
    (f"stop {{ token_ids: {list(range(257))} }}", "stop.token_ids"),
    ("output { logprobs: 21 }", "output.logprobs"),
    ("output { reasoning: 9 }", "output.reasoning"),
    ("tool_choice {}", "tool_choice"),
    ("tool_choice { mode: MODE_UNSPECIFIED }", "tool_choice.mode"),
    ("constraint {}", "constraint"),
    (f'cache {{ tenant: "{"t" * 129}" }}', "cache.tenant"),
    (f"{RESUME} token_ids: [1, 2, 3] }} stop {{ max_tokens: 2 }}", "resume.token_ids"),
    (f"{RESUME} }} sampling {{ seed: 2 }}", "sampling.seed"),
    ('resume { fingerprint: "f" create_time {} }', "resume.seed"),
    ("resume { seed: 0 create_time {} }", "resume.fingerprint"),
    ('resume { seed: 0 fingerprint: "f" }', "resume.create_time"),
    ('resume { seed: 0 fingerprint: "f" create_time { nanos: -1 } }', "resume.create_time"),
    ("stream_options { min_delta_tokens: 0 }", "stream_options.min_delta_tokens"),
    ("stream_options { min_delta_tokens: 1025 }", "stream_options.min_delta_tokens"),
    ("stream_options { max_delta_delay {} }", "stream_options.max_delta_delay"),
    ("stream_options { max_delta_delay { seconds: 10 nanos: 1 } }", "stream_options.max_delta_delay"),
    ("stream_options { max_delta_delay { seconds: -1 } }", "stream_options.max_delta_delay"),
]


@each(WRONG)
def test_a_wrong_field_is_named(server: RunningServer, text: str, field: str) -> None:
    answer = refused(server, written(text))
    assert answer.code == INVALID
    assert answer.fields == [field]
    assert answer.info.reason == answer.violations[0].reason == "INVALID_VALUE"
    assert answer.violations[0].description in str(answer.error.details())


@pytest.mark.parametrize(
    "variables", ["{", "[]", "NaN", '{"a": NaN}', "[" * 9000, '{"messages": []}', "{}" + " " * 262_143]
)
def test_template_variables_are_a_json_object_of_the_callers_own(server: RunningServer, variables: str) -> None:
    request = streaming(pb.Conversation(messages=[said("Hello")]))
    request.template.variables = variables
    answer = refused(server, request)
    assert (answer.code, answer.fields) == (INVALID, ["template.variables"])


def test_the_arguments_of_all_calls_are_bounded(server: RunningServer) -> None:
    called = pb.ToolCall(id="c", name="f", arguments='{"text": "' + "x" * 262_132 + '"}')
    calls = [pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[called])] * 4
    answer = refused(server, streaming(pb.Conversation(messages=[said("Hi"), *calls, *calls[:1]])))
    assert (answer.code, answer.fields) == (INVALID, ["input.conversation.messages"])
    assert "1,310,720" in str(answer.error.details())
    calls[0].tool_calls[0].arguments += " "
    answer = refused(server, streaming(pb.Conversation(messages=[said("Hi"), calls[0]])))
    assert (answer.code, answer.fields) == (INVALID, ["input.conversation.messages[1].tool_calls[0].arguments"])


# What a model's own files decide.
OF_A_MODEL = [
    ('input { text: "" }', "input.text"),
    (f"input {{ token_ids {{ ids: [5, {VOCABULARY}] }} }}", "input.token_ids.ids[1]"),
    ("input { token_ids { ids: 4294967295 } }", "input.token_ids.ids[0]"),
    (f"stop {{ token_ids: [1, 2, {VOCABULARY}] }}", "stop.token_ids[2]"),
    (
        'input { conversation { messages { role: ROLE_USER parts { text: "" } } messages { role: 1 parts { text: "" } } } }',
        "input.conversation",
    ),
]


@each(OF_A_MODEL)
def test_what_the_models_files_forbid_is_named(server: RunningServer, text: str, field: str) -> None:
    answer = refused(server, written(text))
    assert (answer.code, answer.fields, answer.info.reason) == (INVALID, [field], "INVALID_VALUE")


def test_a_templates_own_words_reach_the_caller(server: RunningServer) -> None:
    answer = refused(server, written(OF_A_MODEL[-1][0]))
    assert "a system message can only be the first" in str(answer.error.details())


def test_resumed_ids_must_be_in_the_vocabulary(server: RunningServer) -> None:
    started = stream(server, streaming("Hello", max_tokens=1)).started
    request = streaming([VOCABULARY, 1], max_tokens=9)
    request.stop.token_ids.append(VOCABULARY + 1)
    request.resume.seed = started.seed
    request.resume.fingerprint = started.fingerprint
    request.resume.create_time.CopyFrom(started.create_time)
    request.resume.token_ids.extend([7, VOCABULARY + 2])
    answer = refused(server, request)
    assert answer.fields == ["input.token_ids.ids[0]", "resume.token_ids[1]", "stop.token_ids[0]"]


EVERYTHING_AT_ONCE = """
input { conversation { messages { name: "n" parts {} } messages { role: ROLE_USER tool_call_id: "x" } } }
sampling { temperature: -1 top_p: nan min_p: 2 seed: 1 }
stop { max_tokens: 0 sequences: ["", "fine"] }
output { logprobs: 99 }
tool_choice {}
constraint {}
resume { seed: 2 }
stream_options { min_delta_tokens: 0 }
"""


def test_all_that_is_wrong_is_told_in_one_error(server: RunningServer) -> None:
    answer = refused(server, written(EVERYTHING_AT_ONCE))
    assert answer.code == INVALID
    assert answer.fields == sorted(
        [
            "input.conversation.messages[0].role",
            "input.conversation.messages[0].parts[0]",
            "input.conversation.messages[1].parts",
            "input.conversation.messages[1].tool_call_id",
            "sampling.temperature",
            "sampling.top_p",
            "sampling.min_p",
            "sampling.seed",
            "stop.max_tokens",
            "stop.sequences[0]",
            "output.logprobs",
            "tool_choice",
            "constraint",
            "resume.fingerprint",
            "resume.create_time",
            "stream_options.min_delta_tokens",
        ]
    )


def test_details_stay_small_whatever_is_wrong(server: RunningServer) -> None:
    request = written("input { conversation {} }")
    request.input.conversation.messages.extend([pb.Message(role=pb.ROLE_USER)] * 900)
    request.stop.sequences.extend(["가" * 5000] * 20)
    answer = refused(server, request)
    assert 3 < len(answer.violations) <= 16
    assert detail(answer.error, error_details_pb2.BadRequest).ByteSize() <= MAX_DETAILS
    assert re.fullmatch(r"and \d+ more", answer.violations[-1].description)


# What the contract names and this server does not do yet.
NOT_YET = [
    (
        'input { conversation { messages { role: ROLE_USER parts { image { data: "x" mime_type: "image/png" } } } } }',
        "input.conversation.messages[0].parts[0].image",
    ),
]


@each(NOT_YET)
def test_what_is_not_supported_yet_is_refused_by_its_path(server: RunningServer, text: str, field: str) -> None:
    answer = refused(server, written(text))
    assert (answer.code, answer.fields) == (INVALID, [field])
    assert answer.info.reason == answer.violations[0].reason == "FIELD_NOT_SUPPORTED"


def test_what_is_not_supported_is_not_among_the_features(server: RunningServer) -> None:
    features = server.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).server.features
    assert list(features) == sorted(features)
    assert not [field for _, field in NOT_YET if field.startswith(tuple(features))]


def test_fields_that_say_what_unset_means_are_accepted(server: RunningServer) -> None:
    request = written(
        """
        input { text: "Hello" }
        sampling { min_tokens_to_keep: 1 xtc_probability: 0 xtc_threshold: 0.1 repetition_penalty: 1 seed: 3
          repetition_context_size: 20 presence_penalty: 0 frequency_penalty: 0 }
        stop { max_tokens: 4 min_tokens: 0 }
        output { reasoning: REASONING_FORMAT_INLINE }
        tool_choice { mode: MODE_NONE }
        template {}
        cache { tenant: "t" bypass: true }
        stream_options { min_delta_tokens: 1 }
        """
    )
    plain = streaming("Hello", seed=3, max_tokens=4)
    assert stream(server, request).token_ids == stream(server, plain).token_ids


@pytest.mark.parametrize("prompt_tokens, max_tokens", [(48, None), (60, None), (48, 1)])
def test_a_prompt_that_does_not_fit_the_context_is_told_with_both_numbers(
    configured: RunningServer, prompt_tokens: int, max_tokens: int | None
) -> None:
    answer = refused(configured, streaming([5] * prompt_tokens, max_tokens=max_tokens, model="small"))
    assert (answer.code, answer.info.reason) == (INVALID, "PROMPT_TOO_LONG")
    assert answer.info.metadata == {"prompt_tokens": str(prompt_tokens), "context_length": "48"}
    assert answer.fields == ["input"]
    assert str(prompt_tokens) in str(answer.error.details())
    assert "48" in str(answer.error.details())


LONG = "Hello, world. " * 100_000


@pytest.mark.parametrize("given", [LONG, pb.Conversation(messages=[said(LONG)])])
def test_a_prompt_that_is_far_too_long_is_refused_before_all_of_it_is_encoded(
    configured: RunningServer, given: str | pb.Conversation
) -> None:
    request = streaming(given, model="small")
    answer = refused(configured, request)
    assert (answer.code, answer.info.reason, answer.fields) == (INVALID, "PROMPT_TOO_LONG", ["input"])
    whole = counted(configured, request)
    assert answer.info.metadata["prompt_characters"] == str(len(whole.prompt))
    assert answer.info.metadata["context_length"] == "48"
    least = int(answer.info.metadata["prompt_tokens"])
    assert 48 <= least < whole.token_count // 4
    assert f"at least {least:,} tokens" in str(answer.error.details())


def test_a_prompt_that_is_far_too_long_is_told_with_all_else_that_is_wrong(configured: RunningServer) -> None:
    request = streaming(LONG, model="small")
    request.stop.token_ids.append(VOCABULARY)
    answer = refused(configured, request)
    assert (answer.info.reason, answer.fields) == ("INVALID_REQUEST", ["input", "stop.token_ids[0]"])


def test_more_tokens_than_the_prompt_leaves_room_for_are_told_with_all_numbers(configured: RunningServer) -> None:
    answer = refused(configured, streaming([5] * 41, max_tokens=8, model="small"))
    assert (answer.code, answer.info.reason, answer.fields) == (INVALID, "MAX_TOKENS_TOO_LARGE", ["stop.max_tokens"])
    assert answer.info.metadata == {"prompt_tokens": "41", "max_tokens": "8", "context_length": "48"}


def test_max_tokens_is_at_most_what_the_model_gives(configured: RunningServer) -> None:
    answer = refused(configured, streaming("Hi", max_tokens=9, model="small"))
    assert (answer.code, answer.fields) == (INVALID, ["stop.max_tokens"])
    assert "8" in str(answer.error.details())


@pytest.mark.parametrize("asked, nearest", [("noyse", MODEL), ("SMALL", ""), ("smal", "small"), ("x" * 500, "")])
def test_an_unknown_model_is_answered_with_the_nearest(configured: RunningServer, asked: str, nearest: str) -> None:
    count = pb.CountTokensRequest(model=asked, input=prompt("Hi"))
    for answer in (
        refused(configured, streaming("Hi", model=asked)),
        refusal(lambda: configured.inference.CountTokens(count, timeout=TIMEOUT)),
    ):
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        resource = detail(answer.error, error_details_pb2.ResourceInfo)
        assert resource.resource_type == "mlxrpc.v1.Model"
        assert resource.resource_name == (asked if len(asked) <= 128 else asked[:127] + "…")
        assert nearest in str(answer.error.details())
        assert nearest in answer.info.metadata["nearest"]


OF_THE_PROMPT = [case for case in (*WRONG, *OF_A_MODEL, *NOT_YET) if case[1].startswith(("input", "template", "tools"))]


@each(OF_THE_PROMPT)
def test_counting_refuses_a_prompt_as_generating_does(server: RunningServer, text: str, field: str) -> None:
    # Input, tools and template have other numbers here, and the same names.
    given = {known.name: value for known, value in written(text).ListFields()}
    kept = {name: value for name, value in given.items() if name in ("input", "tools", "template")}
    answer = refusal(lambda: server.inference.CountTokens(pb.CountTokensRequest(**kept), timeout=TIMEOUT))
    assert (answer.code, answer.fields) == (INVALID, [field])
