"""One prompt, asked for in every way: what a stream says, and that the unary answer says the same."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlxrpc.v1 import inference_pb2 as pb
from tests import noise_model
from tests.end_to_end.running import RunningServer
from tests.end_to_end.streams import (
    END_OF_MESSAGE,
    MODEL,
    TIMEOUT,
    VOCABULARY,
    Received,
    check_deltas,
    generate,
    inside_a_character,
    resuming,
    said,
    spelled,
    stream,
    streaming,
    streams,
)

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("안녕하세요 한국어ㄱㅏ각")
    | st.sampled_from("😀👍🏽👩‍💻🇰🇷❤️")
    | st.sampled_from("e\u0301\u0308\u20dda\u0327\u200d"),
    min_size=1,
    max_size=12,
)
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
CHUNKS = st.builds(
    pb.StreamOptions,
    prefill_progress=st.booleans(),
    min_delta_tokens=st.none() | st.integers(1, 8) | st.just(1024),
    max_delta_delay=st.none() | st.sampled_from([Duration(nanos=1), Duration(nanos=20_000_000), Duration(seconds=10)]),
)

# Every example is some calls of a real server; the same ones in every run, for each costs up to a second.
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@few
@given(prompt=TEXTS | IDS, seed=st.integers(0, 2**64 - 1), max_tokens=st.integers(1, 24), options=CHUNKS)
def test_a_stream_says_what_the_unary_answer_says(
    server: RunningServer, prompt: str | list[int], seed: int, max_tokens: int, options: pb.StreamOptions
) -> None:
    request = streaming(prompt, seed, max_tokens)
    request.stream_options.CopyFrom(options)
    received, answer = stream(server, request), generate(server, request)
    check_deltas(received)
    assert received.text == spelled(received.tokens) == answer.text
    assert received.token_ids == [token.id for token in answer.tokens]
    assert received.tokens == list(answer.tokens)
    assert received.started.seed == answer.seed == seed
    assert received.started.model == answer.model == MODEL
    assert received.started.fingerprint == answer.fingerprint != ""
    assert received.end.usage == answer.usage
    assert received.end.finish_reason == answer.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert received.started.prompt_tokens == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == len(answer.tokens) == max_tokens
    assert answer.usage.cached_prompt_tokens == answer.usage.reasoning_tokens == 0
    assert not answer.HasField("matched_stop")


def test_a_tokens_bytes_are_those_of_the_tokenizer(server: RunningServer) -> None:
    received = stream(server, streaming("안녕하세요 😀", seed=3, max_tokens=60))
    assert inside_a_character(received.tokens), "no token ended inside a character"
    tokenizer = Tokenizer.from_file(str(noise_model.folder() / "tokenizer.json"))
    whole = b"".join(token.bytes for token in received.tokens)
    assert tokenizer.decode(received.token_ids, skip_special_tokens=True) == whole.decode(errors="replace")


def test_an_unfinished_character_at_the_end_is_in_the_bytes_and_not_in_the_text(server: RunningServer) -> None:
    undisturbed = stream(server, streaming("Hello", seed=1, max_tokens=60))
    (length, *_) = inside_a_character(undisturbed.tokens)
    shorter = stream(server, streaming("Hello", seed=1, max_tokens=length))
    assert shorter.token_ids == undisturbed.token_ids[:length]
    assert "".join(token.bytes.decode(errors="replace") for token in shorter.tokens) != shorter.text
    assert shorter.text == spelled(shorter.tokens)
    assert shorter.deltas[-1].token_ids[-1] == undisturbed.token_ids[length - 1]


def test_tokens_are_told_in_detail_only_where_asked_for(server: RunningServer) -> None:
    request = streaming("Hello", max_tokens=8)
    request.ClearField("output")
    received, answer = stream(server, request), generate(server, request)
    assert len(received.token_ids) == 8
    assert not received.tokens
    assert not answer.tokens
    assert received.text == answer.text


@pytest.mark.parametrize("least", [2, 5, 1024])
def test_a_delta_waits_until_it_has_min_delta_tokens(server: RunningServer, least: int) -> None:
    request = streaming("Korean: 안녕", seed=5, max_tokens=40)
    undisturbed = stream(server, request)
    assert inside_a_character(undisturbed.tokens), "no token is ever held back"
    request.stream_options.min_delta_tokens = least
    request.stream_options.max_delta_delay.seconds = 10
    received = stream(server, request)
    check_deltas(received)
    assert received.token_ids == undisturbed.token_ids
    assert all(len(delta.token_ids) >= least for delta in received.deltas[:-1])
    assert len(received.deltas) <= 40 // least + 1


def test_progress_is_told_where_asked_for(server: RunningServer) -> None:
    request = streaming([token % 1000 for token in range(300)], max_tokens=2)
    assert not stream(server, request).progress
    request.stream_options.prefill_progress = True
    progress = stream(server, request).progress
    done = [event.processed_tokens for event in progress]
    assert done == sorted(set(done))
    assert done[-1] == 300
    assert {event.total_tokens for event in progress} == {300}


def test_every_kind_of_prompt_that_comes_to_the_same_ids_gives_the_same_text(server: RunningServer) -> None:
    conversation = pb.Conversation(
        messages=[
            said("짧게 답하세요.", pb.ROLE_SYSTEM),
            said("Hello 😀"),
            said("안녕", pb.ROLE_ASSISTANT),
            said("e\u0301?"),
        ]
    )
    request = pb.CountTokensRequest(
        input=pb.Input(conversation=conversation), return_token_ids=True, return_prompt=True
    )
    counted = server.inference.CountTokens(request, timeout=TIMEOUT)
    assert "Hello 😀" in counted.prompt
    received = [stream(server, streaming(kind)) for kind in (conversation, counted.prompt, list(counted.token_ids))]
    assert {(each.text, *each.token_ids) for each in received} == {(received[0].text, *received[0].token_ids)}
    assert {each.started.prompt_tokens for each in received} == {counted.token_count}


def test_enable_thinking_reaches_the_template(server: RunningServer) -> None:
    request = streaming(pb.Conversation(messages=[said("Hello")]))
    counted = stream(server, request).started.prompt_tokens
    request.template.enable_thinking = False
    assert stream(server, request).started.prompt_tokens > counted


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_a_seed_repeats(server: RunningServer, seed: int) -> None:
    first, second = (stream(server, streaming("Hello", seed)) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert first.started.seed == second.started.seed == seed
    assert stream(server, streaming("Hello", seed ^ 1)).token_ids != first.token_ids


def test_a_seed_that_nobody_gave_is_told_and_repeats(server: RunningServer) -> None:
    first, second = (stream(server, streaming("Hello", None)) for _ in range(2))
    assert first.started.seed != second.started.seed
    assert first.token_ids != second.token_ids
    assert stream(server, streaming("Hello", first.started.seed)).token_ids == first.token_ids
    answer = generate(server, streaming("Hello", None))
    assert stream(server, streaming("Hello", answer.seed)).text == answer.text


def test_temperature_zero_is_greedy_and_unset_is_not(server: RunningServer) -> None:
    greedy = [drawn(server, seed, temperature=0.0) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert drawn(server, 1) != greedy[0]
    assert drawn(server, 1) == drawn(server, 1, temperature=1.0)


@pytest.mark.parametrize(
    "setting", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-300}], ids=lambda it: next(iter(it))
)
def test_a_filter_that_leaves_one_candidate_is_greedy(server: RunningServer, setting: dict[str, float]) -> None:
    assert drawn(server, 7, **setting) == drawn(server, 7, temperature=0.0)


@pytest.mark.parametrize(
    "setting", [{"top_k": 40}, {"top_p": 0.5}, {"min_p": 0.2}, {"temperature": 5.0}], ids=lambda it: next(iter(it))
)
def test_a_setting_changes_what_is_drawn(server: RunningServer, setting: dict[str, float]) -> None:
    tokens = drawn(server, 7, **setting)
    assert tokens not in (drawn(server, 7), drawn(server, 7, temperature=0.0))


@pytest.mark.parametrize(
    "setting", [{"top_k": 0}, {"top_k": VOCABULARY}, {"top_k": 2**32 - 1}, {"top_p": 1.0}, {"min_p": 0.0}], ids=str
)
def test_a_filter_that_is_off_changes_nothing(server: RunningServer, setting: dict[str, float]) -> None:
    assert drawn(server, 7, **setting) == drawn(server, 7)


def drawn(server: RunningServer, seed: int, **sampling: float) -> list[int]:
    request = streaming("Hello", seed, max_tokens=16)
    for name, value in sampling.items():
        setattr(request.sampling, name, value)
    return stream(server, request).token_ids


# Stops


@pytest.fixture(scope="module")
def undisturbed(server: RunningServer) -> Received:
    received = stream(server, stopping())
    assert inside_a_character(received.tokens)
    return received


def stopping(*sequences: str) -> pb.StreamGenerateRequest:
    request = streaming("안녕 Hello 😀", seed=4, max_tokens=36)
    request.stop.sequences.extend(sequences)
    return request


def first_match(text: str, sequences: list[str]) -> tuple[int, str] | None:
    """By the contract's words: the first to be complete, and of several complete at one character the longest."""
    ends = (
        (text.find(sequence) + len(sequence), -len(sequence), sequence) for sequence in sequences if sequence in text
    )
    found = min(ends, default=None)
    return None if found is None else (found[0] - len(found[2]), found[2])


