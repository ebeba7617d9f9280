"""What comes back from a generation: a view of the response, and the record of a stream. Pure: knows no channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import grpc
from google.protobuf.duration_pb2 import Duration

from mlxrpc._errors import IncompleteStream
from mlxrpc.v1 import inference_pb2 as pb

Delta = pb.Delta
OnPrefill = Callable[[pb.PrefillProgress], None]


class FinishReason(StrEnum):
    """Why a generation ended; also a plain str: `completion.finish_reason == "max_tokens"`."""

    UNSPECIFIED = "unspecified"  # a reason that this version of the client does not know
    STOP_TOKEN = "stop_token"
    STOP_SEQUENCE = "stop_sequence"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LENGTH = "context_length"
    TOOL_CALLS = "tool_calls"
    CONSTRAINT_COMPLETE = "constraint_complete"


_FINISH_REASONS = {pb.FinishReason.Value(f"FINISH_REASON_{each.name}"): each for each in FinishReason}


class Timings:
    """Where the time went, in seconds."""

    def __init__(self, proto: pb.Timings) -> None:
        self.proto = proto

    @property
    def queue(self) -> float:
        return _seconds(self.proto.queue)

    @property
    def model_load(self) -> float:
        return _seconds(self.proto.model_load)

    @property
    def prefill(self) -> float:
        return _seconds(self.proto.prefill)

    @property
    def time_to_first_token(self) -> float | None:
        """None: there was no new token."""
        given = self.proto.HasField("time_to_first_token")
        return _seconds(self.proto.time_to_first_token) if given else None

    @property
    def decode(self) -> float:
        return _seconds(self.proto.decode)

    @property
    def tokens_per_second(self) -> float:
        return self.proto.tokens_per_second

    def __repr__(self) -> str:
        return f"Timings(prefill={self.prefill:.3f}, decode={self.decode:.3f}, tokens_per_second={self.tokens_per_second:.1f})"


class Completion:
    """A whole completion; `str()` is its text. A view of `proto`, which has every field of the contract."""

    def __init__(self, proto: pb.GenerateResponse, token_ids: Sequence[int] | None = None) -> None:
        self.proto = proto
        self._token_ids = token_ids

    @property
    def text(self) -> str:
        return self.proto.text

    @property
    def reasoning(self) -> str:
        return self.proto.reasoning

    @property
    def tool_calls(self) -> Sequence[pb.ToolCall]:
        return self.proto.tool_calls

    @property
    def tokens(self) -> Sequence[pb.Token]:
        """The tokens with bytes and log-probabilities, where `return_token_ids` or `logprobs` asked for them."""
        return self.proto.tokens

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated ids: always after a stream; after generate() where `return_token_ids` or `logprobs` asked."""
        if self._token_ids is not None:
            return tuple(self._token_ids)
        return tuple(token.id for token in self.proto.tokens)

    @property
    def finish_reason(self) -> FinishReason:
        return _FINISH_REASONS.get(self.proto.finish_reason, FinishReason.UNSPECIFIED)

    @property
    def matched_stop(self) -> int | str | None:
        """The token id or the sequence that ended the generation; None: neither did."""
        stop = self.proto.matched_stop
        match stop.WhichOneof("kind"):
            case "token_id":
                return stop.token_id
            case "sequence":
                return stop.sequence
        return None

    @property
    def usage(self) -> pb.Usage:
        return self.proto.usage

    @property
    def timings(self) -> Timings:
        return Timings(self.proto.timings)

    @property
    def model(self) -> str:
        """The model that answered, by its own name."""
        return self.proto.model

    @property
    def seed(self) -> int:
        return self.proto.seed

    @property
    def response_id(self) -> str:
        return self.proto.response_id

    @property
    def fingerprint(self) -> str:
        return self.proto.fingerprint

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return (
            f"Completion({self.text!r}, finish_reason={self.finish_reason.value!r},"
            f" completion_tokens={self.usage.completion_tokens})"
        )


class Transcript:
    """What a stream has said so far. Fed with events; knows nothing of how they arrive."""

    def __init__(self, resumed: pb.Resume | None = None, on_prefill: OnPrefill | None = None) -> None:
        self.started: pb.Started | None = None
        self.finished: pb.Finished | None = None
        self._resumed = resumed
        self._on_prefill = on_prefill
        self._deltas: list[Delta] = []

    def take(self, event: pb.StreamGenerateResponse) -> Delta | None:
        """Records an event; the delta in it, if it is one. Unknown events are of a newer contract, and ignored."""
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
            case "prefill_progress":
                if self._on_prefill is not None:
                    self._on_prefill(event.prefill_progress)
            case "delta":
                self._deltas.append(event.delta)
                return event.delta
            case "finished":
                self.finished = event.finished
        return None

    def end(self) -> None:
        """The stream ended with status OK, which the contract allows only after `finished`."""
        if self.finished is None:
            raise IncompleteStream(
                "the stream ended without saying how: its text may be incomplete", grpc.StatusCode.INTERNAL
            )

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self._deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self._deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for delta in self._deltas for token_id in delta.token_ids)

    def completion(self) -> Completion:
        """The same as a unary call would have returned."""
        started, finished = self.started or pb.Started(), self.finished or pb.Finished()
        response = pb.GenerateResponse(
            response_id=started.response_id,
            model=started.model,
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=[call for delta in self._deltas for call in delta.tool_calls],
            tokens=[token for delta in self._deltas for token in delta.tokens],
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            timings=finished.timings,
            seed=started.seed,
            fingerprint=started.fingerprint,
        )
        if finished.HasField("matched_stop"):
            response.matched_stop.CopyFrom(finished.matched_stop)
        return Completion(response, self.token_ids)

    def resumption(self) -> pb.Resume | None:
        """What another server needs to go on from here. None: nothing was begun yet, so the request can simply be sent again."""
        if self.started is None:
            return self._resumed
        before = self._resumed.token_ids if self._resumed else ()
        return pb.Resume(
            token_ids=[*before, *self.token_ids],
            seed=self.started.seed,
            fingerprint=self.started.fingerprint,
            create_time=self.started.create_time,
        )


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
