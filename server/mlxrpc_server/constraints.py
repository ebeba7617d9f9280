"""What a completion must conform to: from a request's constraint to the engine's grammar, or to why that cannot be.

Pure but for the thread in which llguidance looks at what callers send. Knows llguidance's notation and its limits; no
tokenizer and no model: a grammar is refused here before any model is loaded for it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_never

from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from mlxrpc_server import strict_json
from mlxrpc_server.deep import deep_thread
from mlxrpc_server.errors import InvalidRequest, Violation, shortened
from mlxrpc_server.matchers import LIMITS, TOO_LONG, gave_up, matcher_of, without_state
from mlxrpc_server.types import Constraint, ConstraintKind, RequestId

log = logging.getLogger(__name__)

MOST_REMEMBERED = 1024
"""Constraints whose verdict is kept: a service asks with the same few again and again."""

AT_ONCE = 8
"""Of these the texts are kept too, while many who came together wait with the same."""

TRIAL_BYTES = 24
"""How far a grammar is tried: what is too complex for llguidance mostly shows within its first words."""

SENTENCE = 400

_TO_THE_MODEL = '\n%llguidance { "no_forcing": true }\n'
"""Where the text is given and the tokens are not, the model chooses them."""

_ANY_OBJECT = '{"type": "object"}'

_SCHEMA_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    # Else a model that likes white space most of all would never come to an end.
    "whitespace_pattern": r"[ \n\r\t]{1,64}",
    "coerce_one_of": False,
    "lenient": False,
    # Without \\u: a free property could take a listed one's name in escapes, and so get round its schema.
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
"""All there are, so that nothing in a caller's schema can loosen them."""


def grammar(constraint: Constraint) -> str:
    """For the engine. ValueError where the text is not even JSON, or not an expression."""
    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            rules = f"start: {json_rule(constraint.text)}"
        case ConstraintKind.JSON_OBJECT:
            rules = f"start: {json_rule(_ANY_OBJECT)}"
        case ConstraintKind.REGEX:
            rules = f"start: /{_between_slashes(constraint.text)}/"
        case ConstraintKind.GRAMMAR:
            rules = constraint.text
        case ConstraintKind.CHOICES:
            rules = "start: " + " | ".join(literal(choice) for choice in constraint.choices)
        case _:
            assert_never(constraint.kind)
    return rules + _TO_THE_MODEL


def json_rule(schema: str) -> str:
    """A schema's place in a grammar, as a rule's right side."""
    return f"%json {json.dumps(_schema(schema), allow_nan=False)}"


def literal(text: str) -> str:
    """A text's place in a grammar."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def fault(constraint: Constraint) -> str:
    """Why it cannot be honoured, in a sentence; empty where it can. Takes seconds for the largest."""
    try:
        rules = grammar(constraint)
        if constraint.kind is ConstraintKind.JSON_SCHEMA:
            return _schema_fault(constraint.text) or _trial_fault(rules)
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return shortened(str(error), SENTENCE)
    return _grammar_fault(rules) or _trial_fault(rules)


def conforms(constraint: Constraint, text: bytes) -> bool:
    """Whether a whole answer is JSON where it was to be. The rest is the engine's promise."""
    if constraint.kind not in (ConstraintKind.JSON_SCHEMA, ConstraintKind.JSON_OBJECT):
        return True
    try:
        value = _parsed(text.decode())
    except (ValueError, RecursionError):
        return False
    return constraint.kind is ConstraintKind.JSON_SCHEMA or isinstance(value, dict)


class Constraints:
    """The verdicts on constraints, found in a thread and remembered, and how many answers broke theirs."""

    def __init__(self) -> None:
        self.broken = 0
        self._faults: OrderedDict[bytes, str] = OrderedDict()

    @property
    def remembered(self) -> int:
        return len(self._faults)

    async def violations(self, constraint: Constraint | None) -> list[Violation]:
        if constraint is None:
            return []
        sentence = await self._fault(constraint)
        return [Violation(constraint.path, sentence, "CONSTRAINT_NOT_SUPPORTED")] if sentence else []

    async def check(self, constraint: Constraint | None) -> None:
        if violations := await self.violations(constraint):
            raise InvalidRequest(violations)

    def judge(self, request: RequestId, constraint: Constraint, text: bytes) -> None:
        """Of an answer that was not cut. That one breaks its constraint is a bug here, and never the caller's doing."""
        if not conforms(constraint, text):
            self.broken += 1
            facts = {"request": request, "constraint": constraint.path, "bytes": len(text), "broken": self.broken}
            log.error("an answer does not conform to its constraint", extra=facts)

    async def _fault(self, constraint: Constraint) -> str:
        key = _digest(constraint)
        if key not in self._faults:
            loop = asyncio.get_running_loop()
            self._faults[key] = await loop.run_in_executor(_thread(), looked_at, constraint)
            if len(self._faults) > MOST_REMEMBERED:
                self._faults.popitem(last=False)
        self._faults.move_to_end(key)
        return self._faults[key]


