"""Requests as tests send them, what they get back, and what the received tokens' bytes say on their own.

What it knows of the server is how a near-tie between two tokens is judged, and nothing else.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server.types import SamplingChoice
from tests import noise_model
from tests.end_to_end.running import RunningServer

TIMEOUT = 120.0
"""Seconds for one call: far above what any takes, so that only a failure meets it."""

MODEL = noise_model.NAME
VOCABULARY = 1280
"""The noise model's; ids below it are well formed."""
END_OF_MESSAGE = 1275
"""Its end-of-sequence token, <|im_end|>. Its weights are such that short runs never draw it."""


def prompt(given: str | Sequence[int] | pb.Conversation) -> pb.Input:
    match given:
        case str():
            return pb.Input(text=given)
        case pb.Conversation():
            return pb.Input(conversation=given)
        case _:
            return pb.Input(token_ids=pb.TokenIds(ids=given))


def said(text: str, role: pb.Role.ValueType = pb.ROLE_USER) -> pb.Message:
    return pb.Message(role=role, parts=[pb.Part(text=text)])


def streaming(
    given: str | Sequence[int] | pb.Conversation,
    seed: int | None = 1,
    max_tokens: int | None = 24,
    model: str = "",
) -> pb.StreamGenerateRequest:
    """A stream with its tokens in detail."""
    request = pb.StreamGenerateRequest(model=model, input=prompt(given), output=pb.Output(token_ids=True))
    request.stop.SetInParent()
    if seed is not None:
        request.sampling.seed = seed
    if max_tokens is not None:
        request.stop.max_tokens = max_tokens
    return request


def unary(request: pb.StreamGenerateRequest) -> pb.GenerateRequest:
    """The same as a unary request: the numbers of both are equal, save for stream_options."""
    copy = pb.StreamGenerateRequest()
    copy.CopyFrom(request)
    copy.ClearField("stream_options")
    return pb.GenerateRequest.FromString(copy.SerializeToString())


@dataclass
class Received:
    """A stream's events, in an order that the contract allows."""

    started: pb.Started = field(default_factory=pb.Started)
    progress: list[pb.PrefillProgress] = field(default_factory=list)
    deltas: list[pb.Delta] = field(default_factory=list)
    finished: pb.Finished | None = None

    @property
    def end(self) -> pb.Finished:
        assert self.finished is not None, "the stream was cut"
        return self.finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def tool_calls(self) -> list[pb.ToolCall]:
        return [call for delta in self.deltas for call in delta.tool_calls]

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def tokens(self) -> list[pb.Token]:
        return [token for delta in self.deltas for token in delta.tokens]

    def add(self, event: pb.StreamGenerateResponse) -> None:
        """started, progress*, delta*, finished: anything else fails here."""
        assert self.finished is None, "nothing comes after finished"
        kind = event.WhichOneof("event")
        assert (kind == "started") != bool(self.started.response_id), "started comes first, and once"
        match kind:
            case "started":
                assert event.started.response_id
                self.started = event.started
            case "prefill_progress":
                assert not self.deltas, "progress comes before deltas"
                self.progress.append(event.prefill_progress)
            case "delta":
                assert event.delta.token_ids, "a delta has tokens"
                self.deltas.append(event.delta)
            case "finished":
                self.finished = event.finished
            case _:
                raise AssertionError(f"an event of an unknown kind: {event}")


def stream(server: RunningServer, request: pb.StreamGenerateRequest) -> Received:
    """The whole of it."""
    return next(streams(server, [request]))


def streams(server: RunningServer, requests: Iterable[pb.StreamGenerateRequest]) -> Iterator[Received]:
    """All at once, each whole, in the order of the requests."""
    calls = [server.inference.StreamGenerate(request, timeout=TIMEOUT) for request in requests]
    for call in calls:
        received = Received()
        for event in call:
            received.add(event)
        assert received.finished is not None, "OK without finished"
        yield received


def cut(server: RunningServer, request: pb.StreamGenerateRequest, deltas: Iterable[int]) -> Iterator[Received]:
    """What clients have who go away after so many deltas each; all at once."""
    calls = [(server.inference.StreamGenerate(request, timeout=TIMEOUT), most) for most in deltas]
    for call, most in calls:
        received = Received()
        for event in call:
            received.add(event)
            if len(received.deltas) >= most:
                break
        call.cancel()
        yield received


def generate(server: RunningServer, request: pb.StreamGenerateRequest) -> pb.GenerateResponse:
    """The same request as a unary call."""
    return server.inference.Generate(unary(request), timeout=TIMEOUT)


def resuming(
    request: pb.StreamGenerateRequest, started: pb.Started, token_ids: Sequence[int]
) -> pb.StreamGenerateRequest:
    """The broken call's request again, and what its client knows."""
    again = pb.StreamGenerateRequest()
    again.CopyFrom(request)
    again.resume.token_ids.extend(token_ids)
    again.resume.seed = started.seed
    again.resume.fingerprint = started.fingerprint
    again.resume.create_time.CopyFrom(started.create_time)
    return again


def prompt_ids(server: RunningServer, request: pb.StreamGenerateRequest) -> list[int]:
    return list(counted(server, request).token_ids)


def counted(server: RunningServer, request: pb.StreamGenerateRequest) -> pb.CountTokensResponse:
    """The request's prompt, by CountTokens."""
    count = pb.CountTokensRequest(
        model=request.model,
        input=request.input,
        tools=request.tools,
        return_token_ids=True,
        return_prompt=True,
    )
    if request.HasField("template"):
        count.template.CopyFrom(request.template)
    return server.inference.CountTokens(count, timeout=TIMEOUT)


def same_tokens(
    server: RunningServer, request: pb.StreamGenerateRequest, expected: Sequence[int], actual: Sequence[int]
) -> bool:
    """Whether they are equal. Fails where they are not, unless a proven near-tie parts them."""
    if list(expected) == list(actual):
        return True
    from tests.same_tokens import assert_same_tokens

    given = {known.name: value for known, value in request.sampling.ListFields() if known.name != "seed"}
    sampling = SamplingChoice(**given).resolve(request.sampling.seed)
    assert_same_tokens(prompt_ids(server, request), sampling, expected, actual)
    return False


def spelled(tokens: Iterable[pb.Token]) -> str:
    """The complete characters of the tokens' bytes, by Python's own decoder; an unfinished one at the end is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(token.bytes for token in tokens))


def check_deltas(received: Received) -> None:
    """Each delta's text is exactly its tokens', and none but the last ends inside a character.

    Where there is reasoning apart, markers and the line breaks around them are in neither.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for delta in received.deltas:
        assert [token.id for token in delta.tokens] == list(delta.token_ids)
        assert not decoder.getstate()[0], "the delta before ended inside a character"
        spelled_out = decoder.decode(b"".join(token.bytes for token in delta.tokens))
        if received.reasoning:
            assert spelled_out.strip("\n").removesuffix("</think>").strip("\n") in delta.reasoning + delta.text
        else:
            assert spelled_out == delta.text


def inside_a_character(tokens: Sequence[pb.Token]) -> list[int]:
    """After how many of the tokens the text ends inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    for number, token in enumerate(tokens, 1):
        decoder.decode(token.bytes)
        if decoder.getstate()[0]:
            found.append(number)
    return found
