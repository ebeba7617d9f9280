"""Whether a prompt has begun the reasoning."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxrpc_server import demo
from mlxrpc_server.answer import budget_violations, budgeted
from mlxrpc_server.reasoning import LONGEST_TAIL, breaks, thought_of
from mlxrpc_server.sections import Markers, Thought
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.types import Conversation, Message, ModelName, Request, RequestId, Stop
from mlxrpc_server.vocabulary import Vocabulary
from tests.server.tokenizers import folder_with

MARKERS = Markers("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo.source())


def thought(tokenizer: Tokenizer, conversation: Conversation) -> Thought:
    prompt = tokenizer.prompt(conversation, 0.0)
    assert tokenizer.reasoning == MARKERS
    return thought_of(prompt.token_ids, tokenizer.vocabulary, MARKERS, continues=conversation.continues)


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, Thought.MAY_COME), (True, Thought.OPEN), (False, Thought.OVER)]
)
def test_the_template_opens_it_closes_it_or_leaves_it(
    tokenizer: Tokenizer, chosen: bool | None, expected: Thought
) -> None:
    for said in ("Hello", "What does <think> mean?", "a </think> b", "</think><think>"):
        assert thought(tokenizer, Conversation((Message("user", said),), enable_thinking=chosen)) is expected


@pytest.mark.parametrize(
    ("begun", "expected"),
    [("In Oslo", Thought.OVER), ("<think>\nWell,", Thought.OPEN), ("<think>\nWell\n</think>\n\nIn", Thought.OVER)],
)
def test_a_continued_message_has_begun_or_is_still_thought_about(
    tokenizer: Tokenizer, begun: str, expected: Thought
) -> None:
    messages = (Message("user", "Where?"), Message("assistant", begun))
    assert thought(tokenizer, Conversation(messages, continues=True)) is expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], Thought.MAY_COME),
        ([0, 3], Thought.MAY_COME),
        ([3, 1, 3], Thought.OPEN),
        ([1, 0, 3], Thought.MAY_COME),
        ([1, 3, 2], Thought.OVER),
        ([2, 1], Thought.OPEN),
        ([1, *[3] * (LONGEST_TAIL - 1)], Thought.OPEN),
    ],
)
def test_special_tokens_are_markers_or_the_beginning_of_the_message(ids: list[int], expected: Thought) -> None:
    vocabulary = Vocabulary([b"", b"", b"", b"a"], marks={0: "<|im_start|>", 1: "<think>", 2: "</think>"})
    assert thought_of(ids, vocabulary, MARKERS, continues=False) is expected


def asked(thinking: bool | None, stop: Stop) -> Request:
    conversation = Conversation((Message("user", "Why?"),), enable_thinking=thinking)
    return Request(RequestId("r"), ModelName("m"), conversation, stop=stop)


@pytest.mark.parametrize(("chosen", "start"), [(None, b"<think>"), (True, b""), (False, None)])
def test_a_budget_is_for_a_thought_that_is_open_or_may_come(
    tokenizer: Tokenizer, chosen: bool | None, start: bytes | None
) -> None:
    request = asked(chosen, Stop(max_reasoning_tokens=0))
    budget = budgeted(request, tokenizer, tokenizer.prompt(request.input, 0.0).token_ids)
    assert (budget and (budget.tokens, budget.start, budget.end)) == (
        None if start is None else (0, start, MARKERS.end.encode())
    )
    assert budgeted(asked(chosen, Stop()), tokenizer, [3]) is None


def test_a_thought_is_closed_as_the_template_closes_one(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.vocabulary.piece(token) for token in tokenizer.closing]
    assert (pieces[0], pieces[1], b"".join(pieces[2:])) == (b"\n", b"</think>", b"\n\n")


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("<think>Hm.</think>So.", ("", "")),
        ("<think>\nHm.\n</think>\n\nSo.<|im_end|>\n<think></think>\n", ("\n", "\n\n")),
        ("So.", ("", "")),
        ("</think> So.", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_line_breaks_around_a_marker_are_read_off_an_example(example: str, expected: tuple[str, str]) -> None:
    assert breaks(MARKERS.end, example) == expected


def test_a_template_that_refuses_the_example_leaves_the_bare_marker(tmp_path: Path) -> None:
    template = "{% if messages[1] %}{{ raise_exception('no') }}{% endif %}<think></think>"
    own = Tokenizer.load(folder_with(tmp_path, template, ("<think>", "</think>")))
    assert own.closing == own.encode("</think>", special=False)


def test_a_budget_that_cannot_be_kept_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    closing = tokenizer.closing[1]
    stopped = asked(True, Stop(token_ids=(closing,), max_reasoning_tokens=3))
    plain = Tokenizer.load(folder_with(tmp_path, "{{ messages[0].content }}"))
    for request, own, said in ((stopped, tokenizer, f"token {closing}"), (asked(True, Stop()), plain, "no reasoning")):
        (violation,) = budget_violations(request, own)
        assert violation.path == "stop.max_reasoning_tokens"
        assert said in violation.description
    assert budget_violations(asked(True, Stop(token_ids=(closing - 1,), max_reasoning_tokens=3)), tokenizer) == []
