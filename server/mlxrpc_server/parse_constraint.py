"""A request's constraint as it arrives. Knows sizes alone; what the texts mean is looked at later, in a thread."""

from __future__ import annotations

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server.errors import shortened
from mlxrpc_server.faults import Faults
from mlxrpc_server.types import Constraint, ConstraintKind

MOST_CHOICES = 1024

LONGEST = {
    "json_schema": 256 * 1024,
    "regex": 8 * 1024,
    "grammar": 64 * 1024,
    "choices": 256 * 1024,
}
"""In characters, choices together. An expression's cost grows with the square of its length, and so does a grammar's."""


def constraint(given: pb.Constraint, faults: Faults) -> Constraint | None:
    name = given.WhichOneof("kind")
    if name is None:
        faults.add("constraint", "exactly one kind must be set")
        return None
    path, kind = f"constraint.{name}", ConstraintKind(name)
    if kind is ConstraintKind.JSON_OBJECT:
        return Constraint(kind)
    if kind is ConstraintKind.CHOICES:
        return Constraint(kind, choices=_choices(given.choices, faults))
    text = getattr(given, name)
    if not text and kind is not ConstraintKind.REGEX:
        faults.add(path, "is empty")
    _check_length(path, name, len(text), faults)
    return Constraint(kind, text)


def _choices(given: pb.Choices, faults: Faults) -> tuple[str, ...]:
    path, seen = "constraint.choices.texts", set[str]()
    if not 1 <= len(given.texts) <= MOST_CHOICES:
        faults.add(path, f"has {len(given.texts):,} texts; 1 to {MOST_CHOICES:,} are allowed")
    _check_length(path, "choices", sum(map(len, given.texts)), faults)
    for place, text in enumerate(given.texts):
        if not text:
            faults.add(f"{path}[{place}]", "is empty")
        elif text in seen:
            faults.add(f"{path}[{place}]", f"{shortened(text)!r} is there twice")
        seen.add(text)
    return tuple(given.texts)


def _check_length(path: str, name: str, length: int, faults: Faults) -> None:
    if length > LONGEST[name]:
        faults.add(path, f"has {length:,} characters; at most {LONGEST[name]:,} are allowed")
