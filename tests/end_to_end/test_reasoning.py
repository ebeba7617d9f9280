"""The built-in model thinks when asked to, and what it thinks is told apart from what it answers."""

from __future__ import annotations

from typing import Any

import pytest

import mlxrpc
from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.known import KNOWN, asked
from tests.end_to_end.refusals import refusal
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import check_deltas, counted, generate, resuming, stream

(THINKING,) = [known for known in KNOWN if known.skill == "thinking"]


def test_reasoning_comes_first_and_then_the_answer(pebble: RunningServer) -> None:
    received = stream(pebble, THINKING.request())
    assert (received.reasoning, received.text) == (THINKING.reasoning, THINKING.answer)
    ends = [bool(delta.text) for delta in received.deltas if delta.text or delta.reasoning]
    assert ends == sorted(ends), "reasoning behind the answer"
    assert not any(delta.text and delta.reasoning for delta in received.deltas)


def test_the_unary_answer_and_the_client_tell_them_apart_too(pebble: RunningServer) -> None:
    whole = generate(pebble, THINKING.request())
    assert (whole.reasoning, whole.text) == (THINKING.reasoning, THINKING.answer)
    with mlxrpc.Client(pebble.address) as client:
        completion = client.generate(THINKING.messages[0][1], enable_thinking=True, temperature=0)
    assert (completion.reasoning, completion.text) == (THINKING.reasoning, THINKING.answer)
    assert completion.usage.reasoning_tokens == whole.usage.reasoning_tokens


def test_the_tokens_of_the_reasoning_are_counted_with_its_end(pebble: RunningServer) -> None:
    received = stream(pebble, THINKING.request())
    spelled = [token.bytes for token in received.tokens]
    assert received.end.usage.reasoning_tokens == spelled.index(b"</think>") + 1
    assert received.end.usage.completion_tokens == len(received.token_ids)


def test_inline_it_stays_in_the_text_as_the_model_wrote_it(pebble: RunningServer) -> None:
    request = THINKING.request()
    apart = stream(pebble, request)
    request.output.reasoning = pb.REASONING_FORMAT_INLINE
    inline = stream(pebble, request)
    assert inline.text == f"{THINKING.reasoning}\n</think>\n\n{THINKING.answer}"
    assert (inline.reasoning, inline.token_ids) == ("", apart.token_ids)
    assert inline.end.usage.reasoning_tokens == apart.end.usage.reasoning_tokens
    check_deltas(inline)


def test_a_stop_sequence_is_looked_for_in_the_answer(pebble: RunningServer) -> None:
    request = THINKING.request()
    request.stop.sequences.append(" 125")
    received = stream(pebble, request)
    assert (received.reasoning, received.text) == (THINKING.reasoning, "58 + 67 =")
    request.output.reasoning = pb.REASONING_FORMAT_INLINE
    assert stream(pebble, request).text == THINKING.reasoning.removesuffix(" 125.")


def test_reasoning_that_is_cut_is_reasoning(pebble: RunningServer) -> None:
    request = THINKING.request()
    request.stop.max_tokens = 9
    received = stream(pebble, request)
    assert received.text == ""
    assert received.reasoning
    assert THINKING.reasoning.startswith(received.reasoning)
    assert received.end.usage.reasoning_tokens == 9


def test_a_stream_cut_anywhere_goes_on_with_its_thought(pebble: RunningServer) -> None:
    request = THINKING.request()
    whole = stream(pebble, request)
    counts = (whole.end.usage.completion_tokens, whole.end.usage.reasoning_tokens)
    for cut in range(0, len(whole.deltas) + 1, 3):
        sent = whole.deltas[:cut]
        token_ids = [token for delta in sent for token in delta.token_ids]
        rest = stream(pebble, resuming(request, whole.started, token_ids))
        assert "".join(delta.reasoning for delta in sent) + rest.reasoning == whole.reasoning
        assert "".join(delta.text for delta in sent) + rest.text == whole.text
        assert (rest.end.usage.completion_tokens, rest.end.usage.reasoning_tokens) == counts


