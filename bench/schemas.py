"""Every JSON schema in a folder, honoured or refused, and never wrong: `python bench/schemas.py FOLDER [--walks 3] [--first 300]`.

A file holds one schema, or groups of a schema and values that are valid or not, as the JSON Schema organisation's suite has
them. What is honoured is judged by `jsonschema`: a value that is not valid must not be accepted, and whatever a random
walk through the grammar spells must be valid. Where a valid value is not accepted, the grammar is narrower than the schema:
its order of properties is fixed, for one. Needs no model: the walks are over single bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from llguidance import LLMatcher, LLTokenizer

from mlxrpc_server import constraints
from mlxrpc_server.deep import deep_thread
from mlxrpc_server.parse_constraint import LONGEST
from mlxrpc_server.types import Constraint, ConstraintKind

LONGEST_WALK = 4000
HURRY = 200
"""Bytes after which a walk ends what can be ended."""

CLOSING = b'"}]'
BYTES = LLTokenizer("byte")


@dataclass(frozen=True)
class Case:
    name: str
    schema: Any
    values: list[tuple[Any, bool]] = field(default_factory=list)


@dataclass
class Table:
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """To judge and to compile what is honoured."""


def main() -> None:
    arguments = _arguments()
    table, random_numbers = Table(), random.Random(arguments.seed)
    cases = [case for path in sorted(arguments.folder.rglob("*.json")) for case in _cases(path)]
    if arguments.first and len(cases) > arguments.first:
        cases = random_numbers.sample(cases, arguments.first)
    with deep_thread("schemas") as thread:
        for case in cases:
            thread.submit(_judge, case, table, arguments.walks, random_numbers).result()
    _print(table, len(cases))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--walks", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="so many of them, drawn by the seed; 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _cases(path: Path) -> Iterator[Case]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return
    if not isinstance(content, list):
        yield Case(path.stem, content)
        return
    for group in content:
        tests = [(test["data"], test["valid"]) for test in group["tests"]]
        yield Case(f"{path.stem}: {group['description']}", group["schema"], tests)


def _judge(case: Case, table: Table, walks: int, random_numbers: random.Random) -> None:
    text = json.dumps(case.schema)
    if len(text) > LONGEST["json_schema"]:
        table.counts["refused"] += 1
        table.reasons["longer than is let in"] += 1
        return
    begun = time.perf_counter()
    constraint = Constraint(ConstraintKind.JSON_SCHEMA, text)
    if reason := constraints.fault(constraint):
        table.counts["refused"] += 1
        table.reasons[reason[:70]] += 1
        return
    matcher = LLMatcher(BYTES, constraints.grammar(constraint), log_level=0)
    table.seconds.append(time.perf_counter() - begun)
    table.counts["honoured"] += 1
    _judge_values(case, matcher, table)
    for _ in range(walks):
        _judge_walk(case, matcher.deep_copy(), table, random_numbers)


def _judge_values(case: Case, matcher: LLMatcher, table: Table) -> None:
    for value, valid in case.values:
        accepted = _accepts(matcher.deep_copy(), json.dumps(value, ensure_ascii=False).encode())
        if accepted and not valid and not _valid(case.schema, value):
            table.wrong.append(f"{case.name}: accepts {json.dumps(value)[:100]}")
        table.counts[f"values: {'valid' if valid else 'invalid'}, {'accepted' if accepted else 'not accepted'}"] += 1


def _judge_walk(case: Case, matcher: LLMatcher, table: Table, random_numbers: random.Random) -> None:
    said = _walk(matcher, random_numbers)
    if said is None:
        table.counts["walks: broken on the way" if matcher.is_error() else "walks: no end"] += 1
        return
    try:
        valid = _valid(case.schema, json.loads(said))
    except ValueError:
        valid = False
    except Exception:  # noqa: BLE001 - expressions that Python has not, references that it does not find
        table.counts["walks: nobody here can judge"] += 1
        return
    table.counts["walks: valid" if valid else "walks: not valid"] += 1
    if not valid:
        table.wrong.append(f"{case.name}: says {said[:200].decode(errors='replace')}")


def _walk(matcher: LLMatcher, random_numbers: random.Random) -> bytes | None:
    said = bytearray()
    while len(said) < LONGEST_WALK:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if matcher.is_error():
            return None
        if matcher.is_accepting() and (not allowed or random_numbers.random() < 0.5):
            return bytes(said)
        closing = [byte for byte in allowed if byte in CLOSING]
        spaceless = [byte for byte in allowed if byte not in b" \r\n\t"] or allowed
        byte = random_numbers.choice(closing if closing and len(said) > HURRY else spaceless)
        said.append(byte)
        matcher.consume_token(byte)
    return None


def _accepts(matcher: LLMatcher, text: bytes) -> bool:
    return all(matcher.consume_token(byte) for byte in text) and matcher.is_accepting()


def _valid(schema: Any, value: Any) -> bool:
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(validator(schema).is_valid(value))


def _print(table: Table, cases: int) -> None:
    print(f"{cases:,} schemas")
    for name, count in sorted(table.counts.items()):
        print(f"{count:8,}  {name}")
    table.seconds.sort()
    if table.seconds:
        middle, late = table.seconds[len(table.seconds) // 2], table.seconds[int(len(table.seconds) * 0.99)]
        print(f"judged, tried and compiled in {middle * 1e3:.1f} ms (p50), {late * 1e3:.0f} ms (p99)")
    print("\nrefused for:")
    for reason, count in table.reasons.most_common(40):
        print(f"{count:8,}  {reason}")
    print(f"\nwrong: {len(table.wrong)}")
    for sentence in table.wrong[:60]:
        print(f"  {sentence}")


if __name__ == "__main__":
    main()
