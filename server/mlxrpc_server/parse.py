"""Requests as they arrive into requests as they are meant.

Every violation is collected into one InvalidRequest, by the field's path in the proto. Knows what the contract allows
and which of it this server offers; nothing of models, so whatever needs a vocabulary or a context is checked later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc_server import listing, parse_constraint, parse_prompt, parse_tools, ranges, types
from mlxrpc_server.faults import Faults
from mlxrpc_server.types import ModelName, RequestId

GenerationRequest = pb.GenerateRequest | pb.StreamGenerateRequest

FEATURES = (
    "cache",
    "constraint",
    "output",
    "resume",
    "sampling",
    "stop.max_reasoning_tokens",
    "stop.min_tokens",
    "stream_options",
    "template",
    "tools",
)
"""The optional fields that are honoured here; Server.features. The others are refused below."""

MAX_SEQUENCES = 16
MAX_SEQUENCE_LENGTH = 256
MAX_STOP_IDS = 256
MAX_LOGPROBS = 20
MAX_TENANT_LENGTH = 128
MAX_QUERY_LENGTH = 256
MAX_DELTA_TOKENS = 1024
MAX_DELTA_DELAY_NS = 10 * 10**9

_LAST_SECOND = 253_402_300_798
"""The last but one of the year 9999: later ones round up into a year that no calendar here has."""


@dataclass(frozen=True, slots=True)
class CountRequest:
    """A prompt to be counted, found well formed."""

    model: ModelName
    input: types.Input
    return_token_ids: bool
    return_prompt: bool


def generation(request: GenerationRequest, id: RequestId) -> types.Request:
    """One logic for both RPCs: a stream's request has its options in addition."""
    faults = Faults()
    parsed = types.Request(
        id=id,
        model=ModelName(request.model),
        input=parse_prompt.prompt(request, faults),
        sampling=_sampling(request.sampling, faults),
        seed=request.sampling.seed if request.sampling.HasField("seed") else None,
        stop=_stop(request.stop, faults),
        resume=_resume(request, faults) if request.HasField("resume") else None,
        token_details=_output(request.output, faults),
        logprobs=request.output.logprobs if request.output.HasField("logprobs") else None,
        prefill_progress=_wants_progress(request),
        coalescing=_coalescing(request, faults),
        tool_choice=parse_tools.choice(request, faults),
        constraint=parse_constraint.constraint(request.constraint, faults) if request.HasField("constraint") else None,
        inline_reasoning=request.output.reasoning == pb.REASONING_FORMAT_INLINE,
        cache=_cache(request.cache, faults),
    )
    faults.refuse_any()
    return parsed


def _cache(given: pb.Cache, faults: Faults) -> types.Cache:
    if len(given.tenant) > MAX_TENANT_LENGTH:
        faults.too_long("cache.tenant", given.tenant, MAX_TENANT_LENGTH)
    return types.Cache(given.tenant, given.bypass)


def count(request: pb.CountTokensRequest) -> CountRequest:
    faults = Faults()
    parsed = CountRequest(
        model=ModelName(request.model),
        input=parse_prompt.prompt(request, faults),
        return_token_ids=request.return_token_ids,
        return_prompt=request.return_prompt,
    )
    faults.refuse_any()
    return parsed


def list_models(request: pb.ListModelsRequest) -> listing.Page:
    faults = Faults()
    if request.page_size < 0:
        faults.add("page_size", f"{request.page_size} is negative")
    wanted = _filter(request.filter, faults)
    faults.refuse_any()
    after = listing.read_token(request.page_token, wanted)
    if after is None:
        faults.add("page_token", "is not one that this filter's previous page gave")
    faults.refuse_any()
    return listing.Page(listing.page_size(request.page_size), after or "", wanted)


def _sampling(given: model_pb2.Sampling, faults: Faults) -> types.SamplingChoice:
    values = {field.name: value for field, value in given.ListFields() if field.name in ranges.SAMPLING}
    for name, value in values.items():
        if value not in ranges.SAMPLING[name]:
            faults.add(f"sampling.{name}", f"{value:g} is not {ranges.SAMPLING[name]}")
    return types.SamplingChoice(**values, logit_bias=_biases(given, faults))


def _biases(given: model_pb2.Sampling, faults: Faults) -> types.Biases | None:
    """None where there is none: an empty map cannot be told from an unset one."""
    biases = tuple(sorted(given.logit_bias.items()))
    if len(biases) > ranges.MOST_BIASES:
        sentence = f"has {len(biases):,} entries; at most {ranges.MOST_BIASES:,} are allowed"
        faults.add("sampling.logit_bias", sentence)
    for token, bias in biases:
        if bias not in ranges.BIAS:
            faults.add(f"sampling.logit_bias[{token}]", f"{bias:g} is not {ranges.BIAS}")
    return biases or None


def _stop(given: pb.Stop, faults: Faults) -> types.Stop:
    max_tokens = given.max_tokens if given.HasField("max_tokens") else None
    if max_tokens == 0:
        faults.add("stop.max_tokens", "0 is not at least 1")
    if max_tokens is not None and given.min_tokens > max_tokens:
        faults.add("stop.min_tokens", f"{given.min_tokens:,} is more than max_tokens, {max_tokens:,}")
    _check_sequences(given.sequences, faults)
    if len(given.token_ids) > MAX_STOP_IDS:
        faults.add("stop.token_ids", f"has {len(given.token_ids):,} ids; at most {MAX_STOP_IDS} are allowed")
    return types.Stop(
        max_tokens=max_tokens,
        sequences=tuple(given.sequences),
        token_ids=tuple(given.token_ids),
        ignore_eos=given.ignore_eos,
        min_tokens=given.min_tokens,
        max_reasoning_tokens=given.max_reasoning_tokens if given.HasField("max_reasoning_tokens") else None,
    )


