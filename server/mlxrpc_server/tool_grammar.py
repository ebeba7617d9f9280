"""Answers that must call tools, with arguments that are valid under their schemas: their grammar, or why there is none.

It knows how families of models write calls that are JSON between two markers; the others' cannot be enforced.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from mlxrpc_server.constraints import Constraints, json_rule, literal
from mlxrpc_server.errors import Violation, not_supported
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.tools import CallFormat
from mlxrpc_server.types import Constraint, ConstraintKind, Conversation, Request, Tool, ToolChoice

JSON_FAMILIES = frozenset({"glm47", "json_tools", "laguna", "longcat"})
"""Whose parsers take JSON with a name and arguments, some beside a form of their own."""

_CALLS = {True: "start: lines call", False: 'start: lines call ("\\n" call)*'}


def forced(request: Request, tokenizer: Tokenizer) -> Constraint | None:
    """What makes the answer call tools; None where it need not."""
    given = request.input
    if not request.tool_choice.names or tokenizer.calls is None or not isinstance(given, Conversation):
        return None
    return Constraint(ConstraintKind.GRAMMAR, tool_grammar(tokenizer.calls, given.tools, request.tool_choice))


async def violations(request: Request, tokenizer: Tokenizer, constraints: Constraints) -> list[Violation]:
    """Why the tools cannot be forced on the model, where they are to be. That it takes any is looked at elsewhere."""
    given, choice = request.input, request.tool_choice
    if not choice.names or tokenizer.calls is None or not isinstance(given, Conversation):
        return []
    if not can_enforce(tokenizer.calls, tokenizer.vocabulary.marks.values()):
        return [not_supported(choice.path)]
    found: list[Violation] = []
    for place, tool in enumerate(given.tools):
        if tool.name in choice.names:
            faults = await constraints.violations(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(_schema(tool))))
            found += [replace(fault, path=f"tools[{place}].parameters") for fault in faults]
    return found


def can_enforce(format: CallFormat, marks: Collection[str]) -> bool:
    """Not where a marker is a special token, for a grammar knows only text."""
    spelled = format.markers.start + format.markers.end
    return format.family in JSON_FAMILIES and not any(mark and mark in spelled for mark in marks)


def tool_grammar(format: CallFormat, tools: Sequence[Tool], choice: ToolChoice) -> str:
    """In Lark's notation. Line breaks may come first, as they do behind reasoning. Tools that were not chosen are left out."""
    chosen = [tool for tool in tools if tool.name in choice.names]
    rules = [
        _CALLS[choice.once],
        "lines: /\\n{0,2}/",
        f'call: {literal(format.markers.start)} "\\n"? named "\\n"? {literal(format.markers.end)}',
        "named: " + " | ".join(f"named_{number}" for number, _ in enumerate(chosen)),
    ]
    for number, tool in enumerate(chosen):
        before = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        rules += [
            f'named_{number}: {literal(before)} arguments_{number} "}}"',
            f"arguments_{number}: {json_rule(json.dumps(_schema(tool)))}",
        ]
    return "\n".join(rules)


def _schema(tool: Tool) -> dict[str, Any]:
    """Of the arguments, which are an object even where the schema does not say so."""
    return {**(tool.parameters or {"additionalProperties": False}), "type": "object"}
