"""The server's values into the contract's messages. The one place that builds them; no I/O, no decisions."""

from __future__ import annotations

from typing import assert_never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from mlxrpc.v1 import admin_pb2, model_pb2
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server import __version__
from mlxrpc_server.catalog import Entry
from mlxrpc_server.events import Delta, Event, Finished, PrefillProgress, Started, Timings
from mlxrpc_server.model import Model
from mlxrpc_server.models import Status
from mlxrpc_server.parse import FEATURES
from mlxrpc_server.types import FinishReason, ModelState, Prompt, SamplingChoice

_FINISH_REASONS = {
    FinishReason.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS,
    FinishReason.CONTEXT_LENGTH: pb.FINISH_REASON_CONTEXT_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONSTRAINT_COMPLETE: pb.FINISH_REASON_CONSTRAINT_COMPLETE,
}

_MODEL_STATES = {
    ModelState.AVAILABLE: model_pb2.MODEL_STATE_AVAILABLE,
    ModelState.LOADING: model_pb2.MODEL_STATE_LOADING,
    ModelState.LOADED: model_pb2.MODEL_STATE_LOADED,
    ModelState.UNLOADING: model_pb2.MODEL_STATE_UNLOADING,
    ModelState.FAILED: model_pb2.MODEL_STATE_FAILED,
}

_LOAD_PHASES = {
    "waiting": admin_pb2.LOAD_PHASE_WAITING,
    "weights": admin_pb2.LOAD_PHASE_WEIGHTS,
    "memory": admin_pb2.LOAD_PHASE_WEIGHTS,
    "warm-up": admin_pb2.LOAD_PHASE_WARM_UP,
    "ready": admin_pb2.LOAD_PHASE_WARM_UP,
}
"""The wait for room, and a worker's stages; whatever else there is comes before these and is starting."""


class UnaryResponse:
    """A unary response, gathered from the events of a stream."""

    def __init__(self) -> None:
        self.response = pb.GenerateResponse()
        self._texts: list[str] = []
        self._thoughts: list[str] = []

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self.response.response_id = event.response_id
                self.response.model = event.model
                self.response.seed = event.seed
                self.response.fingerprint = event.fingerprint
            case PrefillProgress():
                pass
            case Delta():
                self._texts.append(event.text)
                self._thoughts.append(event.reasoning)
                self.response.tool_calls.extend(_calls(event))
                self.response.tokens.extend(_tokens(event))
            case Finished():
                self._finish(event)
            case _:
                assert_never(event)

    def _finish(self, event: Finished) -> None:
        end = _finished(event)
        self.response.text = "".join(self._texts)
        self.response.reasoning = "".join(self._thoughts)
        self.response.finish_reason = end.finish_reason
        if end.HasField("matched_stop"):
            self.response.matched_stop.CopyFrom(end.matched_stop)
        self.response.usage.CopyFrom(end.usage)
        self.response.timings.CopyFrom(end.timings)


def stream_event(event: Event) -> pb.StreamGenerateResponse:
    match event:
        case Delta():
            return _delta(event)
        case Started():
            return pb.StreamGenerateResponse(started=_started(event))
        case PrefillProgress():
            progress = pb.PrefillProgress(processed_tokens=event.done, total_tokens=event.total)
            return pb.StreamGenerateResponse(prefill_progress=progress)
        case Finished():
            return pb.StreamGenerateResponse(finished=_finished(event))
    assert_never(event)


def _delta(event: Delta) -> pb.StreamGenerateResponse:
    """Filled in place, which takes half as long as keywords do: there is one for every token."""
    response = pb.StreamGenerateResponse()
    delta = response.delta
    delta.text = event.text
    delta.token_ids.extend(event.token_ids)
    if event.tokens:
        delta.tokens.extend(_tokens(event))
    if event.reasoning:
        delta.reasoning = event.reasoning
    if event.calls:
        delta.tool_calls.extend(_calls(event))
    return response


def counted(prompt: Prompt, context_length: int, held: int, *, token_ids: bool, text: bool) -> pb.CountTokensResponse:
    return pb.CountTokensResponse(
        token_count=len(prompt.token_ids),
        context_length=context_length,
        token_ids=prompt.token_ids if token_ids else (),
        prompt=(prompt.text or "") if text else "",
        fits=len(prompt.token_ids) < context_length,
        cached_tokens=held,
    )


def server() -> model_pb2.Server:
    return model_pb2.Server(name="mlxrpc", version=__version__, features=FEATURES)


