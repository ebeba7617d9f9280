"""What training writes and what a server's template renders are the same text."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from demo import mixture
from demo.conversation import CHAT_TEMPLATE, Conversation, Thinking, pieces, prompt, template_messages

seeds = st.integers(0, 2**32)


def composed(seed: int) -> Conversation:
    """As a server sees it: a thought is there only where one was asked for."""
    made = mixture.conversation(Random(seed))
    if made.thinking in {Thinking.ON, Thinking.ASKED}:
        return made
    return replace(made, turns=tuple(replace(turn, reasoning="") for turn in made.turns))


def asked(made: Conversation) -> Conversation:
    return replace(made, turns=made.turns[:-1])


def rendered(made: Conversation) -> str:
    chosen: dict[str, Any] = {}
    if made.thinking in {Thinking.ON, Thinking.OFF}:
        chosen["enable_thinking"] = made.thinking is Thinking.ON
    texts: Any = render_jinja_template(
        conversations=[template_messages(made)],
        tools=[dict(tool) for tool in made.tools] or None,
        chat_template=CHAT_TEMPLATE,
        add_generation_prompt=True,
        **chosen,
    )
    return str(texts[0][0])


@settings(max_examples=150)
@given(seeds)
def test_the_template_renders_the_prompt(seed: int) -> None:
    made = asked(composed(seed))
    assert rendered(made) == prompt(made)


@settings(max_examples=150)
@given(seeds)
def test_the_last_answer_is_learned_behind_its_prompt(seed: int) -> None:
    made = composed(seed)
    written = pieces(made)
    last = max(place for place, piece in enumerate(written) if piece.learned)
    assert "".join(piece.text for piece in written[:last]) == prompt(asked(made))
    assert written[last].text.endswith(made.turns[-1].text + "<|im_end|>")


@settings(max_examples=100)
@given(seeds)
def test_only_what_the_model_says_is_learned(seed: int) -> None:
    made = composed(seed)
    learned = [piece.text for piece in pieces(made) if piece.learned]
    said = [turn.text for turn in made.turns if turn.role == "assistant"]
    assert all(text.endswith(answer + "<|im_end|>") for text, answer in zip(learned, said, strict=True))