def _check_sequences(sequences: Sequence[str], faults: Faults) -> None:
    if len(sequences) > MAX_SEQUENCES:
        faults.add("stop.sequences", f"has {len(sequences):,} sequences; at most {MAX_SEQUENCES} are allowed")
    for place, sequence in enumerate(sequences):
        if not sequence:
            faults.add(f"stop.sequences[{place}]", "is empty; a sequence has 1 to 256 characters")
        elif len(sequence) > MAX_SEQUENCE_LENGTH:
            faults.too_long(f"stop.sequences[{place}]", sequence, MAX_SEQUENCE_LENGTH)


def _output(given: pb.Output, faults: Faults) -> bool:
    """Whether tokens are told in detail."""
    if given.logprobs > MAX_LOGPROBS:
        faults.add("output.logprobs", f"{given.logprobs} is not 0 to {MAX_LOGPROBS}")
    if given.reasoning not in pb.ReasoningFormat.values():
        faults.add("output.reasoning", f"{given.reasoning} is no format that this server knows")
    return given.token_ids or given.HasField("logprobs")


def _resume(request: GenerationRequest, faults: Faults) -> types.Resume:
    given = request.resume
    _check_resumed_seed(request, faults)
    if not given.fingerprint:
        faults.add("resume.fingerprint", "is required")
    if request.stop.HasField("max_tokens") and len(given.token_ids) > request.stop.max_tokens:
        sentence = f"has {len(given.token_ids):,} ids, more than max_tokens, {request.stop.max_tokens:,}"
        faults.add("resume.token_ids", sentence)
    return types.Resume(
        token_ids=tuple(given.token_ids),
        seed=given.seed,
        fingerprint=given.fingerprint,
        create_time=_create_time(given, faults),
    )


def _check_resumed_seed(request: GenerationRequest, faults: Faults) -> None:
    seed = request.resume.seed
    if not request.resume.HasField("seed"):
        faults.add("resume.seed", "is required")
    elif request.sampling.HasField("seed") and request.sampling.seed != seed:
        faults.add("sampling.seed", f"{request.sampling.seed} is neither unset nor equal to resume.seed, {seed}")


def _create_time(given: pb.Resume, faults: Faults) -> float:
    if not given.HasField("create_time"):
        faults.add("resume.create_time", "is required")
    elif not _is_a_time(given.create_time):
        faults.add("resume.create_time", "is not a time between the years 1970 and 9999")
    return given.create_time.seconds + given.create_time.nanos / 1e9


def _is_a_time(given: Timestamp) -> bool:
    return 0 <= given.seconds <= _LAST_SECOND and 0 <= given.nanos < 10**9


def _wants_progress(request: GenerationRequest) -> bool:
    return isinstance(request, pb.StreamGenerateRequest) and request.stream_options.prefill_progress


def _coalescing(request: GenerationRequest, faults: Faults) -> types.Coalescing:
    usual = types.Coalescing()
    if not isinstance(request, pb.StreamGenerateRequest):
        return usual
    given = request.stream_options
    min_tokens = given.min_delta_tokens if given.HasField("min_delta_tokens") else usual.min_tokens
    if not 1 <= min_tokens <= MAX_DELTA_TOKENS:
        faults.add("stream_options.min_delta_tokens", f"{min_tokens:,} is not 1 to {MAX_DELTA_TOKENS:,}")
    if not given.HasField("max_delta_delay"):
        return types.Coalescing(min_tokens, usual.max_delay)
    return types.Coalescing(min_tokens, _delay(given.max_delta_delay, faults))


def _delay(given: Duration, faults: Faults) -> float:
    nanoseconds = given.seconds * 10**9 + given.nanos
    if abs(given.nanos) >= 10**9 or given.seconds * given.nanos < 0:
        faults.add("stream_options.max_delta_delay", "is not a valid duration")
    elif not 0 < nanoseconds <= MAX_DELTA_DELAY_NS:
        sentence = f"{nanoseconds / 1e9:g} s is not above 0 and at most {MAX_DELTA_DELAY_NS / 1e9:g} s"
        faults.add("stream_options.max_delta_delay", sentence)
    return nanoseconds / 1e9


def _filter(given: pb.ListModelsFilter, faults: Faults) -> listing.Filter:
    known = set(model_pb2.ModelState.values()) - {model_pb2.MODEL_STATE_UNSPECIFIED}
    for place, state in enumerate(given.states):
        if state not in known:
            faults.add(f"filter.states[{place}]", f"{state} is no state that a model can be in")
    if len(given.query) > MAX_QUERY_LENGTH:
        faults.too_long("filter.query", given.query, MAX_QUERY_LENGTH)
    return listing.Filter(
        states=frozenset(given.states),
        words=frozenset(given.query.casefold().split()),
        max_size_bytes=given.max_size_bytes if given.HasField("max_size_bytes") else None,
        capabilities=listing.capability_names(given.capabilities),
    )
