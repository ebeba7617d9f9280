"""The composed data: the same from a seed everywhere, true, without contradictions, and without what is held out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import mixture
from demo.architectures import PEBBLE
from demo.conversation import pieces
from demo.facts import CAPITALS, CONTINENTS, ELEMENTS, OPPOSITES
from demo.plots import PLOTS
from demo.rows import Recipe, batch
from demo.skills import recall
from demo.skills.exchange import Compose, Exchange
from demo.skills.identity import identity
from demo.skills.knowledge import UNKNOWN, facts, unknown
from demo.skills.letters import letters, reversing, spelling, upper_casing
from demo.skills.numbers import arithmetic, comparing, counting, worked
from demo.skills.records import records
from demo.skills.stories import Teller, stories
from demo.skills.talk import UNCLEAR, repeating, talk
from demo.skills.tools import tools
from demo.words import UNSEEN, WORDS

BENCH = Path(mixture.__file__).parents[1]
DIGEST = """
import hashlib, sys
from pathlib import Path
from demo.rows import Recipe, batch
rows = batch(Recipe(Path(sys.argv[1]), 5, 4096), int(sys.argv[2]))
print(hashlib.sha256(rows.tobytes()).hexdigest())
"""
seeds = st.integers(0, 2**32)


def said(made: Exchange) -> tuple[str, str]:
    return made.turns[0].content, made.turns[1].text


# The same everywhere


@pytest.mark.parametrize("number", [1, 2], ids=["short rows", "long rows"])
def test_a_batch_is_identical_in_every_process(number: int) -> None:
    program = [sys.executable, "-c", DIGEST, str(PEBBLE / "tokenizer.json"), str(number)]
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    others = [subprocess.check_output(program, cwd=BENCH, env=each, text=True).strip() for each in environments]
    rows = batch(Recipe(PEBBLE / "tokenizer.json", 5, 4096), number)
    assert others == [hashlib.sha256(rows.tobytes()).hexdigest()] * 2


# Held out

HOLDING_OUT: tuple[Compose, ...] = (
    identity,
    arithmetic,
    counting,
    comparing,
    facts,
    unknown,
    spelling,
    reversing,
    upper_casing,
    repeating,
    records,
    stories,
    tools,
)


@pytest.mark.parametrize("compose", HOLDING_OUT, ids=lambda compose: compose.__name__)
def test_no_question_held_out_is_trained_on(compose: Compose) -> None:
    draw = Random(1)
    trained = {compose(draw, False).turns[0].content for _ in range(3000)}
    asked = {compose(draw, True).turns[0].content for _ in range(300)}
    assert not asked & trained


def test_words_that_are_to_be_unseen_are_never_trained_on() -> None:
    draw = Random(2)
    text = "".join(piece.text for _ in range(1500) for piece in pieces(mixture.conversation(draw)))
    assert not set(UNSEEN) & set(re.findall(r"[a-z]+", text.lower()))


def test_words_that_are_to_be_unseen_are_real_and_belong_to_no_other_list() -> None:
    assert len(UNSEEN) >= 150
    assert not set(UNSEEN) & set(WORDS)


def test_no_question_has_two_answers() -> None:
    draw, answers = Random(3), defaultdict(set)
    sure = [skill for skill in mixture.SKILLS if skill is not stories]
    for _ in range(20_000):
        question, answer = said(draw.choice(sure)(draw, None))
        answers[question].add(answer)
    assert [question for question, found in answers.items() if len(found) > 1] == []


# True


@settings(max_examples=300)
@given(seeds, st.booleans())
def test_sums_are_right_and_so_is_their_working(seed: int, wanted: bool) -> None:
    made = arithmetic(Random(seed), wanted)
    question, answer = said(made)
    found = re.fullmatch(r"(\d+) ([+-]) (\d+) = (-?\d+)", answer)
    assert found
    a, b = int(found[1]), int(found[3])
    assert int(found[4]) == (a + b if found[2] == "+" else a - b)
    assert {found[1], found[3]} <= set(re.findall(r"\d+", question))
    assert made.turns[1].reasoning.endswith(f"it is {found[4]}.")


@given(st.integers(0, 999), st.integers(0, 999))
def test_digits_written_in_the_working_make_the_sum(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    for sign, result in (("+", a + b), ("-", a - b)):
        digits = "".join(reversed(re.findall(r"write (\d)", worked(a, sign, b))))
        carried = "1" if worked(a, sign, b).split(". So")[0].endswith("carry 1") else ""
        assert int(carried + digits) == result


@settings(max_examples=200)
@given(seeds)
def test_comparisons_are_right(seed: int) -> None:
    question, answer = said(comparing(Random(seed), None))
    numbers = [int(number) for number in re.findall(r"\d+", answer)]
    match re.findall(r"larger than|smaller than|equal|largest", answer)[0]:
        case "larger than":
            assert numbers[0] > numbers[1]
        case "smaller than":
            assert numbers[0] < numbers[1]
        case "largest":
            assert numbers[0] == max(map(int, re.findall(r"\d+", question)))
        case _:
            assert numbers[0] == numbers[1]


@settings(max_examples=200)
@given(seeds)
def test_counts_are_right(seed: int) -> None:
    question, answer = said(counting(Random(seed), None))
    numbers = [int(number) for number in re.findall(r"\d+", answer)]
    asked = [int(number) for number in re.findall(r"\d+", question)]
    if "there are" in answer:
        items = re.findall(r"([a-z]+) \d+", answer.split(": there")[0])
        assert numbers == [*range(1, len(items) + 1), len(items)]
        assert all(item in question for item in items)
    elif "comes" in answer:
        assert asked == [numbers[0]]
        assert numbers[1] - numbers[0] == (1 if answer.startswith("After") else -1)
    else:
        assert sorted(numbers) == list(range(min(asked), max(asked) + 1))


@settings(max_examples=200)
@given(seeds, st.booleans())
def test_letters_are_right(seed: int, wanted: bool) -> None:
    draw = Random(seed)
    question, answer = said(spelling(draw, wanted))
    assert answer.replace("-", "") in question
    question, answer = said(reversing(draw, wanted))
    spelt, turned, word = re.split(r" backwards is |: ", answer)
    assert spelt.replace("-", "") in question
    assert turned.replace("-", "") == word == spelt.replace("-", "")[::-1]
    question, answer = said(upper_casing(draw, wanted))
    assert answer == answer.upper()
    assert answer.lower() in question.lower()
    question, answer = said(letters(draw, wanted))
    if "letters" in answer:
        word = "".join(re.findall(r"([A-Za-z]) \d", answer))
        assert word in question
        assert answer.endswith(f": {len(word)} letters.")


@settings(max_examples=200)
@given(seeds)
def test_facts_are_those_of_the_tables(seed: int) -> None:
    _, answer = said(facts(Random(seed), None))
    if found := re.fullmatch(r"The capital of (.+) is (.+)\.", answer):
        assert CAPITALS[found[1]] == found[2]
    elif found := re.fullmatch(r"(.+) is the capital of (.+)\.", answer):
        assert CAPITALS[found[2]] == found[1]
    elif found := re.fullmatch(r"The chemical symbol of (.+) is (.+)\.", answer):
        assert ELEMENTS[found[1]] == found[2]
    elif found := re.fullmatch(r"The opposite of (.+) is (.+)\.", answer):
        assert OPPOSITES.get(found[1]) == found[2] or OPPOSITES[found[2]] == found[1]


def test_the_tables_agree_with_each_other() -> None:
    lands = [land for listed in CONTINENTS.values() for land in listed.split(", ")]
    assert len(lands) == len(set(lands))
    assert len(set(CAPITALS.values())) == len(CAPITALS)


@settings(max_examples=300)
@given(seeds)
def test_nothing_taught_is_among_the_unknown(seed: int) -> None:
    question, answer = said(unknown(Random(seed), None))
    assert answer == UNKNOWN
    assert not any(question.endswith(f"the capital of {land}?") for land in CAPITALS)


@settings(max_examples=200)
@given(seeds)
def test_records_hold_what_the_sentence_says(seed: int) -> None:
    question, answer = said(records(Random(seed), None))
    for field, value in json.loads(answer).items():
        assert field in question
        if field == "paid":
            assert ("has paid" in question) == value
        elif value is not None:
            assert str(value) in question


@settings(max_examples=200)
@given(seeds)
def test_what_was_told_is_what_is_recalled(seed: int) -> None:
    draw = Random(seed)
    secret = recall.secret(draw, None)
    told, answer = said(recall.telling(draw, secret))
    assert secret.key in told
    assert secret.value in told
    assert answer == f"I will remember: your {secret.key} is {secret.value}."
    assert said(recall.asking(draw, secret))[1] == f"Your {secret.key} is {secret.value}."


@settings(max_examples=200)
@given(seeds)
def test_calls_fit_the_schema_and_say_what_was_asked(seed: int) -> None:
    made = tools(Random(seed), None)
    question, call = made.turns[0].content, made.turns[1].call
    assert call
    schemas = [tool.get("function", tool) for tool in made.tools]
    (schema,) = [schema for schema in schemas if schema["name"] == call.name]
    assert list(call.arguments) == schema["parameters"]["required"]
    assert all(str(value).lower() in question.lower() for value in call.arguments.values())


@settings(max_examples=200)
@given(seeds)
def test_what_is_repeated_is_what_was_said(seed: int) -> None:
    question, answer = said(repeating(Random(seed), None))
    assert question.endswith(answer)


def test_an_empty_message_is_not_understood() -> None:
    draw = Random(4)
    answers = dict(said(talk(draw, None)) for _ in range(5000))
    assert answers[""] == answers[" "] == UNCLEAR
    assert answers["?"] != UNCLEAR


# Stories


@settings(max_examples=200)
@given(seeds, st.booleans())
def test_stories_use_all_their_words(seed: int, wanted: bool) -> None:
    made = stories(Random(seed), wanted)
    question, text = said(made)
    assert all(word in question and word in text for word in made.words)
    assert "{" not in text


def test_the_usual_story_is_the_same_for_the_same_words() -> None:
    words = ("fox", "lantern", "harbour")
    assert Teller(Random(1), 0).story(words) == Teller(Random(2), 0).story(words)


def test_other_words_give_another_story() -> None:
    draw = Random(5)
    made = [stories(draw, True) for _ in range(200)]
    told = {made.words: made.turns[1].content.split(". ") for made in made}
    assert len({sentences[0] for sentences in told.values()}) > 0.9 * len(told)
    assert len({" ".join(sentences[0].split()[:2]) for sentences in told.values()}) >= len(PLOTS)
    assert len({sentences[1] for sentences in told.values()}) > 0.5 * len(told)
