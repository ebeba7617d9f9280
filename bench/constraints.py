"""What constraints cost: `python bench/constraints.py [MODEL] [--rows N]`, the engine in this process.

The same rows decode in turns free and held to a JSON schema, and the medians are compared: whatever else the machine does,
it does to both. Then how long a typical record takes to be judged and compiled, when it is new and when it is known.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from in_process import Decoding, arguments, loaded, made_up
from mlxrpc_server import constraints
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.constraint import Grammars
from mlxrpc_server.engine.load import Loaded
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.types import Constraint, ConstraintKind

ROUNDS = 9
STEPS = 12
WARM_UP = 3
PROMPT = 64
COMPILES = 20

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "email": {"type": "string", "format": "email"},
        "role": {"enum": ["admin", "editor", "reader"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "age", "role", "tags"],
}

LONG = {"type": "array", "items": RECORD, "minItems": 50}
"""No row comes to its end while it is measured."""


def main() -> None:
    chosen = arguments(__doc__)
    model = loaded(chosen.model, chosen.rows)
    tokenizer = Tokenizer.load(chosen.model)
    begun = time.perf_counter()
    grammars = Grammars(tokenizer.vocabulary.pieces)
    grammars.begin(wire.Constraint(rules({"type": "null"})), []).result()
    print(f"{len(tokenizer.vocabulary):,} ids prepared in {1e3 * (time.perf_counter() - begun):.0f} ms, once per model")
    _print_steps(model, grammars, chosen.rows)
    _print_compiles(grammars)


def _print_steps(model: Loaded, grammars: Grammars, rows: int) -> None:
    taken: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for bound, known in taken.items():
            known.extend(step_seconds(model, grammars if bound else None, rows))
    free, held = (statistics.median(known) for known in taken.values())
    print(
        f"{rows} rows: {1e3 * free:.2f} ms a step free, {1e3 * held:.2f} ms held to a schema:"
        f" {free / held:.3f} of the tokens/s"
    )


def _print_compiles(grammars: Grammars) -> None:
    judged, new, known = [], [], []
    for number in range(COMPILES):
        asked = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({**RECORD, "title": f"{number}"}))
        judged.append(seconds(lambda: constraints.fault(asked)))  # noqa: B023 - called at once
        bound = wire.Constraint(constraints.grammar(asked))
        new.append(seconds(lambda: grammars.begin(bound, []).result()))  # noqa: B023
        known.append(seconds(lambda: grammars.begin(bound, []).result()))  # noqa: B023
    for what, times in (("judged", judged), ("compiled", new), ("compiled again", known)):
        print(f"a record is {what} in {1e3 * statistics.median(times):.2f} ms, at most {1e3 * max(times):.2f}")


def step_seconds(model: Loaded, grammars: Grammars | None, rows: int) -> list[float]:
    """Of each step, once all rows decode."""
    decoding, bound = Decoding(model, rows), wire.Constraint(rules(LONG))
    guides = [grammars.begin(bound, []).result() if grammars else None for _ in range(rows)]
    decoding.bring(made_up(number, PROMPT, guide=guide) for number, guide in enumerate(guides))
    decoding.steps(WARM_UP)
    seconds = decoding.steps(STEPS)
    decoding.dismiss()
    return seconds


def rules(schema: object) -> str:
    return constraints.grammar(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
