"""Tools: as a template is given them, and their calls as a model writes them.

It knows mlx-lm's parsers, one for each family of models, and trusts none of them: whatever does not come out as calls
of the tools that were offered is no call.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxrpc_server.sections import CallSections, Markers
from mlxrpc_server.types import Tool, ToolCall

# What the parsers raise on text that is none of their calls; they parse JSON, Python and XML, with their own mistakes.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_MODELS_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

_ID_LENGTH = 9
"""Letters and digits: Mistral's templates take ids of just this form, and others take any."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How one family of models writes calls."""

    family: str
    markers: Markers
    parse: Callable[[str, list[dict[str, Any]]], Any]


def call_format(wrapper: Any) -> CallFormat | None:
    """That of the tokenizer that mlx-lm has wrapped; None where it knows none, or where the template takes no tools."""
    if not wrapper.has_tool_calling or not takes_tools(wrapper.chat_template):
        return None
    family = wrapper.tool_parser.__module__.rpartition(".")[2]
    return CallFormat(family, Markers(wrapper.tool_call_start, wrapper.tool_call_end), wrapper.tool_parser)


def takes_tools(template: object) -> bool:
    """Where there is none, the model's template is code in mlx-lm or transformers, which takes tools."""
    return template is None or "tools" in str(template)


def for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """In the wrapping that templates expect. The description is there even if empty: some of them print it unasked."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def call_for_template(call: ToolCall) -> dict[str, Any]:
    """With the arguments as values: templates write them as JSON, each in its own way."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
    }


class CallReader:
    """Reads the calls of one answer, section after section.

    The ids are a function of `origin` and a call's number, so that a resumed answer has the same.
    """

    def __init__(self, format: CallFormat, tools: Sequence[Tool], origin: str) -> None:
        self._format = format
        self._names = {tool.name for tool in tools}
        self._offered = for_template(tools)
        self._origin = origin
        self._ids: set[str] = set()

    @property
    def sections(self) -> CallSections:
        return CallSections(self._format.markers, self.read)

    def read(self, body: str) -> tuple[ToolCall, ...]:
        """The calls between two markers; none where one of them is not well formed."""
        try:
            parsed = self._format.parse(body, self._offered)
            drafts = [self._checked(each) for each in (parsed if isinstance(parsed, list) else [parsed])]
        except _FAILURES:
            return ()
        return tuple([ToolCall(self._new_id(own), name, arguments) for own, name, arguments in drafts])

    def _checked(self, parsed: Mapping[str, Any]) -> tuple[object, str, str]:
        name, arguments = parsed["name"], parsed.get("arguments", {})
        if name not in self._names:
            raise ValueError("no such tool was offered")
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise TypeError("the arguments are no object")
        return parsed.get("id"), name, _json_text(arguments)

    def _new_id(self, own: object) -> str:
        """The model's own, where its family writes them and its template wants them back."""
        number = len(self._ids)
        chosen = own if isinstance(own, str) and _MODELS_ID.fullmatch(own) else ""
        while not chosen or chosen in self._ids:
            chosen = _id(f"{self._origin} {number}")
            number += 1
        self._ids.add(chosen)
        return chosen


def _json_text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair can be written in JSON and cannot be sent but escaped.
        return json.dumps(value, allow_nan=False)
    return text


def _id(origin: str) -> str:
    digest = hashlib.blake2b(origin.encode(), digest_size=16).digest()
    return base64.b32encode(digest).decode().lower()[:_ID_LENGTH]


def repeated(names: Iterable[str]) -> list[int]:
    """The places of those that came before."""
    seen: set[str] = set()
    places = []
    for place, name in enumerate(names):
        if name in seen:
            places.append(place)
        seen.add(name)
    return places