def tokens_until(tokens: list[pb.Token], begin: int) -> int:
    """How many tokens there are up to the one in which the character at `begin` begins."""
    said_by_then = b""
    for number, token in enumerate(tokens, 1):
        said_by_then += token.bytes
        if len(said_by_then.decode(errors="replace")) > begin:
            return number
    raise AssertionError("the text is shorter than that")


@settings(few, max_examples=15)
@given(data=st.data(), least=st.sampled_from([1, 1, 3, 1024]))
def test_a_stop_sequence_ends_the_text_where_it_begins(
    server: RunningServer, undisturbed: Received, data: st.DataObject, least: int
) -> None:
    text, tokens = undisturbed.text, undisturbed.tokens
    begins = st.integers(0, len(text) - 1)
    pieces = st.builds(lambda begin, length: text[begin : begin + length], begins, st.integers(1, 24))
    sequences = data.draw(st.lists(pieces | st.sampled_from(["\x00", text[-3:] + "x"]), min_size=1, max_size=4))
    request = stopping(*sequences)
    request.stream_options.min_delta_tokens = least
    received, answer = stream(server, request), generate(server, request)
    assert received.text == answer.text
    assert received.end.matched_stop == answer.matched_stop
    assert received.end.usage == answer.usage
    match = first_match(text, sequences)
    if match is None:
        assert received.text == text
        assert received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS
        return
    begin, sequence = match
    assert received.text == text[:begin]
    assert received.end.finish_reason == answer.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert received.end.matched_stop.sequence == sequence
    assert received.tokens == tokens[: tokens_until(tokens, begin)]
    assert received.end.usage.completion_tokens == len(received.tokens)


