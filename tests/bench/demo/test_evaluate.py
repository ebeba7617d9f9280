"""The evaluation: what it asks through the engine, what it counts as right, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from demo import evaluate
from demo.evaluate import SHIPPED, Form, Marked, sat, table, widen
from demo.exams import Answer, Exam, Item, Mark, exactly, exams, good_length, parsed, uses
from demo.tokenizer import EOS_IDS

VOCABULARY = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
EXAMS = exams(VOCABULARY)


def named(name: str) -> Exam:
    return next(exam for exam in EXAMS if exam.marks[0].name.startswith(name))


def test_items_are_the_same_at_every_run() -> None:
    assert [item.prompt for item in named("JSON").items(5)] == [item.prompt for item in named("JSON").items(5)]


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: exam.marks[0].name)
def test_the_expected_answer_is_right(exam: Exam) -> None:
    for item in exam.items(3):
        tokens = len(VOCABULARY.encode(item.expected).ids)
        start = "<think>\n" if item.prompt.endswith("<think>\n") else ""
        assert all(judge(Answer(item.expected.removeprefix(start), tokens)) for judge in item.judges)
        assert tokens < item.longest


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: exam.marks[0].name)
def test_no_answer_is_not_right(exam: Exam) -> None:
    for item in exam.items(3):
        assert not any(judge(Answer("", 0)) for judge in item.judges)


def test_a_call_counts_only_where_there_is_nothing_else() -> None:
    assert parsed('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>') == {"name": "a", "arguments": {}}
    assert parsed('Well: <tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>') is None
    assert parsed("<tool_call>\n{\n</tool_call>") is None


def test_stories_are_judged_by_words_and_length() -> None:
    assert uses(("fox", "bell"), "Two foxes rang a bell.")
    assert not uses(("ox",), "Two foxes.")
    assert [good_length(Answer("", tokens)) for tokens in (149, 150, 300, 301)] == [False, True, True, False]


def test_recall_lies_as_far_back_as_its_name_says() -> None:
    item = named("recall, 1,000").make(Random(1))
    assert 1_000 <= len(VOCABULARY.encode(item.prompt).ids) < 3_900


def marked(target: float | None, answers: list[str]) -> list[Marked]:
    item = Item("?", "yes", (exactly("yes"),))
    return [Marked(Exam((Mark("saying yes", target),), lambda _: item), [item] * 4, [Answer(a, 1) for a in answers])]


def test_the_table_says_what_misses_its_target() -> None:
    form = Form("8 bits", SHIPPED, 4)
    assert "| saying yes | 75 | 75.0 |" in table({form: marked(75, ["yes", "yes", "yes", "no"])})
    assert "| saying yes | 80 | 75.0 ✗ |" in table({form: marked(80, ["yes", "yes", "yes", "no"])})
    assert "| saying yes |  | 75.0 |" in table({form: marked(None, ["yes", "yes", "yes", "no"])})


def test_a_failing_answer_is_shown_beside_the_right_one() -> None:
    (line,) = marked(75, ["yes", "yes", "yes", "perhaps"])[0].failures(2)
    assert "'yes'" in line
    assert "'perhaps'" in line


def test_the_shipped_model_passes_through_the_engine_in_float32(tmp_path: Path) -> None:
    widen(SHIPPED, tmp_path)
    assert "quantization" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    taken = sat(Form("8 bits in float32", tmp_path, 2), [named("who"), named("adding")], VOCABULARY, rows=4)
    assert [list(each.scores().values()) for each in taken] == [[100.0]] * 2


def test_an_answer_ends_before_the_token_that_ended_it() -> None:
    ids = [*VOCABULARY.encode("Hello!").ids, EOS_IDS[0]]
    assert evaluate.answer(VOCABULARY, ids) == Answer("Hello!", len(ids) - 1)
