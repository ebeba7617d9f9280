"""Whether a prompt has begun the reasoning."""

from __future__ import annotations

import pytest

from mlxrpc_server import demo
from mlxrpc_server.reasoning import LONGEST_TAIL, thought_of
from mlxrpc_server.sections import Markers, Thought
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.types import Conversation, Message
from mlxrpc_server.vocabulary import Vocabulary

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