def test_text_that_might_become_a_stop_sequence_is_held_back_and_then_sent(
    server: RunningServer, undisturbed: Received
) -> None:
    text = undisturbed.text
    received = stream(server, stopping(text[2:] + "never"))
    assert received.text == text
    # All but the first characters wait for the end, since until then they might be the stop sequence.
    assert len(received.deltas[-1].text) >= len(text) - 2 - len(received.deltas[0].text)


def test_a_stop_token_ends_the_text_and_has_none(server: RunningServer, undisturbed: Received) -> None:
    tokens = undisturbed.tokens
    place = next(
        place for place in range(8, len(tokens)) if tokens[place].bytes and tokens[place] not in tokens[:place]
    )
    request = stopping()
    request.stop.token_ids.extend([tokens[place].id, 1279])
    received, answer = stream(server, request), generate(server, request)
    assert received.token_ids == [token.id for token in tokens[: place + 1]]
    assert received.text == answer.text == spelled(tokens[:place])
    assert not received.tokens[-1].bytes
    assert not answer.tokens[-1].bytes
    assert received.end.finish_reason == answer.finish_reason == pb.FINISH_REASON_STOP_TOKEN
    assert received.end.matched_stop.token_id == answer.matched_stop.token_id == tokens[place].id
    assert received.end.usage.completion_tokens == place + 1


