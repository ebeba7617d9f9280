"""What comes back, and the record of a stream."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

import mlxrpc
from mlxrpc._results import Transcript
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from tests.client.fake_server import usual_events

# A field of a later contract: number 99, an empty message.
UNKNOWN_EVENT = pb.StreamGenerateResponse.FromString(b"\x9a\x06\x00")


def heard(*events: pb.StreamGenerateResponse) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.take(event)
    return transcript


def test_events_of_a_later_contract_are_ignored() -> None:
    started, *rest = usual_events(pb.StreamGenerateRequest())
    transcript = heard(UNKNOWN_EVENT, started, UNKNOWN_EVENT, *rest)
    transcript.end()
    assert transcript.text == "Hello from mlxrpc."


def test_an_end_without_finished_is_an_error() -> None:
    *events, _ = usual_events(pb.StreamGenerateRequest())
    with pytest.raises(mlxrpc.IncompleteStream, match="without saying how"):
        heard(*events).end()


def test_nothing_is_resumed_before_the_stream_has_started() -> None:
    assert Transcript().resumption() is None
    carried = pb.Resume(token_ids=[1], seed=2)
    assert Transcript(carried).resumption() == carried


def test_a_resumption_carries_on_what_was_resumed_before() -> None:
    started, first, second, *_ = usual_events(pb.StreamGenerateRequest())
    transcript = Transcript(pb.Resume(token_ids=[5, 6]))
    for event in (started, first, second):
        transcript.take(event)
    resumption = transcript.resumption()
    assert resumption is not None
    assert list(resumption.token_ids) == [5, 6, 11, 12]
    assert (resumption.seed, resumption.fingerprint) == (7, "print-1")
    assert resumption.create_time.seconds == 1000


def test_prefill_progress_is_handed_on() -> None:
    seen: list[pb.PrefillProgress] = []
    transcript = Transcript(on_prefill=seen.append)
    progress = pb.PrefillProgress(processed_tokens=1, total_tokens=2)
    assert transcript.take(pb.StreamGenerateResponse(prefill_progress=progress)) is None
    assert seen == [progress]


def test_a_finish_reason_reads_and_compares_as_a_word() -> None:
    completion = mlxrpc.Completion(pb.GenerateResponse(finish_reason=pb.FINISH_REASON_MAX_TOKENS))
    assert completion.finish_reason == "max_tokens"
    assert f"{completion.finish_reason}" == "max_tokens"


def test_a_finish_reason_of_a_later_contract_is_unspecified() -> None:
    later = pb.GenerateResponse.FromString(b"\x38\x63")  # field 7, value 99
    assert mlxrpc.Completion(later).finish_reason is mlxrpc.FinishReason.UNSPECIFIED


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(pb.MatchedStop(token_id=0), 0), (pb.MatchedStop(sequence="\n"), "\n"), (pb.MatchedStop(), None)],
)
def test_a_matched_stop_is_a_token_or_a_text(stop: pb.MatchedStop, expected: object) -> None:
    assert mlxrpc.Completion(pb.GenerateResponse(matched_stop=stop)).matched_stop == expected


def test_timings_are_seconds_and_unset_is_none() -> None:
    timings = mlxrpc.Timings(pb.Timings(prefill=Duration(seconds=1, nanos=500_000_000)))
    assert (timings.prefill, timings.queue, timings.time_to_first_token) == (1.5, 0.0, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (mlxrpc.FinishReason, pb.FinishReason, "FINISH_REASON_"),
        (mlxrpc.ModelState, model_pb2.ModelState, "MODEL_STATE_"),
    ],
)
def test_the_words_are_the_contracts(
    ours: type[mlxrpc.FinishReason | mlxrpc.ModelState], theirs: type[pb.FinishReason], prefix: str
) -> None:
    assert {f"{prefix}{each.name}" for each in ours} == set(theirs.keys())


def test_a_model_says_none_where_the_server_does_not_know() -> None:
    model = mlxrpc.Model(model_pb2.Model(name="demo"))
    assert (model.display_name, model.state, model.capabilities) == ("demo", "unspecified", frozenset())
    unknown = (model.context_length, model.max_output_tokens, model.quantization, model.parameter_count)
    assert {*unknown, model.weights_bytes, model.memory_bytes, model.last_used_time, model.load_seconds} == {None}


def test_a_model_says_what_it_can_do() -> None:
    model = mlxrpc.Model(
        model_pb2.Model(
            state=model_pb2.MODEL_STATE_LOADED,
            context_length=0,
            capabilities=model_pb2.Capabilities(tools=True, batching=True),
            load_duration=Duration(nanos=500_000_000),
        )
    )
    assert (model.state, model.context_length, model.load_seconds) == ("loaded", 0, 0.5)
    assert model.capabilities == {"tools", "batching"}