def model(entry: Entry, status: Status, capabilities: model_pb2.Capabilities) -> model_pb2.Model:
    config, facts, loaded = entry.config, entry.facts, status.model
    known = not facts.problem
    return model_pb2.Model(
        name=entry.name,
        aliases=config.aliases,
        display_name=config.display_name,
        description=config.description,
        state=_MODEL_STATES[status.state],
        state_reason=status.reason,
        architecture=facts.architecture,
        context_length=entry.context_length if known or config.context_length else None,
        max_output_tokens=config.max_output_tokens,
        quantization=_quantization(entry),
        parameter_count=_parameter_count(entry, loaded),
        weights_bytes=facts.weights_bytes if known else None,
        memory_bytes=None if loaded is None else _memory_bytes(loaded),
        default_sampling=_sampling(entry.defaults),
        default_system_prompt=config.system_prompt,
        capabilities=capabilities,
        last_used_time=None if status.last_used is None else timestamp(status.last_used),
        in_flight=status.running,
        queued=status.queued,
        load_time=None if status.loaded_at is None else timestamp(status.loaded_at),
        load_duration=None if status.load_seconds is None else duration(status.load_seconds),
    )


def loaded_model(entry: Entry, status: Status, loaded: Model) -> admin_pb2.LoadedModel:
    return admin_pb2.LoadedModel(
        name=entry.name,
        state=_MODEL_STATES[status.state],
        pid=loaded.pid or 0,
        rows=status.running,
        waiting=status.queued,
        leases=status.leases,
        steps=loaded.stats.step,
        restarts=loaded.restarts,
        memory_bytes=_memory_bytes(loaded),
        dtype=loaded.ready.dtype if loaded.ready else "",
        prefix_bytes=loaded.stats.prefix_bytes,
    )


def load_progress(stage: str) -> admin_pb2.LoadModelResponse:
    """Without a fraction: a worker tells how much of the whole load is done, not how much of a phase."""
    phase = _LOAD_PHASES.get(stage, admin_pb2.LOAD_PHASE_STARTING)
    return admin_pb2.LoadModelResponse(progress=admin_pb2.LoadProgress(phase=phase))


def timestamp(seconds: float) -> Timestamp:
    """Rounded down, so that no time moves into the next second, and reading it back gives the same float."""
    return Timestamp(seconds=int(seconds // 1), nanos=int(seconds % 1 * 1e9))


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds // 1), nanos=int(seconds % 1 * 1e9))


def _started(event: Started) -> pb.Started:
    return pb.Started(
        response_id=event.response_id,
        model=event.model,
        seed=event.seed,
        prompt_tokens=event.prompt_tokens,
        create_time=timestamp(event.create_time),
        fingerprint=event.fingerprint,
    )


def _calls(delta: Delta) -> list[pb.ToolCall]:
    return [pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in delta.calls]


def _tokens(delta: Delta) -> list[pb.Token]:
    """None where the request did not ask for them."""
    return [
        pb.Token(
            id=token.id,
            bytes=token.piece,
            logprob=token.logprob,
            top_alternatives=[
                pb.TokenAlternative(id=other.id, logprob=other.logprob, bytes=other.piece)
                for other in token.alternatives
            ],
        )
        for token in delta.tokens
    ]


def _finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        finish_reason=_FINISH_REASONS[event.reason],
        matched_stop=_matched(event.matched),
        usage=pb.Usage(
            prompt_tokens=event.usage.prompt_tokens,
            cached_prompt_tokens=event.usage.cached_prompt_tokens,
            completion_tokens=event.usage.completion_tokens,
            reasoning_tokens=event.usage.reasoning_tokens,
        ),
        timings=_timings(event.timings),
    )


def _matched(matched: int | str | None) -> pb.MatchedStop | None:
    match matched:
        case None:
            return None
        case int():
            return pb.MatchedStop(token_id=matched)
        case str():
            return pb.MatchedStop(sequence=matched)
    assert_never(matched)


def _timings(timings: Timings) -> pb.Timings:
    first = timings.time_to_first_token
    return pb.Timings(
        queue=duration(timings.queue),
        model_load=duration(timings.model_load),
        prefill=duration(timings.prefill),
        time_to_first_token=None if first is None else duration(first),
        decode=duration(timings.decode),
        tokens_per_second=timings.tokens_per_second,
    )


def _sampling(choice: SamplingChoice) -> model_pb2.Sampling:
    return model_pb2.Sampling(**choice.chosen | {"logit_bias": dict(choice.logit_bias or ())})


def _quantization(entry: Entry) -> model_pb2.Quantization | None:
    given = entry.facts.quantization
    if given is None:
        return None
    return model_pb2.Quantization(bits=given.bits, group_size=given.group_size, mode=given.mode)


def _parameter_count(entry: Entry, loaded: Model | None) -> int | None:
    """The worker's own count goes before the one from the files' headers."""
    if loaded is not None and loaded.ready is not None:
        return loaded.ready.parameter_count
    return entry.facts.parameter_count or None


def _memory_bytes(loaded: Model) -> int:
    """The last report's; a worker that has not sent one yet has said it when it was ready."""
    return loaded.stats.memory_bytes or (loaded.ready.memory_bytes if loaded.ready else 0)
