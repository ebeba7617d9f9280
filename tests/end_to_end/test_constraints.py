"""Constraints through the RPC: what is whole conforms, however it was sampled, cut, taken up again or thought about first."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import jsonschema
import pytest

import mlxrpc
from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.known import KNOWN
from tests.end_to_end.refusals import Refusal
from tests.end_to_end.running import RunningServer, running_server
from tests.end_to_end.streams import TIMEOUT, Received, cut, generate, resuming, stream, streaming, streams

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "é"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
}

SCHEMA = pb.Constraint(json_schema=json.dumps(RECORD))
REGEX = pb.Constraint(regex="[a-z]{3,12}-(안녕|hello){1,3}!")
GRAMMAR = pb.Constraint(grammar='start: sum\nsum: NUMBER ("+" NUMBER)+ "="\nNUMBER: /[1-9][0-9]{0,2}/')
CHOICES = pb.Constraint(choices=pb.Choices(texts=["red", "blue", "grün", "파랑"]))

(RECORD_QUESTION,) = [known for known in KNOWN if known.skill == "record"]
(THINKING,) = [known for known in KNOWN if known.skill == "thinking"]


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningServer]:
    """Whose worker the tests may kill."""
    with running_server() as server:
        yield server


def wish(
    constraint: pb.Constraint, seed: int = 1, max_tokens: int = 400, text: str = "Hello"
) -> pb.StreamGenerateRequest:
    request = streaming(text, seed, max_tokens)
    request.constraint.CopyFrom(constraint)
    return request


def conforms(constraint: pb.Constraint, text: str) -> bool:
    match constraint.WhichOneof("kind"):
        case "json_schema":
            return bool(jsonschema.Draft202012Validator(RECORD).is_valid(json.loads(text)))
        case "json_object":
            return isinstance(json.loads(text), dict)
        case "regex":
            return re.fullmatch(constraint.regex, text) is not None
        case "choices":
            return text in constraint.choices.texts
        case _:
            return re.fullmatch(r"[1-9][0-9]{0,2}(\+[1-9][0-9]{0,2})+=", text) is not None


def check(constraint: pb.Constraint, received: Received) -> None:
    reason = received.end.finish_reason
    assert reason in (
        pb.FINISH_REASON_CONSTRAINT_COMPLETE,
        pb.FINISH_REASON_STOP_TOKEN,
        pb.FINISH_REASON_MAX_TOKENS,
    )
    if reason != pb.FINISH_REASON_MAX_TOKENS:
        assert conforms(constraint, received.text)


@pytest.mark.parametrize("constraint", [SCHEMA, REGEX, GRAMMAR, CHOICES, pb.Constraint(json_object=pb.JsonObject())])
def test_noise_is_held_to_its_constraint(server: RunningServer, constraint: pb.Constraint) -> None:
    wishes = [wish(constraint, seed) for seed in range(12)]
    all_received = list(streams(server, wishes))
    for received in all_received:
        check(constraint, received)
    whole = [one for one in all_received if one.end.finish_reason != pb.FINISH_REASON_MAX_TOKENS]
    assert whole
    once = generate(server, wishes[0])
    assert (once.text, once.finish_reason) == (all_received[0].text, all_received[0].end.finish_reason)


def test_32_bound_streams_beside_free_ones_are_as_if_alone(server: RunningServer) -> None:
    kinds = [SCHEMA, REGEX, GRAMMAR, CHOICES]
    bound = [wish(kinds[number % 4], number, 120) for number in range(32)]
    free = [streaming("Hello", number, 40) for number in range(6)]
    crowd = list(streams(server, [*bound, *free]))
    for number, received in enumerate(crowd[:32]):
        check(kinds[number % 4], received)
    assert crowd[3].token_ids == stream(server, bound[3]).token_ids
    assert crowd[35].token_ids == stream(server, free[3]).token_ids


@pytest.mark.parametrize("constraint", [SCHEMA, REGEX])
def test_a_bound_stream_goes_on_after_every_number_of_tokens(server: RunningServer, constraint: pb.Constraint) -> None:
    request = wish(constraint, seed=3)
    whole = stream(server, request)
    cuts = range(len(whole.token_ids) + 1)
    resumed = streams(server, (resuming(request, whole.started, whole.token_ids[:length]) for length in cuts))
    for length, rest in zip(cuts, resumed, strict=True):
        assert whole.token_ids[:length] + rest.token_ids == whole.token_ids
        assert whole.text.endswith(rest.text)
        assert rest.end.finish_reason == whole.end.finish_reason


def test_bound_streams_survive_the_death_of_their_worker(mortal: RunningServer) -> None:
    kinds = [SCHEMA, REGEX, GRAMMAR, pb.Constraint(regex="([a-z ]{40,50}\n){9}")]
    wishes = [wish(kinds[number % 4], number, 600) for number in range(8)]
    expected = list(streams(mortal, wishes))
    calls = [mortal.inference.StreamGenerate(request, timeout=TIMEOUT) for request in wishes]
    disturbed = [Received() for _ in wishes]
    disturbed[3].add(next(calls[3]))
    disturbed[3].add(next(calls[3]))
    os.kill(mortal.loaded().pid, signal.SIGKILL)
    for call, received in zip(calls, disturbed, strict=True):
        for event in call:
            received.add(event)
    assert [received.text for received in disturbed] == [received.text for received in expected]


def test_a_stop_sequence_ends_a_bound_text_too(server: RunningServer) -> None:
    request = wish(pb.Constraint(regex="[ac]{2,5}b{3}[ac]"))
    request.stop.sequences.append("bb")
    received = stream(server, request)
    assert re.fullmatch("[ac]{2,5}", received.text)
    assert received.end.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE


def test_where_nothing_may_follow_the_end_of_sequence_is_not_waited_for(server: RunningServer) -> None:
    request = wish(CHOICES)
    for ignored in (False, True):
        request.stop.ignore_eos = ignored
        received = stream(server, request)
        assert received.end.finish_reason == pb.FINISH_REASON_CONSTRAINT_COMPLETE
        assert not received.end.HasField("matched_stop")
        assert received.end.usage.completion_tokens == len(received.token_ids)


def test_a_text_may_be_empty(server: RunningServer) -> None:
    received = stream(server, wish(pb.Constraint(regex="")))
    assert (received.text, received.token_ids) == ("", [])
    assert received.end.finish_reason == pb.FINISH_REASON_CONSTRAINT_COMPLETE


REFUSED = [
    (pb.Constraint(json_schema="{"), "constraint.json_schema", "is not JSON"),
    (pb.Constraint(json_schema='{"not": {}}'), "constraint.json_schema", "not"),
    (pb.Constraint(regex="("), "constraint.regex", "unclosed group"),
    (pb.Constraint(regex=r"(?<=a)b"), "constraint.regex", "look-around"),
    (pb.Constraint(grammar="start: start"), "constraint.grammar", "cannot progress"),
    (pb.Constraint(grammar="begin: x"), "constraint.grammar", ""),
    (pb.Constraint(choices=pb.Choices(texts=["a", ""])), "constraint.choices.texts[1]", "empty"),
]


def refusal(server: RunningServer, request: pb.StreamGenerateRequest) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        list(server.inference.StreamGenerate(request, timeout=TIMEOUT))
    return Refusal(raised.value)


@pytest.mark.parametrize(("constraint", "path", "part"), REFUSED)
def test_a_constraint_that_cannot_be_is_refused_by_its_path(
    server: RunningServer, constraint: pb.Constraint, path: str, part: str
) -> None:
    answer = refusal(server, wish(constraint))
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert answer.fields == [path]
    assert part in answer.violations[0].description


def test_a_resume_whose_tokens_break_the_constraint_is_refused(server: RunningServer) -> None:
    request = wish(REGEX)
    begun = stream(server, request)
    answer = refusal(server, resuming(request, begun.started, [7, 7, *begun.token_ids]))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["resume.token_ids"])


def test_what_no_stack_is_deep_enough_for_ends_nobody(server: RunningServer) -> None:
    chain = {f"k{n}": {"$ref": f"#/$defs/k{n + 1}"} for n in range(6000)}
    deep = pb.Constraint(json_schema=json.dumps({"$defs": chain, "$ref": "#/$defs/k0"}))
    assert refusal(server, wish(deep)).fields == ["constraint.json_schema"]
    rules = "start:r0\n" + "".join(f"r{n}:r{n + 1}\n" for n in range(4000)) + 'r4000:"x"'
    before = server.loaded()
    assert stream(server, wish(pb.Constraint(grammar=rules))).text == "x"
    assert server.loaded().restarts == before.restarts


def test_the_built_in_model_fills_a_record(pebble: RunningServer) -> None:
    fields = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}
    asked = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    request = RECORD_QUESTION.request()
    request.constraint.json_schema = json.dumps(asked)
    received = stream(pebble, request)
    assert json.loads(received.text) == json.loads(RECORD_QUESTION.answer)
    assert received.end.finish_reason == pb.FINISH_REASON_CONSTRAINT_COMPLETE


def test_what_is_thought_first_is_free(pebble: RunningServer) -> None:
    free = stream(pebble, THINKING.request())
    request = THINKING.request()
    request.constraint.regex = "[0-9+ ]+= [0-9]+"
    bound = stream(pebble, request)
    assert free.reasoning
    assert bound.reasoning == free.reasoning
    assert bound.text == free.text
    cuts = range(0, len(bound.token_ids), 5)
    resumed = streams(pebble, (resuming(request, bound.started, bound.token_ids[:length]) for length in cuts))
    for length, rest in zip(cuts, resumed, strict=True):
        assert bound.token_ids[:length] + rest.token_ids == bound.token_ids


def test_the_client_asks_for_constraints_by_name(pebble: RunningServer) -> None:
    with mlxrpc.Client(pebble.address) as client:
        given: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
        assert client.generate("Which colour?", choices=["red", "green"], **given).text in {"red", "green"}
        assert re.fullmatch("[a-z]{4}", client.generate("A word?", regex="[a-z]{4}", **given).text)
        whole = client.generate("Hello!", json_schema={"type": "boolean"}, **given)
        assert isinstance(json.loads(whole.text), bool)
        assert whole.finish_reason == mlxrpc.FinishReason.CONSTRAINT_COMPLETE
        with pytest.raises(mlxrpc.InvalidArgument, match="unclosed group"):
            client.generate("Hello!", regex="(")


def test_a_client_that_goes_away_leaves_no_row(server: RunningServer) -> None:
    endless = wish(pb.Constraint(regex="[a-z ]+"), max_tokens=3000)
    list(cut(server, endless, [0, 1, 3]))
    assert stream(server, wish(CHOICES)).end.finish_reason == pb.FINISH_REASON_CONSTRAINT_COMPLETE