def test_a_stop_token_at_max_tokens_is_a_stop_token(server: RunningServer, undisturbed: Received) -> None:
    tokens = undisturbed.tokens
    request = stopping()
    request.stop.max_tokens = 1
    request.stop.token_ids.append(tokens[0].id)
    received = stream(server, request)
    assert received.token_ids == [tokens[0].id]
    assert received.text == ""
    assert received.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_end_of_sequence_ends_the_text_unless_it_is_ignored(server: RunningServer, ignore_eos: bool) -> None:
    """A token of the model's own that ends the text comes in through a resume: by chance it would take forty thousand."""
    request = streaming("Hello", max_tokens=12)
    begun = stream(server, request)
    request.stop.ignore_eos = ignore_eos
    received = stream(server, resuming(request, begun.started, [*begun.token_ids[:4], END_OF_MESSAGE]))
    if ignore_eos:
        assert received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS
        assert len(received.token_ids) == 7
    else:
        assert received.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN
        assert received.end.matched_stop.token_id == END_OF_MESSAGE
        assert not received.deltas
    assert received.end.usage.completion_tokens == len(received.token_ids) + 5


# Lengths: the model `small` takes 48 tokens, gives at most 8 of them, and is greedy where nobody says otherwise.


@pytest.mark.parametrize(
    "prompt_tokens, tokens, reason",
    [
        (47, 1, pb.FINISH_REASON_CONTEXT_LENGTH),
        (41, 7, pb.FINISH_REASON_CONTEXT_LENGTH),
        (40, 8, pb.FINISH_REASON_MAX_TOKENS),
        (1, 8, pb.FINISH_REASON_MAX_TOKENS),
    ],
)
def test_without_max_tokens_the_context_or_the_model_ends_it(
    configured: RunningServer, prompt_tokens: int, tokens: int, reason: pb.FinishReason.ValueType
) -> None:
    request = streaming([5] * prompt_tokens, max_tokens=None, model="small")
    received, answer = stream(configured, request), generate(configured, request)
    assert len(received.token_ids) == answer.usage.completion_tokens == tokens
    assert received.end.finish_reason == answer.finish_reason == reason


def test_max_tokens_may_fill_the_context_to_its_last_place(configured: RunningServer) -> None:
    received = stream(configured, streaming([5] * 44, max_tokens=4, model="small"))
    assert len(received.token_ids) == 4
    assert received.end.finish_reason == pb.FINISH_REASON_MAX_TOKENS


def test_a_models_own_temperature_holds_where_none_is_given(configured: RunningServer) -> None:
    request = streaming("Hello", max_tokens=8, model="small")
    usual = stream(configured, request).token_ids
    request.sampling.temperature = 0.0
    assert stream(configured, request).token_ids == usual
    request.sampling.temperature = 1.0
    assert stream(configured, request).token_ids != usual


def test_a_models_system_prompt_goes_first_where_there_is_none(configured: RunningServer) -> None:
    without = pb.Conversation(messages=[said("Hi")])
    spelt_out = pb.Conversation(messages=[said("Be brief.", pb.ROLE_SYSTEM), said("Hi")])
    received = [stream(configured, streaming(given, max_tokens=8, model="small")) for given in (without, spelt_out)]
    assert received[0].token_ids == received[1].token_ids
    assert received[0].started.prompt_tokens == received[1].started.prompt_tokens


def test_an_answer_names_the_model_however_it_was_asked_for(configured: RunningServer) -> None:
    names = {"tiny": "small", "small": "small", "": MODEL}
    for asked, name in names.items():
        request = streaming("Hi", max_tokens=1, model=asked)
        assert stream(configured, request).started.model == generate(configured, request).model == name


def test_response_ids_are_unique(server: RunningServer) -> None:
    request = streaming("Hi", max_tokens=1)
    ids = [received.started.response_id for received in streams(server, [request] * 4)]
    ids += [generate(server, request).response_id for _ in range(2)]
    assert all(ids)
    assert len(set(ids)) == 6


def test_timings_are_of_this_call(server: RunningServer) -> None:
    one, many = (stream(server, streaming("Hi", max_tokens=tokens)).end.timings for tokens in (1, 8))
    for timings in (one, many):
        first = timings.time_to_first_token.ToNanoseconds()
        assert first >= timings.prefill.ToNanoseconds() > 0
        assert first >= timings.queue.ToNanoseconds()
    assert one.tokens_per_second == one.decode.ToNanoseconds() == 0
    assert many.tokens_per_second > 0
    assert many.decode.ToNanoseconds() > 0
