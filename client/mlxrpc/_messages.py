"""What a caller says to a model, as the contract's messages. Pure: knows no channel and no sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxrpc.v1 import inference_pb2 as pb

Message = pb.Message
Part = pb.Part
Tool = pb.Tool
ToolCall = pb.ToolCall

Content = str | Part | Sequence[str | Part | Mapping[str, Any]]
ToolCallLike = ToolCall | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A raw prompt: no chat template is applied.

    >>> client.generate(mlxrpc.Text("Once upon a time")).finish_reason
    <FinishReason.STOP_TOKEN: 'stop_token'>
    """

    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as token ids, verbatim: nothing is added, no beginning-of-sequence token either.

    >>> client.count_tokens(mlxrpc.Tokens([1, 2, 3])).token_count
    3
    """

    ids: Sequence[int]


MessageLike = Message | Mapping[str, Any]
Prompt = str | Text | Tokens | MessageLike | Sequence[MessageLike] | pb.Conversation | pb.Input

ROLES: dict[str, pb.Role.ValueType] = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


def system(content: Content) -> Message:
    """Instructions for the whole conversation.

    >>> client.generate([mlxrpc.system("Be brief."), mlxrpc.user("Hello")]).text
    'Hello from mlxrpc.'
    """
    return Message(role=pb.ROLE_SYSTEM, parts=_parts(content))


def user(content: Content, *, name: str = "") -> Message:
    """What the person or program says that asks."""
    return Message(role=pb.ROLE_USER, parts=_parts(content), name=name)


def assistant(
    content: Content | None = None, *, tool_calls: Sequence[ToolCallLike] = (), reasoning: str = ""
) -> Message:
    """What the model said before."""
    calls = [tool_call(call) for call in tool_calls]
    return Message(role=pb.ROLE_ASSISTANT, parts=_parts(content), tool_calls=calls, reasoning=reasoning)


def tool_result(content: Content, tool_call_id: str) -> Message:
    """What a tool answered to the call with this id."""
    return Message(role=pb.ROLE_TOOL, parts=_parts(content), tool_call_id=tool_call_id)


def image(data: bytes, mime_type: str) -> Part:
    """An image as part of a message, for models that can see.

    >>> picture = mlxrpc.image(b"...", "image/png")
    >>> question = mlxrpc.user(["What is in ", picture, "?"])
    """
    return Part(image=pb.Image(data=data, mime_type=mime_type))


def input_from(prompt: Prompt) -> pb.Input:
    """The contract's Input for whatever the caller gave."""
    match prompt:
        case pb.Input():
            return prompt
        case pb.Conversation():
            return pb.Input(conversation=prompt)
        case Text(text):
            return pb.Input(text=text)
        case Tokens(ids):
            return pb.Input(token_ids=pb.TokenIds(ids=ids))
    return pb.Input(conversation=pb.Conversation(messages=[_message(each) for each in _said(prompt)]))


def _said(prompt: object) -> Sequence[object]:
    if isinstance(prompt, str):
        return [user(prompt)]
    if isinstance(prompt, Message | Mapping):
        return [prompt]
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return prompt
    raise TypeError(f"a prompt is a str, messages, mlxrpc.Text or mlxrpc.Tokens, not {type(prompt).__name__}")


def tool(given: Tool | Mapping[str, Any]) -> Tool:
    """A tool from the proto, or from a mapping whose parameters are a JSON schema as text or as a mapping."""
    if isinstance(given, Tool):
        return given
    _only(given, {"name", "description", "parameters"}, "a tool")
    return Tool(
        name=given.get("name", ""),
        description=given.get("description", ""),
        parameters=json_text(given.get("parameters", "")),
    )


def tool_call(given: ToolCallLike) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    _only(given, {"id", "name", "arguments"}, "a tool call")
    return ToolCall(
        id=given.get("id", ""), name=given.get("name", ""), arguments=json_text(given.get("arguments", "{}"))
    )


def json_text(value: object) -> str:
    """JSON as text stays as it is; anything else is written as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _message(given: object) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        hint = "; wrap token ids in mlxrpc.Tokens" if isinstance(given, int) else ""
        raise TypeError(f"a message is mlxrpc.user(...) or a dict with role and content, not {given!r}{hint}")
    _only(given, {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning"}, "a message")
    return Message(
        role=_role(given.get("role")),
        parts=_parts(given.get("content")),
        name=given.get("name", ""),
        tool_calls=[tool_call(call) for call in given.get("tool_calls") or ()],
        tool_call_id=given.get("tool_call_id", ""),
        reasoning=given.get("reasoning", ""),
    )


def _role(name: object) -> pb.Role.ValueType:
    if isinstance(name, str) and name in ROLES:
        return ROLES[name]
    raise ValueError(f"a message's role is one of {', '.join(ROLES)}, not {name!r}")


def _parts(content: Content | None) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str | Part):
        return [_part(content)]
    return [_part(each) for each in content]


def _part(given: str | Part | Mapping[str, Any]) -> Part:
    if isinstance(given, Part):
        return given
    if isinstance(given, str):
        return Part(text=given)
    match given:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return Part(text=text)
        case {"type": "image", "data": bytes(data), "mime_type": str(mime_type), **rest} if not rest:
            return image(data, mime_type)
    raise ValueError(
        'a part is a str, mlxrpc.image(...), {"type": "text", "text": ...} or'
        f' {{"type": "image", "data": ..., "mime_type": ...}}, not {given!r}'
    )


def _only(given: Mapping[str, Any], known: set[str], what: str) -> None:
    """Refuses what would otherwise be dropped without a word."""
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"{what} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
