"""A stream that was cut goes on at another server, and nobody can tell from its text or its ids."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.asking import detail
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import (
    Received,
    cut,
    generate,
    inside_a_character,
    resuming,
    said,
    same_tokens,
    spelled,
    stream,
    streaming,
    streams,
)

Wish = Callable[[RunningServer], pb.StreamGenerateRequest]

LENGTH = 24


def seeded(_server: RunningServer) -> pb.StreamGenerateRequest:
    return streaming("안녕 Hello 😀", seed=4, max_tokens=LENGTH)


def greedy(_server: RunningServer) -> pb.StreamGenerateRequest:
    request = streaming("😀", seed=5, max_tokens=LENGTH)
    request.sampling.temperature = 0.0
    return request


def filtered(_server: RunningServer) -> pb.StreamGenerateRequest:
    request = streaming("e\u0301 ✨", seed=6, max_tokens=LENGTH)
    request.sampling.temperature = 1.5
    request.sampling.top_p = 0.9
    request.sampling.top_k = 200
    request.sampling.min_p = 0.001
    return request


def to_a_stop_sequence(server: RunningServer) -> pb.StreamGenerateRequest:
    """One that ends it near the end, begun and ended inside of tokens, and some that almost match before."""
    request = seeded(server)
    undisturbed = stream(server, request)
    text, tokens = undisturbed.text, undisturbed.tokens
    begin = len(spelled(tokens[: LENGTH - 6])) - 1
    request.stop.sequences.append(text[begin : begin + 8])
    request.stop.sequences.extend(text[place : place + 9] + "!" for place in range(0, begin - 9, 7))
    return request


def to_a_stop_token(server: RunningServer) -> pb.StreamGenerateRequest:
    request = seeded(server)
    tokens = stream(server, request).token_ids
    last = next(place for place in range(LENGTH - 6, LENGTH) if tokens[place] not in tokens[:place])
    request.stop.token_ids.append(tokens[last])
    return request


WISHES = [seeded, greedy, filtered, to_a_stop_sequence, to_a_stop_token]


@pytest.mark.parametrize("wish", WISHES)
def test_a_stream_goes_on_after_every_number_of_tokens(
    server: RunningServer, configured: RunningServer, wish: Wish
) -> None:
    request = wish(server)
    whole = stream(server, request)
    assert inside_a_character(whole.tokens), "no cut is inside a character"
    cuts = range(len(whole.tokens) + 1)
    resumed = streams(configured, (resuming(request, whole.started, whole.token_ids[:length]) for length in cuts))
    for length, rest in zip(cuts, resumed, strict=True):
        check_joined(server, request, whole, whole.tokens[:length], rest)
        assert rest.started.prompt_tokens == whole.started.prompt_tokens
        assert rest.started.create_time == whole.started.create_time
        assert rest.started.fingerprint == whole.started.fingerprint
        assert rest.started.response_id != whole.started.response_id


@pytest.mark.parametrize("wish", WISHES)
def test_a_stream_that_its_client_cut_goes_on_elsewhere(
    server: RunningServer, configured: RunningServer, wish: Wish
) -> None:
    request = wish(server)
    whole = stream(server, request)
    begun = list(cut(server, request, range(len(whole.deltas) + 1)))
    assert len({len(part.token_ids) for part in begun}) > 3, "the cuts are not at different places"
    resumed = streams(configured, (resuming(request, part.started, part.token_ids) for part in begun))
    for part, rest in zip(begun, resumed, strict=True):
        assert part.text == whole.text[: len(part.text)]
        check_joined(server, request, whole, part.tokens, rest)


def check_joined(
    server: RunningServer, request: pb.StreamGenerateRequest, whole: Received, had: list[pb.Token], rest: Received
) -> None:
    """All complete text of what a client had counts as received; the rest is what the undisturbed stream has behind it."""
    if not same_tokens(server, request, whole.token_ids, [*(token.id for token in had), *rest.token_ids]):
        return
    assert rest.text == whole.text[len(spelled(had)) :]
    assert rest.end.finish_reason == whole.end.finish_reason
    assert rest.end.matched_stop == whole.end.matched_stop
    assert rest.end.usage == whole.end.usage
    assert rest.started.seed == whole.started.seed


def test_the_stops_are_where_these_tests_need_them(server: RunningServer) -> None:
    """A match that begins and ends inside of tokens, behind tokens that were held back for others."""
    request = to_a_stop_sequence(server)
    stopped = stream(server, request)
    assert stopped.end.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert stopped.text != spelled(stopped.tokens), "the match begins with a token"
    assert len(stopped.tokens) > LENGTH // 2
    almost = [sequence for sequence in request.stop.sequences if sequence[:-1] in stopped.text]
    assert len(almost) > 1, "no text is held back and then sent"
    assert stream(server, to_a_stop_token(server)).end.finish_reason == pb.FINISH_REASON_STOP_TOKEN


def test_a_stream_can_be_cut_twice(server: RunningServer, configured: RunningServer) -> None:
    request = streaming("Hello", seed=None, max_tokens=LENGTH)
    (first,) = cut(server, request, [6])
    (second,) = cut(configured, resuming(request, first.started, first.token_ids), [6])
    have = [*first.token_ids, *second.token_ids]
    third = stream(server, resuming(request, second.started, have))
    request.sampling.seed = first.started.seed
    whole = stream(server, request)
    if same_tokens(server, request, whole.token_ids, [*have, *third.token_ids]):
        assert whole.text == first.text + second.text + third.text


def test_a_unary_call_resumes_too(server: RunningServer, configured: RunningServer) -> None:
    request = seeded(server)
    whole = stream(server, request)
    (length, *_) = inside_a_character(whole.tokens)
    answer = generate(configured, resuming(request, whole.started, whole.token_ids[:length]))
    if same_tokens(server, request, whole.token_ids[length:], [token.id for token in answer.tokens]):
        assert answer.text == whole.text[len(spelled(whole.tokens[:length])) :]
        assert answer.usage == whole.end.usage


@pytest.mark.parametrize("wish", [seeded, to_a_stop_token])
def test_nothing_comes_after_the_end(server: RunningServer, configured: RunningServer, wish: Wish) -> None:
    request = wish(server)
    whole = stream(server, request)
    again = resuming(request, whole.started, whole.token_ids)
    again.stream_options.prefill_progress = True
    rest = stream(configured, again)
    assert not rest.deltas
    assert not rest.progress
    assert rest.end.finish_reason == whole.end.finish_reason
    assert rest.end.usage == whole.end.usage
    assert not rest.end.timings.HasField("time_to_first_token")


def test_a_complete_stop_sequence_in_the_given_ids_is_the_end(server: RunningServer, configured: RunningServer) -> None:
    request = seeded(server)
    whole = stream(server, request)
    request.stop.sequences.append(spelled(whole.tokens[:9])[-4:])
    rest = stream(configured, resuming(request, whole.started, whole.token_ids[:9]))
    assert not rest.deltas
    assert rest.end.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert rest.end.usage.completion_tokens == 9


def new_ones(tokens: list[pb.Token]) -> list[int]:
    """The places of tokens that did not come before."""
    ids = [token.id for token in tokens]
    return [place for place in range(4, LENGTH - 4) if ids[place] not in ids[:place]]


def ended_at_once(server: RunningServer, request: pb.StreamGenerateRequest, whole: Received) -> pb.Finished:
    """What is answered to all of the ids, though they had been ended before the last."""
    rest = stream(server, resuming(request, whole.started, whole.token_ids))
    assert not rest.deltas
    assert rest.end.usage.completion_tokens == len(whole.token_ids)
    return rest.end


def test_a_stop_token_anywhere_in_the_given_ids_is_the_end(server: RunningServer, configured: RunningServer) -> None:
    request = seeded(server)
    request.stop.max_tokens = LENGTH + 8
    whole = stream(server, streaming("안녕 Hello 😀", seed=4, max_tokens=LENGTH))
    first, *_, last = new_ones(whole.tokens)
    request.stop.token_ids.extend([whole.token_ids[last], whole.token_ids[first]])
    end = ended_at_once(configured, request, whole)
    assert end.finish_reason == pb.FINISH_REASON_STOP_TOKEN
    assert end.matched_stop.token_id == whole.token_ids[first]


def test_a_stop_sequence_anywhere_in_the_given_ids_is_the_end(server: RunningServer, configured: RunningServer) -> None:
    request = seeded(server)
    request.stop.max_tokens = LENGTH + 8
    whole = stream(server, streaming("안녕 Hello 😀", seed=4, max_tokens=LENGTH))
    request.stop.sequences.append(whole.text[4:10])
    end = ended_at_once(configured, request, whole)
    assert end.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert end.matched_stop.sequence == whole.text[4:10]


@pytest.mark.parametrize("sequence_first", [False, True])
def test_of_two_ends_in_the_given_ids_the_first_holds(
    server: RunningServer, configured: RunningServer, sequence_first: bool
) -> None:
    request = seeded(server)
    request.stop.max_tokens = LENGTH + 8
    whole = stream(server, streaming("안녕 Hello 😀", seed=4, max_tokens=LENGTH))
    stop = new_ones(whole.tokens)[-1 if sequence_first else 0]
    request.stop.token_ids.append(whole.token_ids[stop])
    request.stop.sequences.append(whole.text[1:7] if sequence_first else whole.text[-6:])
    end = ended_at_once(configured, request, whole)
    assert end.matched_stop.WhichOneof("kind") == ("sequence" if sequence_first else "token_id")


def test_progress_counts_the_given_ids(server: RunningServer) -> None:
    request = streaming([token % 1000 for token in range(40)], max_tokens=12)
    whole = stream(server, request)
    again = resuming(request, whole.started, whole.token_ids[:10])
    again.stream_options.prefill_progress = True
    assert {(event.processed_tokens, event.total_tokens) for event in stream(server, again).progress} == {(50, 50)}


def test_another_models_stream_cannot_go_on_here(configured: RunningServer) -> None:
    request = streaming("Hello", max_tokens=4)
    begun = stream(configured, request)
    own = stream(configured, streaming("Hello", max_tokens=4, model="small"))
    assert own.started.fingerprint != begun.started.fingerprint
    for model, fingerprint in (("small", begun.started.fingerprint), ("", own.started.fingerprint), ("", "x" * 500)):
        again = resuming(request, begun.started, begun.token_ids[:2])
        again.model = model
        again.resume.fingerprint = fingerprint
        with pytest.raises(grpc.RpcError) as error:
            stream(configured, again)
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert detail(error.value, error_details_pb2.ErrorInfo).reason == "FINGERPRINT_MISMATCH"
        (violation,) = detail(error.value, error_details_pb2.PreconditionFailure).violations
        assert (violation.type, violation.subject) == ("FINGERPRINT_MISMATCH", "resume.fingerprint")


def test_a_template_prints_the_date_of_the_first_request(configured: RunningServer) -> None:
    asked = pb.Conversation(messages=[said("What day is it?")])
    request = streaming(asked, seed=8, max_tokens=12, model="dated")
    now = stream(configured, request).started
    past, later = (Timestamp(seconds=now.create_time.seconds - ago, nanos=500_000_000) for ago in (10**8, 10**7))
    whole, other = (stream(configured, at(request, now, time, [])) for time in (past, later))
    assert whole.started.create_time == past
    assert whole.token_ids != other.token_ids, "the date is not in the prompt"
    rest = stream(configured, at(request, now, past, whole.token_ids[:5]))
    assert [*whole.token_ids[:5], *rest.token_ids] == whole.token_ids


def at(
    request: pb.StreamGenerateRequest, started: pb.Started, time: Timestamp, token_ids: list[int]
) -> pb.StreamGenerateRequest:
    again = resuming(request, started, token_ids)
    again.resume.create_time.CopyFrom(time)
    return again


def test_the_seed_of_a_resumed_stream_is_the_first_ones(server: RunningServer) -> None:
    request = streaming("Hello", seed=3, max_tokens=8)
    whole = stream(server, request)
    again = resuming(request, whole.started, whole.token_ids[:4])
    again.sampling.ClearField("seed")
    assert stream(server, again).token_ids == whole.token_ids[4:]
    again.sampling.seed = 4
    with pytest.raises(grpc.RpcError) as error:
        stream(server, again)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail(error.value, error_details_pb2.BadRequest).field_violations
    assert violation.field == "sampling.seed"