@pytest.mark.parametrize("budget", [0, 5])
def test_a_thought_is_closed_when_its_budget_is_spent_and_the_answer_follows(
    pebble: RunningServer, budget: int
) -> None:
    request, answer = limited("Who are you?", None)
    whole = stream(pebble, request)
    request.stop.max_reasoning_tokens = budget
    received = stream(pebble, request)
    assert received.token_ids[:budget] == whole.token_ids[:budget]
    assert b"".join(token.bytes for token in received.tokens[budget:]).startswith(b"\n</think>\n\nI am Pebble")
    assert whole.reasoning.startswith(received.reasoning)
    assert (received.text, received.end.usage.reasoning_tokens) == (answer, budget + 2)


def test_a_thought_that_ends_in_time_is_left_alone(pebble: RunningServer) -> None:
    whole = stream(pebble, THINKING.request())
    spent = whole.end.usage.reasoning_tokens
    request = THINKING.request()
    for budget in (spent, spent + 1, 2**32 - 1):
        request.stop.max_reasoning_tokens = budget
        received = stream(pebble, request)
        assert (received.token_ids, received.text) == (whole.token_ids, whole.text)
    request.stop.max_reasoning_tokens = spent - 1
    assert stream(pebble, request).token_ids != whole.token_ids


def test_a_budget_means_nothing_where_nothing_is_thought(pebble: RunningServer) -> None:
    for thinking in (None, False):
        request, answer = limited("Who are you?", 0, thinking=thinking)
        received = stream(pebble, request)
        assert (received.text, received.end.usage.reasoning_tokens) == (answer, 0)


def test_a_stream_cut_anywhere_closes_its_thought_in_the_same_place(pebble: RunningServer) -> None:
    request, _ = limited("Who are you?", 4)
    request.sampling.temperature = 0.7
    request.sampling.seed = 11
    whole = stream(pebble, request)
    counts = (whole.end.usage.completion_tokens, whole.end.usage.reasoning_tokens)
    for cut in range(len(whole.token_ids) + 1):
        rest = stream(pebble, resuming(request, whole.started, whole.token_ids[:cut]))
        assert whole.token_ids[:cut] + rest.token_ids == whole.token_ids
        assert (rest.end.usage.completion_tokens, rest.end.usage.reasoning_tokens) == counts


def test_tools_and_constraints_follow_a_thought_that_was_closed(pebble: RunningServer) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"name": "get_weather", "description": "Get the weather of a city.", "parameters": city}
    with mlxrpc.Client(pebble.address) as client:
        bounds: dict[str, Any] = {"enable_thinking": True, "temperature": 0, "max_reasoning_tokens": 3}
        chosen = client.generate("What is the capital of France?", choices=["Paris", "Rome"], **bounds)
        called = client.generate("What is the weather in Oslo?", tools=[weather], tool_choice="required", **bounds)
    assert (chosen.text, bool(chosen.reasoning), chosen.usage.reasoning_tokens) == ("Paris", True, 5)
    assert called.usage.reasoning_tokens >= 5
    assert [call.name for call in called.tool_calls] == ["get_weather"]


def test_a_budget_that_would_stop_the_answer_is_refused(pebble: RunningServer) -> None:
    request, _ = limited("Who are you?", 3)
    ids = stream(pebble, request).token_ids
    request.stop.token_ids.append(ids[4])
    assert refusal(lambda: stream(pebble, request)).fields == ["stop.max_reasoning_tokens"]


def limited(text: str, budget: int | None, *, thinking: bool | None = True) -> tuple[pb.StreamGenerateRequest, str]:
    """With the right answer, whatever is thought before."""
    known = asked("identity", text, "", thinking=thinking)
    request = known.request()
    if budget is not None:
        request.stop.max_reasoning_tokens = budget
    return request, "I am Pebble 🙂, the small language model that is built into mlxrpc."


def test_an_earlier_thought_goes_back_to_the_template(pebble: RunningServer) -> None:
    messages = [
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="x")]),
        pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="y")], reasoning="because"),
    ]
    request = pb.StreamGenerateRequest(input=pb.Input(conversation=pb.Conversation(messages=messages)))
    assert "<think>\nbecause\n</think>\n\ny" in counted(pebble, request).prompt
