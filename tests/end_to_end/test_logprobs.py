"""Log-probabilities as a client gets them: the model's own, one for each token, whatever happens to the stream."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.refusals import refusal
from tests.end_to_end.running import RunningServer, running_server
from tests.end_to_end.streams import (
    TIMEOUT,
    Received,
    check_deltas,
    generate,
    inside_a_character,
    prompt_ids,
    resuming,
    same_tokens,
    spelled,
    stream,
    streaming,
    streams,
)
from tests.same_tokens import judge

LENGTH = 24
TOLERANCE = 1e-3
"""Between a pass over the whole text and steps through it."""


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningServer]:
    """Whose worker a test may kill."""
    with running_server() as server:
        yield server


def asking(
    given: str | Sequence[int], logprobs: int, seed: int = 4, max_tokens: int = LENGTH
) -> pb.StreamGenerateRequest:
    request = streaming(given, seed=seed, max_tokens=max_tokens)
    request.output.ClearField("token_ids")
    request.output.logprobs = logprobs
    return request


def changed(given: str, logprobs: int) -> pb.StreamGenerateRequest:
    """Whose draws are far from the model's own distribution."""
    request = asking(given, logprobs)
    request.sampling.temperature = 1.5
    request.sampling.top_k = 50
    request.sampling.repetition_penalty = 1.3
    request.sampling.presence_penalty = 1.0
    request.sampling.frequency_penalty = 0.5
    request.sampling.logit_bias.update({300: 5.0, 301: -100.0})
    return request


WISHES = [
    asking("안녕 Hello 😀", 5),
    changed("Hello", 20),
    asking("😀", 0, seed=5),
    asking([5, 7, 900], 1, seed=6),
    changed("e\u0301 ✨", 3),
]


