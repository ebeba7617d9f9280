"""What the skills are measured by: held-out items with their right answers, and the targets.

It composes prompts as text and judges answers as text; it knows no model and no token ids but a vocabulary's counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tokenizers import Tokenizer

from demo import mixture
from demo.conversation import Conversation, Schema, Thinking, Turn, opened, prompt
from demo.skills import recall
from demo.skills.exchange import Compose
from demo.skills.identity import identity
from demo.skills.knowledge import facts, unknown
from demo.skills.letters import letters, reversing, spelling, upper_casing
from demo.skills.numbers import arithmetic, comparing, counting
from demo.skills.records import records
from demo.skills.stories import stories
from demo.skills.talk import repeating, talk
from demo.skills.tools import tools

SEED = 31
LONGEST_PROMPT = 3_900
THOUGHT = re.compile(r"\A<think>\n(?P<thought>.+?)\n</think>\n\n(?P<answer>.+)\Z", re.DOTALL)
STORY_LENGTH = (150, 300)


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: int
    """Without the one that ended it."""


Judge = Callable[[Answer], bool]


@dataclass(frozen=True, slots=True)
class Item:
    prompt: str
    expected: str
    judges: tuple[Judge, ...]
    """One for each mark of the exam."""
    longest: int = 160


@dataclass(frozen=True, slots=True)
class Mark:
    """A line of the table: how many of a hundred answers are to be right in one respect."""

    name: str
    target: float | None
    """None where the score only tells something."""

    def met(self, score: float) -> bool:
        return self.target is None or score >= self.target


@dataclass(frozen=True, slots=True)
class Exam:
    marks: tuple[Mark, ...]
    make: Callable[[Random], Item]

    def items(self, count: int) -> list[Item]:
        draw = Random(f"{SEED} {self.marks[0].name}")
        return [self.make(draw) for _ in range(count)]


def exams(vocabulary: Tokenizer) -> list[Exam]:
    return [
        exam("who it is, and where", 98, single(identity)),
        exam("adding and subtracting", 95, single(arithmetic)),
        exam("counting", 95, single(counting)),
        exam("comparing", 95, single(comparing)),
        exam("facts, asked in new ways", 98, single(facts)),
        exam("does not know", 90, single(unknown)),
        exam("spelling", 90, single(spelling)),
        exam("reversing", 90, single(reversing)),
        exam("upper-casing", 90, single(upper_casing)),
        exam("questions about letters", 90, single(letters)),
        exam("repeating emoji, Korean, codes", 90, single(repeating)),
        exam("small talk", 90, single(talk)),
        exam("recall within 1,000 tokens", 90, lambda draw: recalled(draw, vocabulary, 0, 1_000)),
        exam("recall, 1,000 to 2,000 back", 90, lambda draw: recalled(draw, vocabulary, 1_000, 2_000)),
        exam("recall, 2,000 to 3,000 back", 90, lambda draw: recalled(draw, vocabulary, 2_000, 3_000)),
        exam("JSON records", 95, single(records)),
        exam("tool calls", 90, tool_call),
        exam("answers from tools", 90, tool_answer),
        Exam((Mark("thinking, well formed", 95), Mark("thinking, right answer", 90)), thinking),
        Exam(
            (
                Mark("stories use the words", 90),
                Mark("stories of 150 to 300 tokens", 90),
                Mark("stories word for word", None),
            ),
            story,
        ),
    ]


def exam(name: str, target: float, make: Callable[[Random], Item]) -> Exam:
    return Exam((Mark(name, target),), make)


def exactly(expected: str) -> Judge:
    return lambda answer: answer.text == expected


def single(compose: Compose) -> Callable[[Random], Item]:
    """A held-out exchange: half of the time alone, else after a system prompt or other talk."""

    def make(draw: Random) -> Item:
        asked = compose(draw, True).turns
        return item(placed(draw, asked[:-1]), asked[-1].text)

    return make


def item(made: Conversation, expected: str) -> Item:
    return Item(prompt(made), expected, (exactly(expected),))


def placed(draw: Random, turns: tuple[Turn, ...]) -> Conversation:
    if draw.random() < 0.5:
        return Conversation(turns)
    before = [mixture.any_exchange(draw) for _ in range(draw.choice((0, 1, 2)))]
    return Conversation(mixture.joined(before) + turns, mixture.system(draw))


def recalled(draw: Random, vocabulary: Tokenizer, low: int, high: int) -> Item:
    """A held-out fact among up to two others; between telling and asking lie `low` to `high` tokens."""

    def length(made: Conversation) -> int:
        return len(vocabulary.encode(prompt(made)).ids)

    while True:
        secrets = mixture.distinct(draw, draw.choice((1, 2, 3)), wanted=True)
        told = [recall.telling(draw, secret) for secret in secrets]
        other = mixture.filler(draw, draw.randint(low, high) * 7 // 2)
        asked = recall.asking(draw, secrets[0]).turns
        made = Conversation(mixture.joined([*told, *other]) + asked[:-1])
        since = Conversation(mixture.joined([*told[1:], *other]) + asked[:-1])
        if low <= length(since) < high and length(made) < LONGEST_PROMPT:
            return item(made, asked[-1].text)


def tool_call(draw: Random) -> Item:
    used = tools(draw, True)
    call = used.turns[1].call
    if call is None:
        raise ValueError("the second turn of a tool conversation is a call")
    wanted = {"name": call.name, "arguments": dict(call.arguments)}
    made = with_tools(draw, used.turns[:1], used.tools)
    return Item(prompt(made), used.turns[1].text, (lambda answer: parsed(answer.text) == wanted,))


def parsed(text: str) -> Any:
    """The call in an answer that is nothing but a call."""
    found = re.fullmatch(r"<tool_call>\n(.+)\n</tool_call>", text)
    try:
        return json.loads(found[1]) if found else None
    except ValueError:
        return None


def tool_answer(draw: Random) -> Item:
    used = tools(draw, True)
    return item(with_tools(draw, used.turns[:-1], used.tools), used.turns[-1].text)


def with_tools(draw: Random, turns: tuple[Turn, ...], offered: tuple[Schema, ...]) -> Conversation:
    return replace(placed(draw, turns), tools=offered)


THINKABLE = (arithmetic, counting, comparing, facts, spelling, reversing, upper_casing, records)


def thinking(draw: Random) -> Item:
    """Asked to think by the template or in words."""
    asked = draw.choice(THINKABLE)(draw, True).turns
    kind = draw.choice((Thinking.ON, Thinking.ASKED))
    made = mixture.thought_about(draw, placed(draw, asked[:-1]), kind)
    expected = f"<think>\n{asked[-1].reasoning}\n</think>\n\n{asked[-1].text}"

    def thought(answer: Answer) -> re.Match[str] | None:
        return THOUGHT.match(opened(kind) + answer.text)

    def right(answer: Answer) -> bool:
        found = thought(answer)
        return found is not None and found["answer"] == asked[-1].text

    return Item(prompt(made), expected, (lambda answer: thought(answer) is not None, right), 320)


def story(draw: Random) -> Item:
    told = stories(draw, True)
    text = told.turns[-1].text
    judges = (lambda answer: uses(told.words, answer.text), good_length, exactly(text))
    return Item(prompt(placed(draw, told.turns[:-1])), text, judges, 400)


def uses(words: Sequence[str], text: str) -> bool:
    return all(re.search(rf"\b{re.escape(word)}", text) for word in words)


def good_length(answer: Answer) -> bool:
    return STORY_LENGTH[0] <= answer.tokens <= STORY_LENGTH[1]
