"""No request that can be written, well formed or not, meets a bug or harms a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from tests.arbitrary import arbitrary
from tests.end_to_end.refusals import Refusal, outcome, refusal
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import (
    TIMEOUT,
    VOCABULARY,
    check_deltas,
    counted,
    generate,
    prompt,
    said,
    stream,
    streaming,
)

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture
def unharmed(server: RunningServer) -> Iterator[None]:
    """The worker is the same one afterwards, and no call met a bug."""
    before = server.loaded()
    yield
    after = server.loaded()
    assert (after.pid, after.restarts, after.state) == (before.pid, before.restarts, model_pb2.MODEL_STATE_LOADED)
    assert not [line for line in server.log_lines() if "bug" in line.get("message", "")]


@pytest.mark.usefixtures("unharmed")
def test_what_ends_other_servers_does_nothing_here(server: RunningServer) -> None:
    request = streaming("A prompt that is asked for again, to the letter", max_tokens=6)
    first = stream(server, request)
    assert stream(server, request).token_ids == first.token_ids
    request.sampling.top_k = VOCABULARY
    assert stream(server, request).token_ids == first.token_ids
    request.sampling.top_k = VOCABULARY + 1
    assert stream(server, request).token_ids == first.token_ids
    request.sampling.logit_bias[VOCABULARY] = 1.0
    assert refusal(lambda: stream(server, request)).fields == [f"sampling.logit_bias[{VOCABULARY}]"]
    request.sampling.logit_bias.clear()
    for empty in (prompt(""), prompt([]), prompt(pb.Conversation())):
        request.input.CopyFrom(empty)
        assert refusal(lambda: stream(server, request)).code == grpc.StatusCode.INVALID_ARGUMENT


NUMBERS = st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 1e-30, 0.5, 1.0])
TOKENS = st.integers(0, VOCABULARY - 1)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["안녕 😀", "<|im_start|>user\n", "<|im_end|>", "<think></think>", "\u0301", "\x00"]
)


def _name(tool: pb.Tool) -> str:
    return tool.name


SAMPLINGS = st.builds(
    model_pb2.Sampling,
    temperature=st.none() | NUMBERS | st.floats(0, 100),
    top_p=st.none() | st.floats(0, 1, exclude_min=True) | st.sampled_from([5e-324, 1e-30, 0.5, 1.0]),
    top_k=st.none() | st.sampled_from([0, 1, 2, VOCABULARY - 1, VOCABULARY, 2**31, 2**32 - 1]),
    min_p=st.none() | NUMBERS,
    seed=st.none() | st.integers(0, 2**64 - 1),
    repetition_penalty=st.none() | st.floats(0, 100, exclude_min=True) | st.sampled_from([5e-324, 1e-30, 1.1, 100.0]),
    repetition_context_size=st.none() | st.sampled_from([0, 1, 20, 2**31, 2**32 - 1]),
    presence_penalty=st.none() | st.floats(-2, 2),
    frequency_penalty=st.none() | st.floats(-2, 2),
    min_tokens_to_keep=st.none() | st.sampled_from([1, 2, VOCABULARY, 2**32 - 1]),
    xtc_probability=st.none() | st.floats(0, 1),
    xtc_threshold=st.none() | st.floats(0, 0.5),
    logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100), max_size=8),
)
STOPS = st.builds(
    pb.Stop,
    max_tokens=st.integers(1, 6),
    sequences=st.lists(WORDS.filter(bool), max_size=16),
    token_ids=st.lists(TOKENS, max_size=256),
    ignore_eos=st.booleans(),
)


def called(name: str) -> pb.Message:
    calls = [pb.ToolCall(id="c", name=name, arguments=json.dumps({name: [name]}))]
    return pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=calls, reasoning=name)


CONVERSATIONS = st.builds(
    pb.Conversation,
    messages=st.lists(
        st.builds(said, WORDS, st.sampled_from([pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]))
        | st.builds(called, WORDS.filter(bool)),
        min_size=1,
        max_size=4,
    ),
)
TEMPLATES = st.none() | st.builds(
    pb.Template,
    enable_thinking=st.none() | st.booleans(),
    variables=st.sampled_from(["", "{}"]) | st.dictionaries(WORDS, st.lists(WORDS)).map(json.dumps),
)
NAMES = st.text("abcXYZ019_-", min_size=1, max_size=64)
SCHEMAS = st.sampled_from(["", "{}", '{"type": "object"}', '{"properties": {"a": {"type": "integer"}}, "x": [1]}'])
TOOLS = st.lists(st.builds(pb.Tool, name=NAMES, description=WORDS, parameters=SCHEMAS), max_size=3, unique_by=_name)
TALK: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"input": CONVERSATIONS.map(prompt), "template": TEMPLATES, "tools": TOOLS}
)
PLAIN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "input": (WORDS.filter(bool) | st.lists(TOKENS, min_size=1, max_size=60)).map(prompt),
        "template": st.none(),
        "tools": st.just([]),
    }
)
OPTIONS = st.builds(
    pb.StreamOptions,
    prefill_progress=st.booleans(),
    min_delta_tokens=st.none() | st.integers(1, 1024),
    max_delta_delay=st.none()
    | st.integers(1, 10**10).map(lambda nanos: Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)),
)
RESUMES = st.builds(
    pb.Resume,
    token_ids=st.lists(TOKENS, max_size=6),
    seed=st.integers(0, 2**64 - 1),
    create_time=st.builds(Timestamp, seconds=st.integers(0, 4 * 10**9), nanos=st.integers(0, 10**9 - 1)),
)


@st.composite
def well_formed(draw: st.DrawFn) -> pb.StreamGenerateRequest:
    request = pb.StreamGenerateRequest(
        **draw(TALK | PLAIN),
        sampling=draw(SAMPLINGS),
        stop=draw(STOPS),
        output=pb.Output(token_ids=True, reasoning=draw(st.sampled_from(pb.ReasoningFormat.values()))),
        cache=pb.Cache(tenant=draw(WORDS), bypass=draw(st.booleans())),
        stream_options=draw(OPTIONS),
    )
    if request.tools:
        request.tool_choice.mode = draw(st.sampled_from([pb.ToolChoice.MODE_AUTO, pb.ToolChoice.MODE_NONE]))
    if draw(st.integers(0, 3)) == 0:
        resume = draw(RESUMES)
        del resume.token_ids[request.stop.max_tokens :]
        request.sampling.ClearField("seed")
        request.resume.CopyFrom(resume)
    return request


fuzz = settings(
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def fingerprint(server: RunningServer) -> str:
    return stream(server, streaming("Hi", max_tokens=1)).started.fingerprint


@fuzz
@given(request=well_formed())
@pytest.mark.usefixtures("unharmed")
def test_a_well_formed_request_is_served(
    server: RunningServer, fingerprint: str, request: pb.StreamGenerateRequest
) -> None:
    """Or refused by the template, which alone may still object."""
    if request.HasField("resume"):
        request.resume.fingerprint = fingerprint
    received = outcome(lambda: stream(server, request))
    if isinstance(received, Refusal):
        assert received.fields == ["input.conversation"]
        return
    assert received.end.usage.completion_tokens <= request.stop.max_tokens
    apart = received.tool_calls or received.end.usage.reasoning_tokens
    if received.end.finish_reason != pb.FINISH_REASON_STOP_SEQUENCE and not request.HasField("resume") and not apart:
        check_deltas(received)
    request.sampling.seed = received.started.seed
    answer = generate(server, request)
    assert (answer.text, answer.reasoning) == (received.text, received.reasoning)
    assert list(answer.tool_calls) == received.tool_calls
    if request.tool_choice.mode != pb.ToolChoice.MODE_NONE:
        assert counted(server, request).token_count == answer.usage.prompt_tokens == received.started.prompt_tokens


@st.composite
def with_some_parts_of_any_kind(draw: st.DrawFn) -> pb.StreamGenerateRequest:
    """Well formed but for these, since a request where everything is wrong is refused at the first door."""
    request = draw(well_formed())
    other = draw(arbitrary(pb.StreamGenerateRequest))
    names = st.sampled_from([field.name for field in pb.StreamGenerateRequest.DESCRIPTOR.fields])
    for name in draw(st.sets(names, min_size=1, max_size=2)):
        request.ClearField(name)  # type: ignore[arg-type]
        request.MergeFrom(pb.StreamGenerateRequest(**{name: getattr(other, name)}))
    request.stop.max_tokens = min(request.stop.max_tokens or 4, 4)
    return request


@fuzz
@given(request=with_some_parts_of_any_kind())
@pytest.mark.usefixtures("unharmed")
def test_no_request_at_all_meets_a_bug(
    server: RunningServer, fingerprint: str, request: pb.StreamGenerateRequest
) -> None:
    if request.HasField("resume") and not request.resume.fingerprint:
        request.resume.fingerprint = fingerprint
    calls = (lambda: stream(server, request), lambda: generate(server, request))
    refusals = [answer for answer in map(outcome, calls) if isinstance(answer, Refusal)]
    assert {answer.code for answer in refusals} <= REFUSALS


@fuzz
@given(count=arbitrary(pb.CountTokensRequest), listing=arbitrary(pb.ListModelsRequest))
@pytest.mark.usefixtures("unharmed")
def test_no_question_at_all_meets_a_bug(
    server: RunningServer, count: pb.CountTokensRequest, listing: pb.ListModelsRequest
) -> None:
    calls = (
        lambda: server.inference.CountTokens(count, timeout=TIMEOUT),
        lambda: server.inference.ListModels(listing, timeout=TIMEOUT),
    )
    refusals = [answer for answer in map(outcome, calls) if isinstance(answer, Refusal)]
    assert {answer.code for answer in refusals} <= REFUSALS