def own(prompt: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
    """The model's log-softmax at each token's place, by one pass over the whole text."""
    logits = judge().model(mx.array([[*prompt, *token_ids]]))[0, len(prompt) - 1 : -1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def check(prompt: Sequence[int], tokens: Sequence[pb.Token], top: int, had: Sequence[int] = ()) -> None:
    expected = own(prompt, [*had, *(token.id for token in tokens)])[len(had) :]
    for token, logprobs in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(logprobs[token.id], abs=TOLERANCE)
        told = [other.logprob for other in token.top_alternatives]
        assert told == pytest.approx(np.sort(logprobs)[::-1][:top], abs=TOLERANCE)
        assert told == pytest.approx([logprobs[other.id] for other in token.top_alternatives], abs=TOLERANCE)
        assert told == sorted(told, reverse=True)


def test_each_token_has_its_own_whoever_else_is_served(server: RunningServer) -> None:
    plain = streaming("Hello", seed=9, max_tokens=LENGTH)
    *received, beside = streams(server, [*WISHES, plain])
    for wish, got in zip(WISHES, received, strict=True):
        check_deltas(got)
        assert len(got.tokens) == LENGTH
        check(prompt_ids(server, wish), got.tokens, wish.output.logprobs)
    assert not any(token.HasField("logprob") or token.top_alternatives for token in beside.tokens)


def test_they_change_no_token(server: RunningServer) -> None:
    for wish in WISHES:
        plain = pb.StreamGenerateRequest()
        plain.CopyFrom(wish)
        plain.ClearField("output")
        without = stream(server, plain)
        assert not without.tokens
        assert same_tokens(server, wish, without.token_ids, stream(server, wish).token_ids)


def test_zero_is_the_tokens_own_alone_and_unset_is_none(server: RunningServer) -> None:
    request = asking("Hello", 0)
    tokens = stream(server, request).tokens
    assert all(token.HasField("logprob") and not token.top_alternatives for token in tokens)
    request.output.ClearField("logprobs")
    request.output.token_ids = True
    assert not any(token.HasField("logprob") for token in stream(server, request).tokens)


def test_a_unary_answer_has_the_streams(server: RunningServer) -> None:
    request = asking("안녕 Hello 😀", 5)
    streamed, answer = stream(server, request), generate(server, request)
    if same_tokens(server, request, streamed.token_ids, [token.id for token in answer.tokens]):
        assert [token.bytes for token in answer.tokens] == [token.bytes for token in streamed.tokens]
        check(prompt_ids(server, request), answer.tokens, 5)


def test_bytes_are_whole_where_characters_are_not(server: RunningServer) -> None:
    """For the alternatives as for the token itself: where it is one of them, it has the same bytes."""
    received = stream(server, asking("안녕 Hello 😀", 20))
    assert inside_a_character(received.tokens), "no token ends inside a character"
    assert spelled(received.tokens) == received.text
    pairs = [(token, other) for token in received.tokens for other in token.top_alternatives if other.id == token.id]
    assert pairs
    assert all((token.bytes, token.logprob) == (other.bytes, other.logprob) for token, other in pairs)


def test_a_resumed_stream_repeats_none(server: RunningServer, configured: RunningServer) -> None:
    request = changed("안녕 Hello 😀", 4)
    whole = stream(server, request)
    prompt, cuts = prompt_ids(server, request), range(LENGTH + 1)
    resumed = streams(configured, (resuming(request, whole.started, whole.token_ids[:length]) for length in cuts))
    for length, rest in zip(cuts, resumed, strict=True):
        assert len(rest.tokens) == len(rest.token_ids) == LENGTH - length
        check(prompt, rest.tokens, 4, whole.token_ids[:length])


def test_the_death_of_a_worker_loses_and_repeats_none(mortal: RunningServer) -> None:
    request = asking("안녕 Hello 😀", 5, max_tokens=200)
    call, received = mortal.inference.StreamGenerate(request, timeout=TIMEOUT), Received()
    while not received.deltas:
        received.add(next(call))
    os.kill(mortal.loaded().pid, signal.SIGKILL)
    for event in call:
        received.add(event)
    assert mortal.loaded().restarts == 1
    assert len(received.tokens) == 200
    check_deltas(received)
    check(prompt_ids(mortal, request), received.tokens, 5)


def test_the_tokens_of_a_cut_text_are_the_counted_ones(server: RunningServer) -> None:
    """A stop sequence that spans tokens: the one in which it begins is the last told."""
    request = asking("안녕 Hello 😀", 2)
    whole = stream(server, request)
    begin = len(spelled(whole.tokens[: LENGTH - 8])) - 1
    request.stop.sequences.append(whole.text[begin : begin + 6])
    stopped = stream(server, request)
    assert stopped.end.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert len(stopped.tokens) == stopped.end.usage.completion_tokens < LENGTH
    check(prompt_ids(server, request), stopped.tokens, 2)


def test_a_stop_token_has_one_and_no_bytes_as_an_alternative_either(server: RunningServer) -> None:
    request = asking("Hello", 20)
    token_ids = stream(server, request).token_ids
    last = next(place for place in range(4, LENGTH) if token_ids[place] not in token_ids[:place])
    request.stop.token_ids.append(token_ids[last])
    stopped = stream(server, request)
    assert stopped.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN
    assert stopped.tokens[-1].HasField("logprob")
    assert stopped.tokens[-1].bytes == b""
    silent = [
        other.bytes for token in stopped.tokens for other in token.top_alternatives if other.id == token_ids[last]
    ]
    assert set(silent) <= {b""}
    check(prompt_ids(server, request), stopped.tokens, 20)


def test_a_minimum_keeps_stop_tokens_from_being_drawn(server: RunningServer) -> None:
    """Each draw would have been one: the likeliest tokens of every place end the text."""
    request = asking("Hello", 20)
    request.sampling.temperature = 0.0
    likely = {other.id for token in stream(server, request).tokens for other in token.top_alternatives}
    request.stop.token_ids.extend(sorted(likely)[:256])
    assert len(stream(server, request).tokens) == 1
    request.stop.min_tokens = 10
    held = stream(server, request)
    assert set(request.stop.token_ids).isdisjoint(held.token_ids[:10])
    assert len(held.token_ids) > 10
    # What could not be drawn is as likely as ever to the model itself.
    check(prompt_ids(server, request), held.tokens, 20)
    rest = stream(server, resuming(request, held.started, held.token_ids[:7]))
    assert same_tokens(server, request, held.token_ids[7:], rest.token_ids)


def test_a_minimum_keeps_stop_sequences_from_matching(server: RunningServer) -> None:
    request = asking("안녕 Hello 😀", 0)
    whole = stream(server, request)
    early = spelled(whole.tokens[:6])[-2:]
    request.stop.sequences.append(early)
    assert stream(server, request).end.matched_stop.sequence == early
    request.stop.min_tokens = LENGTH
    received = stream(server, request)
    assert received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    if same_tokens(server, request, whole.token_ids, received.token_ids):
        assert received.text == whole.text


def test_a_minimum_above_what_the_model_leaves_is_refused(configured: RunningServer) -> None:
    """Without a max_tokens too: this model makes eight at most."""
    request = streaming("Hello", max_tokens=None, model="small")
    request.stop.min_tokens = 9
    answer = refusal(lambda: stream(configured, request))
    assert answer.fields == ["stop.min_tokens"]
    assert "8" in answer.violations[0].description