@functools.lru_cache(AT_ONCE)
def looked_at(constraint: Constraint) -> str:
    """In the thread: whoever waited there behind another with the same need not wait for a second look."""
    return fault(constraint)


def _digest(constraint: Constraint) -> bytes:
    """Instead of the texts: together they could be a gigabyte."""
    parts = (constraint.kind.value, constraint.text, *constraint.choices)
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return deep_thread("constraints")


# Schemas


def _schema(text: str) -> dict[str, Any]:
    """Strict, whatever it says itself; what it says is its order of properties, too."""
    schema = _parsed(text)
    if not isinstance(schema, bool | dict):
        raise ValueError("is neither an object nor true")
    if schema is False:
        raise ValueError("is false: nothing is valid under it")
    return {**({} if schema is True else schema), "x-guidance": _SCHEMA_OPTIONS}


def _parsed(text: str) -> Any:
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error


def _schema_fault(text: str) -> str:
    schema = _schema(text)
    rules = LLMatcher.grammar_from_json_schema(json.dumps(schema, allow_nan=False))
    return _grammar_fault(rules) or next(_misread(schema), "")


_VALUES = frozenset({"const", "default", "enum", "examples"})
"""Keywords behind which there are values, not schemas."""

_UNSAYABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""Characters that need an escape in JSON, and have none but the general one."""


def _misread(schema: Any) -> Iterator[str]:
    """What llguidance would take for something else."""
    if isinstance(schema, list):
        for one in schema:
            yield from _misread(one)
    elif isinstance(schema, dict):
        yield from _uncounted(schema)
        yield from _unsayable(schema)
        for keyword, value in schema.items():
            if keyword not in _VALUES:
                yield from _misread(value)


def _uncounted(schema: dict[str, Any]) -> Iterator[str]:
    """It lets a free property's name come twice, and two of one name are one property."""
    least, required = schema.get("minProperties"), schema.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, named + 1):
        yield f"minProperties is {least:g} and {named} are required: more than one other cannot be counted on"


def _unsayable(schema: dict[str, Any]) -> Iterator[str]:
    """Without the general escape, it leaves such characters out."""
    properties = schema.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    values = [text for keyword in ("required", "const", "enum") for text in _strings(schema.get(keyword))]
    if any(_UNSAYABLE.search(text) for text in (*names, *values)):
        yield "holds a control character that JSON can only say as a number, in a name or a value"


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from _strings(one)
        case dict():
            yield from value
            yield from _strings(list(value.values()))


# Expressions and grammars


def _between_slashes(expression: str) -> str:
    backslashes = len(expression) - len(expression.rstrip("\\"))
    if backslashes % 2:
        raise ValueError("ends with a backslash that escapes nothing")
    if "\n" in expression and re.search(r"\(\?[a-zA-Z]*x", expression):
        raise ValueError("is spread over lines: write it without the flag x")
    # Unicode's classes, as in Python and Rust.
    return regex_to_lark(expression.replace("\r", "\\r").replace("\n", "\\n"), "")


def _grammar_fault(rules: str) -> str:
    is_error, sentences = LLMatcher.validate_grammar_with_warnings(rules, limits=LIMITS)
    if is_error:
        return _in_words(sentences[0])
    if any(sentence.startswith("no tokenizer") for sentence in sentences):
        return "names tokens, and it can only say what the text is to be"
    return _in_words(sentences[0]) if sentences else ""


def _trial_fault(rules: str) -> str:
    """Goes some way into the grammar, byte by byte, for what only shows on the way."""
    tokenizer = _bytes()
    matcher = matcher_of(tokenizer, rules)
    for place in range(TRIAL_BYTES):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if matcher.is_error() or not (allowed or matcher.is_accepting()):
            return _in_words(matcher.get_error() or "NoExtension")
        if not allowed:
            return ""
        matcher.consume_token(allowed[(7 * place) % len(allowed)])
    return _in_words(matcher.get_error()) if matcher.is_error() else ""


@functools.cache
def _bytes() -> LLTokenizer:
    """A vocabulary of single bytes: they can say all that any other can."""
    return LLTokenizer("byte", slices=[])


def _in_words(error: str) -> str:
    """llguidance's own sentence; behind an expression that is wrong, the reason alone."""
    sentence = without_state(error)
    if gave_up(sentence):
        return f"cannot be honoured: {TOO_LONG}"
    if sentence.startswith("NoExtension"):
        return "cannot progress: no text fulfils it"
    if "\nerror: " in sentence:
        sentence = sentence.split("\nerror: ")[-1]
    return shortened(sentence.split("\n")[0], SENTENCE)
