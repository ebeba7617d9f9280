"""Measures the skills on held-out items: `python -m demo.evaluate FOLDER`, with the folders that export wrote.

Greedy, in bf16, in 8 bits, and in 8 bits read as float32, as a CPU serves it. Prints a table, then failing answers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.utils import dequantize_model, load_model
from tokenizers import Tokenizer

from demo import mixture
from demo.conversation import Conversation, Thinking, Turn, opened, prompt
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
from demo.tokenizer import END_OF_TEXT_ID, EOS_IDS

SEED = 31
ROWS_TOKENS = 131_072
"""Prompt tokens generated from at once."""
THOUGHT = re.compile(r"\A<think>\n(?P<thought>.+?)\n</think>\n\n(?P<answer>.+)\Z", re.DOTALL)
STORY_LENGTH = (150, 300)

Judge = Callable[[str, int], bool]
"""Whether an answer, of so many tokens, is right."""


@dataclass(frozen=True, slots=True)
class Item:
    prompt: str
    expected: str
    judge: Judge
    longest: int = 160


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    target: float
    make: Callable[[Random], Item]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: int


def exactly(expected: str) -> Judge:
    return lambda text, _: text == expected


def measures(vocabulary: Tokenizer) -> list[Measure]:
    def lengths(low: int, high: int) -> Callable[[Random], Item]:
        return lambda draw: recalled(draw, vocabulary, low, high)

    return [
        Measure("who it is, and where", 98, single(identity)),
        Measure("adding and subtracting", 95, single(arithmetic)),
        Measure("counting", 95, single(counting)),
        Measure("comparing", 95, single(comparing)),
        Measure("facts, asked in new ways", 98, single(facts)),
        Measure("does not know", 90, single(unknown)),
        Measure("spelling", 90, single(spelling)),
        Measure("reversing", 90, single(reversing)),
        Measure("upper-casing", 90, single(upper_casing)),
        Measure("questions about letters", 90, single(letters)),
        Measure("repeating emoji, Korean, codes", 90, single(repeating)),
        Measure("small talk", 90, single(talk)),
        Measure("recall within 1,000 tokens", 90, lengths(0, 1_000)),
        Measure("recall, 1,000 to 2,000 back", 90, lengths(1_000, 2_000)),
        Measure("recall, 2,000 to 3,000 back", 90, lengths(2_000, 3_000)),
        Measure("JSON records", 95, single(records)),
        Measure("tool calls", 90, tool_call),
        Measure("answers from tools", 90, tool_answer),
        Measure("thinking, well formed", 95, lambda draw: thinking(draw, lambda _, found, __: bool(found))),
        Measure("thinking, right answer", 90, lambda draw: thinking(draw, answered)),
        Measure("stories use the words", 90, lambda draw: story(draw, uses_words)),
        Measure("stories of 150 to 300 tokens", 90, lambda draw: story(draw, good_length)),
    ]


# The items


def single(compose: Compose) -> Callable[[Random], Item]:
    """A held-out exchange: half of the time alone, else after a system prompt or other talk."""

    def make(draw: Random) -> Item:
        asked = compose(draw, True).turns
        return Item(prompt(placed(draw, asked[:-1])), asked[-1].text, exactly(asked[-1].text))

    return make


def placed(draw: Random, turns: tuple[Turn, ...]) -> Conversation:
    if draw.random() < 0.5:
        return Conversation(turns)
    before = [mixture.any_exchange(draw) for _ in range(draw.choice((0, 1, 2)))]
    return Conversation(mixture.joined(before) + turns, mixture.system(draw))


def recalled(draw: Random, vocabulary: Tokenizer, low: int, high: int) -> Item:
    """A held-out fact among up to two others; between telling and asking lie `low` to `high` tokens."""
    while True:
        secrets = mixture.distinct(draw, draw.choice((1, 2, 3)), wanted=True)
        told = [recall.telling(draw, secret) for secret in secrets]
        other = mixture.filler(draw, draw.randint(low, high) * 7 // 2)
        asked = recall.asking(draw, secrets[0]).turns
        made = Conversation(mixture.joined([*told, *other]) + asked[:-1])
        distance = len(vocabulary.encode(prompt(Conversation(mixture.joined([*told[1:], *other]) + asked[:-1]))).ids)
        if low <= distance < high and len(vocabulary.encode(prompt(made)).ids) < 3_900:
            return Item(prompt(made), asked[-1].text, exactly(asked[-1].text))


def tool_call(draw: Random) -> Item:
    used = tools(draw, True)
    call = used.turns[1].call
    if call is None:
        raise ValueError("the second turn of a tool conversation is a call")
    wanted = {"name": call.name, "arguments": dict(call.arguments)}
    return Item(
        prompt(with_tools(draw, used.turns[:1], used.tools)), used.turns[1].text, lambda text, _: parsed(text) == wanted
    )


def parsed(text: str) -> Any:
    """The call in an answer that is nothing but a call."""
    found = re.fullmatch(r"<tool_call>\n(.+)\n</tool_call>", text)
    try:
        return json.loads(found[1]) if found else None
    except ValueError:
        return None


def tool_answer(draw: Random) -> Item:
    used = tools(draw, True)
    return Item(
        prompt(with_tools(draw, used.turns[:-1], used.tools)), used.turns[-1].text, exactly(used.turns[-1].text)
    )


def with_tools(draw: Random, turns: tuple[Turn, ...], offered: tuple[Any, ...]) -> Conversation:
    return replace(placed(draw, turns), tools=offered)


THINKABLE = (arithmetic, counting, comparing, facts, spelling, reversing, upper_casing, records)


def thinking(draw: Random, judge: Callable[[str, re.Match[str] | None, str], bool]) -> Item:
    """Asked to think by the template or in words."""
    asked = draw.choice(THINKABLE)(draw, True).turns
    kind = draw.choice((Thinking.ON, Thinking.ASKED))
    made = mixture.thought_about(draw, placed(draw, asked[:-1]), kind)
    expected = f"<think>\n{asked[-1].reasoning}\n</think>\n\n{asked[-1].text}"
    start = opened(kind)
    return Item(prompt(made), expected, lambda text, _: judge(asked[-1].text, THOUGHT.match(start + text), text), 320)


def answered(expected: str, found: re.Match[str] | None, _: str) -> bool:
    return found is not None and found["answer"] == expected


def story(draw: Random, judge: Callable[[Sequence[str], str, int], bool]) -> Item:
    told = stories(draw, True)
    made = placed(draw, told.turns[:-1])
    return Item(prompt(made), ", ".join(told.words), lambda text, tokens: judge(told.words, text, tokens), 400)


def uses_words(words: Sequence[str], text: str, _: int) -> bool:
    return all(re.search(rf"\b{word}", text) for word in words)


def good_length(_: Sequence[str], __: str, tokens: int) -> bool:
    return STORY_LENGTH[0] <= tokens <= STORY_LENGTH[1]


# Generating


def answers(model: Any, vocabulary: Tokenizer, items: Sequence[Item]) -> list[Answer]:
    """In the order of the items; those of similar length are generated together."""
    prompts = [vocabulary.encode(item.prompt, add_special_tokens=False).ids for item in items]
    found: dict[int, Answer] = {}
    for group in groups(prompts):
        longest = max(items[place].longest for place in group)
        rows = greedy(model, [prompts[place] for place in group], longest)
        for place, row in zip(group, rows, strict=True):
            found[place] = Answer(vocabulary.decode(row, skip_special_tokens=False), len(row))
    return [found[place] for place in range(len(items))]


def groups(prompts: Sequence[list[int]]) -> Iterable[list[int]]:
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    group: list[int] = []
    for place in order:
        if group and (len(group) + 1) * len(prompts[place]) > ROWS_TOKENS:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def greedy(model: Any, prompts: list[list[int]], longest: int) -> list[list[int]]:
    width = max(map(len, prompts))
    padding = [width - len(row) for row in prompts]
    tokens = mx.array([[END_OF_TEXT_ID] * missing + row for missing, row in zip(padding, prompts, strict=True)])
    cache = [BatchKVCache(padding) for _ in model.layers]
    written: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(longest):
        chosen = mx.argmax(model(tokens, cache=cache)[:, -1], axis=-1)
        drawn: Any = chosen.tolist()
        for place, token in enumerate(drawn):
            if token in EOS_IDS:
                running.discard(place)
            elif place in running:
                written[place].append(token)
        if not running:
            break
        tokens = chosen[:, None]
    return written


# The table


def formats(folder: Path) -> Iterable[tuple[str, Any]]:
    yield "bf16", load_model(folder / "bf16")[0]
    yield "8 bits", load_model(folder / "8bit")[0]
    wide = dequantize_model(load_model(folder / "8bit")[0])
    wide.update(tree_map(lambda array: array.astype(mx.float32), wide.parameters()))
    yield "8 bits in float32", wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--only", help="a part of a format's name")
    parser.add_argument("--skill", default="", help="a part of a skill's name")
    parser.add_argument("--failures", type=int, default=4)
    parser.add_argument("--results", type=Path, help="where to write the table, after each format")
    parser.add_argument("--stories", type=Path, help="where to write twenty stories")
    choices = parser.parse_args()
    vocabulary = Tokenizer.from_file(str(choices.folder / "8bit" / "tokenizer.json"))
    asked = [(each, items(each, choices.items)) for each in measures(vocabulary) if choices.skill in each.name]
    scores: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    report = ""
    for name, model in formats(choices.folder):
        if choices.only and choices.only not in name:
            continue
        begin = time.monotonic()
        scores[name], failed, told = scored(model, vocabulary, asked, choices.failures)
        failures = failures or failed
        if choices.stories:
            choices.stories.write_text("\n\n".join(told[:20]) + "\n", encoding="utf-8")
        report = f"{table([each for each, _ in asked], scores)}\n\n## Failing answers\n\n" + "\n".join(failures) + "\n"
        if choices.results:
            choices.results.write_text(report, encoding="utf-8")
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(report)


def items(measure: Measure, count: int) -> list[Item]:
    draw = Random(f"{SEED} {measure.name}")
    return [measure.make(draw) for _ in range(count)]


def scored(
    model: Any, vocabulary: Tokenizer, asked: Sequence[tuple[Measure, list[Item]]], shown: int
) -> tuple[dict[str, float], list[str], list[str]]:
    """The scores, failing answers, and the stories."""
    every = [item for _, found in asked for item in found]
    given = iter(answers(model, vocabulary, every))
    scores: dict[str, float] = {}
    failed: list[str] = []
    told: list[str] = []
    for measure, found in asked:
        right = [
            (item, answer, item.judge(answer.text, answer.tokens)) for item, answer in zip(found, given, strict=False)
        ]
        scores[measure.name] = 100 * sum(good for *_, good in right) / len(right)
        bad = [(item, answer) for item, answer, good in right if not good]
        failed += [failure(measure, item, answer) for item, answer in bad[:shown]]
        if measure.name.startswith("stories use"):
            told = [f"[{item.expected}] {answer.text}" for item, answer, _ in right]
    return scores, failed, told


def failure(measure: Measure, item: Item, answer: Answer) -> str:
    return f"- {measure.name}: {item.prompt[-160:]!r}\n    expected {item.expected!r}\n    got      {answer.text!r}"


def table(asked: Sequence[Measure], scores: dict[str, dict[str, float]]) -> str:
    lines = ["| skill | target | " + " | ".join(scores) + " |", "| --- " * (2 + len(scores)) + "|"]
    for measure in asked:
        values = [
            f"{column[measure.name]:.1f}{'' if column[measure.name] >= measure.target else ' ✗'}"
            for column in scores.values()
        ]
        lines.append(f"| {measure.name} | {measure.target:g} | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
