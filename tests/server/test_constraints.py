"""What callers may ask of a completion's form: taken as it is meant, or refused in a sentence, and never half."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from mlxrpc_server import constraints
from mlxrpc_server.constraints import Constraints, conforms, fault, grammar, json_rule, literal
from mlxrpc_server.deep import deep_thread
from mlxrpc_server.types import Constraint, ConstraintKind, RequestId

BYTES = LLTokenizer("byte", slices=[])

KINDS = ConstraintKind


def schema(content: Any) -> Constraint:
    return Constraint(KINDS.JSON_SCHEMA, content if isinstance(content, str) else json.dumps(content))


def accepts(constraint: Constraint, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar(constraint), log_level=0)
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


REFUSED = [
    (schema("{"), "is not JSON"),
    (schema("[]"), "neither an object nor true"),
    (schema("false"), "nothing is valid"),
    (schema('{"const": NaN}'), "NaN is no JSON value"),
    (schema('{"const": 1e400}'), "not JSON compliant"),
    (schema('{"a":' * 5000 + "1" + "}" * 5000), "nested too deeply"),
    (schema({"type": "sting"}), "Invalid type: sting"),
    (schema({"required": True}), "required"),
    (schema({"pattern": "("}), "unclosed group"),
    (schema({"not": {"type": "string"}}), '"not"'),
    (schema({"type": "array", "uniqueItems": True}), '"uniqueItems"'),
    (schema({"format": "zip-code"}), "Unknown format: zip-code"),
    (schema({"$ref": "#"}), "no text fulfils it"),
    (schema({"allOf": [{"type": "string"}, {"type": "number"}]}), "Unsatisfiable"),
    (schema({"$ref": "http://example.com/schema.json"}), "http://example.com"),
    (schema({"oneOf": [{"type": "string"}, {"minLength": 2}]}), "oneOf"),
    (schema({"minProperties": 2}), "minProperties is 2"),
    (schema({"items": {"minProperties": 3, "required": ["a"]}}), "minProperties is 3"),
    (schema({"const": ["a\x00b"]}), "control character"),
    (schema({"properties": {"a\x01": True}}), "control character"),
    (Constraint(KINDS.REGEX, "("), "unclosed group"),
    (Constraint(KINDS.REGEX, "a\\"), "backslash"),
    (Constraint(KINDS.REGEX, "(?=a)b"), "look-around"),
    (Constraint(KINDS.REGEX, r"(a)\1"), "backreferences"),
    (Constraint(KINDS.REGEX, r"[^\s\S]"), "no text fulfils it"),
    (Constraint(KINDS.REGEX, "a?" * 2000), "an expression in it is too complex"),
    (Constraint(KINDS.REGEX, "(?x) a\n b"), "without the flag x"),
    (Constraint(KINDS.GRAMMAR, "start: x"), "unknown name"),
    (Constraint(KINDS.GRAMMAR, 'first: "a"'), "no start rule"),
    (Constraint(KINDS.GRAMMAR, "start: start"), "no text fulfils it"),
    (Constraint(KINDS.GRAMMAR, 'start: "a'), "lexer error"),
    (Constraint(KINDS.GRAMMAR, 'start: <|im_end|> "a"'), "names tokens"),
    (Constraint(KINDS.GRAMMAR, "start: <[7]>"), "names tokens"),
    (Constraint(KINDS.GRAMMAR, 'start: %json { "format": "zip-code" }'), "Unknown format"),
]


@pytest.mark.parametrize(("constraint", "part"), REFUSED)
def test_what_cannot_be_honoured_is_refused_with_the_reason(constraint: Constraint, part: str) -> None:
    sentence = fault(constraint)
    assert part in sentence
    assert "\n" not in sentence
    assert len(sentence) <= constraints.SENTENCE


TAKEN = [
    (schema(True), "[1, {}]", ""),
    (schema({}), '"a"', "a"),
    (schema({"type": "object", "required": ["a"]}), '{"a": 1}', "{}"),
    (schema({"minProperties": 2, "required": ["a"]}), '{"a": 1, "b": 2}', '{"a": 1}'),
    (Constraint(KINDS.JSON_OBJECT), '{"a": [1, 2.5e3, "\\n"]}', "[]"),
    (Constraint(KINDS.REGEX, ""), "", "a"),
    (Constraint(KINDS.REGEX, "^a+$"), "aa", "aab"),
    (Constraint(KINDS.REGEX, "a*?b|c"), "aab", "aa"),
    (Constraint(KINDS.REGEX, "a/b\\/c"), "a/b/c", "a"),
    (Constraint(KINDS.REGEX, "a\nb"), "a\nb", "ab"),
    (Constraint(KINDS.REGEX, r"\w\d"), "é٣", "é "),
    (Constraint(KINDS.GRAMMAR, 'start: "a" b\nb: /[xy]+/ // the rest'), "axy", "a"),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), TAKEN)
def test_what_can_be_honoured_is_held_to_as_a_whole(constraint: Constraint, good: str, bad: str) -> None:
    assert fault(constraint) == ""
    assert accepts(constraint, good)
    assert not accepts(constraint, bad)


def test_a_schema_cannot_loosen_how_it_is_read() -> None:
    loose = {"x-guidance": {"lenient": True, "coerce_one_of": True, "item_separator": ";"}}
    assert "Unknown format" in fault(schema({**loose, "format": "zip-code"}))
    assert not accepts(schema({**loose, "type": "array"}), "[1;2]")


@pytest.mark.parametrize("name", ["\\u0061", "a"])
def test_a_free_property_does_not_get_round_the_schema_of_a_listed_one(name: str) -> None:
    listed = schema({"properties": {"a": {"type": "integer"}}})
    assert not accepts(listed, f'{{"{name}": "x"}}')


def test_white_space_comes_to_an_end() -> None:
    assert accepts(Constraint(KINDS.JSON_OBJECT), "{" + "\n" + " " * 40 + "}")
    assert not accepts(Constraint(KINDS.JSON_OBJECT), "{" + " " * 65 + "}")


texts = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable() or "\x7f" in text or "\n" in text)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts | st.text(alphabet='"\\/\x00\x7f\n<>|{}%#', min_size=1), min_size=1, max_size=6, unique=True))
def test_choices_may_be_any_texts(choices: list[str]) -> None:
    constraint = Constraint(KINDS.CHOICES, choices=tuple(choices))
    assert fault(constraint) == ""
    assert all(accepts(constraint, choice) for choice in choices)
    assert not accepts(constraint, choices[0] + "é!?")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([KINDS.JSON_SCHEMA, KINDS.REGEX, KINDS.GRAMMAR]), st.text(max_size=40))
def test_any_text_is_taken_or_refused(kind: ConstraintKind, text: str) -> None:
    assert isinstance(fault(Constraint(kind, text)), str)


def test_literals_and_schemas_have_their_place_in_grammars() -> None:
    rules = "start: " + literal("<tool>\x7f") + json_rule('{"type": "integer"}')
    assert accepts(Constraint(KINDS.GRAMMAR, rules), "<tool>\x7f12")


DEEP = {
    "references": schema(
        {"$defs": {f"k{n}": {"$ref": f"#/$defs/k{n + 1}"} for n in range(5000)}, "$ref": "#/$defs/k0"}
    ),
    "items": schema(
        {
            "$ref": "#/k0",
            **{f"k{n}": {"type": "array", "items": {"$ref": f"#/k{n + 1}"}} for n in range(4000)},
            "k4000": {"type": "null"},
        }
    ),
    "rules": Constraint(KINDS.GRAMMAR, "start:r0\n" + "".join(f"r{n}:r{n + 1}\n" for n in range(5000)) + 'r5000:"x"'),
    "terms": Constraint(KINDS.GRAMMAR, "start:R0\n" + "".join(f"R{n}:R{n + 1}\n" for n in range(5000)) + 'R5000:"x"'),
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=list(DEEP))
async def test_what_would_overflow_a_usual_stack_gets_its_answer(deep: Constraint) -> None:
    """Without the deep thread, this ends the whole process."""
    assert isinstance(await Constraints().violations(deep), list)


def test_a_deep_thread_leaves_other_stacks_as_they_were() -> None:
    before = threading.stack_size()
    with deep_thread("test") as thread:
        assert thread.submit(threading.current_thread).result().name.startswith("test")
    assert threading.stack_size() == before


async def test_a_verdict_names_the_field() -> None:
    (violation,) = await Constraints().violations(Constraint(KINDS.REGEX, "("))
    assert (violation.path, violation.reason) == ("constraint.regex", "CONSTRAINT_NOT_SUPPORTED")


async def test_nothing_asked_is_nothing_wrong() -> None:
    assert await Constraints().violations(None) == []
    assert await Constraints().violations(schema({})) == []


async def test_so_many_verdicts_are_remembered_and_no_more() -> None:
    judge = Constraints()
    for number in range(constraints.MOST_REMEMBERED + 5):
        assert await judge.violations(Constraint(KINDS.CHOICES, choices=(str(number),))) == []
    assert judge.remembered == constraints.MOST_REMEMBERED


async def test_what_many_ask_at_once_is_looked_at_once() -> None:
    """Else the largest, of which each takes seconds, would hold up everybody else's for as many times."""
    judge, before = Constraints(), constraints.looked_at.cache_info().misses
    same = schema({"title": "asked by many at once", "type": "sting"})
    verdicts = await asyncio.gather(*(judge.violations(same) for _ in range(20)))
    assert [len(verdict) for verdict in verdicts] == [1] * 20
    assert constraints.looked_at.cache_info().misses == before + 1


CONFORMING = [
    (schema({}), b"[1]", True),
    (schema({}), b"[1", False),
    (schema({}), b"\xff", False),
    (schema({}), b"NaN", False),
    (Constraint(KINDS.JSON_OBJECT), b"{}", True),
    (Constraint(KINDS.JSON_OBJECT), b"[]", False),
    (Constraint(KINDS.REGEX, "a"), b"b", True),
]


@pytest.mark.parametrize(("constraint", "text", "whole"), CONFORMING)
def test_a_whole_answer_is_json_where_it_was_to_be(constraint: Constraint, text: bytes, whole: bool) -> None:
    assert conforms(constraint, text) is whole
    judge = Constraints()
    judge.judge(RequestId("r"), constraint, text)
    assert judge.broken == (0 if whole else 1)
