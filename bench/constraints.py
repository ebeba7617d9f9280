"""What constraints cost: `python bench/constraints.py [MODEL] [--rows N]`, the engine in this process.

The same rows decode in turns free and held to a JSON schema, and the medians are compared: whatever else the machine does,
it does to both. Then how long a typical record takes to be judged and compiled, when it is new and when it is known.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import mlx.core as mx

from mlxrpc_server import constraints, demo
from mlxrpc_server.engine import blas, load, wire
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.constraint import Grammars
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.row import Row
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.types import Constraint, ConstraintKind, RowId, Sampling

ROUNDS = 9
STEPS = 12
WARM_UP = 3
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.source())
    parser.add_argument("--rows", type=int, default=32)
    chosen = parser.parse_args()
    if mx.default_device() == mx.Device(mx.cpu):
        installed = blas.install()
        mx.disable_compile()  # as the worker does there
    loaded = load.load(chosen.model, lambda _stage: None, blas=installed)
    tokenizer = Tokenizer.load(chosen.model)
    begun = time.perf_counter()
    grammars = Grammars(tokenizer.vocabulary.pieces)
    grammars.begin(wire.Constraint(rules({"type": "null"})), []).result()
    print(f"{len(tokenizer.vocabulary):,} ids prepared in {1e3 * (time.perf_counter() - begun):.0f} ms, once per model")
    _print_steps(loaded.model, loaded.kv, grammars, chosen.rows)
    _print_compiles(grammars)


def _print_steps(model: object, kv: KV, grammars: Grammars, rows: int) -> None:
    taken: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for bound, known in taken.items():
            known.extend(step_seconds(model, kv, grammars if bound else None, rows))
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


def step_seconds(model: object, kv: KV, grammars: Grammars | None, rows: int) -> list[float]:
    """Of each step, once all rows decode."""
    batch = Batch(model, kv, max_rows=rows, prefill_tokens=2048, clock=time.perf_counter)
    bound = wire.Constraint(rules(LONG))
    for number in range(rows):
        one = row(number)
        one.guide = grammars.begin(bound, []).result() if grammars else None
        batch.submit(one)
    while len(batch.step().tokens) < rows:
        pass
    times = [seconds(batch.step) for _ in range(WARM_UP + STEPS)]
    for number in range(rows):
        batch.cancel(RowId(number))
    while not batch.idle:
        batch.step()
    return times[WARM_UP:]


def rules(schema: object) -> str:
    return constraints.grammar(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))


def row(number: int) -> Row:
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=number)
    return Row(RowId(number), [5 + place % 50 for place in range(64)], [], sampling, 1000, frozenset())


def seconds(work: object) -> float:
    begun = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
