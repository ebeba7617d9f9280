"""Tools, the choice among them and their calls, as they arrive into what they mean.

A part of `parse`. Knows which tools are well formed, not which models take any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server import strict_json, types
from mlxrpc_server.errors import shortened
from mlxrpc_server.faults import Faults
from mlxrpc_server.tools import repeated

MAX_TOOLS = 128

LONGEST_JSON = 256 * 1024
"""In characters: of a tool's schema, of a call's arguments, of a template's variables. As for constraints: where a call
must be made, its schema is followed by recursion."""

LONGEST_TOGETHER = 1024 * 1024
"""Of all tools, and of all calls. Templates write them in Python, which holds up everybody else."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def tools(given: Sequence[pb.Tool], faults: Faults) -> tuple[types.Tool, ...]:
    if len(given) > MAX_TOOLS:
        faults.add("tools", f"has {len(given):,} tools; at most {MAX_TOOLS} are allowed")
    check_together([tool.parameters for tool in given], "parameters", "tools", faults)
    for place in repeated(tool.name for tool in given):
        faults.add(f"tools[{place}].name", f"{shortened(given[place].name)!r} is an earlier tool's name too")
    return tuple([_tool(tool, f"tools[{place}]", faults) for place, tool in enumerate(given)])


def check_together(texts: Sequence[str], what: str, path: str, faults: Faults) -> None:
    length = sum(map(len, texts))
    if length > LONGEST_TOGETHER:
        faults.add(path, f"have {what} of {length:,} characters together; at most {LONGEST_TOGETHER:,} are allowed")


def _tool(given: pb.Tool, path: str, faults: Faults) -> types.Tool:
    if not _NAME.fullmatch(given.name):
        sentence = f"{shortened(given.name)!r} is not 1 to 64 characters out of a-z, A-Z, 0-9, _ and -"
        faults.add(f"{path}.name", sentence)
    parameters = json_object(given.parameters, f"{path}.parameters", faults) if given.parameters else {}
    if "object" not in _listed(parameters.get("type", "object")):
        faults.add(f"{path}.parameters", "is not the schema of an object")
    return types.Tool(given.name, given.description, parameters)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def choice(request: pb.GenerateRequest | pb.StreamGenerateRequest, faults: Faults) -> types.ToolChoice:
    """Unset is what AUTO means where there are tools, and what NONE means where there are none.

    With NONE the conversation says that its tools are not shown.
    """
    given, names = request.tool_choice, tuple(tool.name for tool in request.tools)
    kind = given.WhichOneof("kind") if request.HasField("tool_choice") else "unset"
    path = f"tool_choice.{kind}"
    match kind:
        case "unset":
            return types.ToolChoice()
        case None:
            faults.add("tool_choice", "a mode or a name must be set")
        case "mode" if given.mode not in pb.ToolChoice.Mode.values() or not given.mode:
            faults.add(path, f"{given.mode} is no mode that this server knows")
        case "mode" if given.mode == pb.ToolChoice.MODE_NONE:
            return types.ToolChoice()
        case _ if not names:
            faults.add(path, "there are no tools to choose from")
        case "name" if given.name not in names:
            faults.add(path, f"{shortened(given.name)!r} is none of the tools")
        case _ if request.HasField("constraint") and given.mode != pb.ToolChoice.MODE_AUTO:
            faults.add(path, "a call that must be made and a constraint exclude each other")
        case "name":
            return types.ToolChoice((given.name,), once=True)
        case "mode" if given.mode == pb.ToolChoice.MODE_REQUIRED:
            return types.ToolChoice(names)
    return types.ToolChoice()


def calls(given: Sequence[pb.ToolCall], path: str, faults: Faults) -> tuple[types.ToolCall, ...]:
    """Those of an earlier answer."""
    return tuple([_call(call, f"{path}[{place}]", faults) for place, call in enumerate(given)])


def _call(given: pb.ToolCall, path: str, faults: Faults) -> types.ToolCall:
    if not given.name:
        faults.add(f"{path}.name", "is required")
    json_object(given.arguments, f"{path}.arguments", faults)
    return types.ToolCall(given.id, given.name, given.arguments)


def json_object(given: str, path: str, faults: Faults) -> dict[str, Any]:
    if len(given) > LONGEST_JSON:
        faults.add(path, f"has {len(given):,} characters; at most {LONGEST_JSON:,} are allowed")
        return {}
    try:
        value = strict_json.loads(given)
    except (ValueError, RecursionError) as error:
        faults.add(path, f"is not JSON: {shortened(str(error))}")
        return {}
    if not isinstance(value, dict):
        faults.add(path, "is not a JSON object")
        return {}
    return value
