"""Prompts as they arrive into prompts as they are meant: text, ids or a conversation with its template and tools.

A part of `parse`, for both generation and counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server import parse_tools, types
from mlxrpc_server.faults import Faults

Asking = pb.GenerateRequest | pb.StreamGenerateRequest | pb.CountTokensRequest

ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}

MAX_NAME_LENGTH = 64

SERVER_VARIABLES = (
    *("messages", "tools", "add_generation_prompt", "continue_final_message", "enable_thinking"),
    *("strftime_now", "raise_exception"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "conversation", "chat_template", "tokenize", "return_dict", "return_tensors"),
    "tokenizer_kwargs",
)
"""What templates are given by the server, by the tokenizer, or as arguments where they are code. Template.variables lists them."""


def prompt(request: Asking, faults: Faults) -> types.Input:
    given = request.input
    kind = given.WhichOneof("kind")
    if kind == "conversation":
        return _conversation(request, faults)
    if request.tools:
        faults.add("tools", "go only with input.conversation")
    if request.template.ByteSize():
        faults.add("template", "goes only with input.conversation")
    if kind == "text":
        return types.TextInput(given.text)
    if kind is None:
        faults.add("input", "is required: text, conversation or token_ids")
    elif not given.token_ids.ids:
        faults.add("input.token_ids.ids", "the prompt is empty: at least one id is needed")
    return types.TokenInput(tuple(given.token_ids.ids))


def _conversation(request: Asking, faults: Faults) -> types.Conversation:
    given, template, path = request.input.conversation, request.template, "input.conversation"
    if not given.messages:
        faults.add(f"{path}.messages", "the prompt is empty: at least one message is needed")
    if given.continue_final_message:
        _check_continued(given.messages, f"{path}.continue_final_message", faults)
    arguments = [call.arguments for message in given.messages for call in message.tool_calls]
    parse_tools.check_together(arguments, "tool calls with arguments", f"{path}.messages", faults)
    hides_tools = _hides_tools(request)
    return types.Conversation(
        messages=tuple(
            _message(message, f"{path}.messages[{place}]", faults) for place, message in enumerate(given.messages)
        ),
        enable_thinking=template.enable_thinking if template.HasField("enable_thinking") else None,
        variables=_variables(template.variables, faults),
        tools=parse_tools.tools(request.tools, faults),
        hides_tools=hides_tools,
        continues=given.continue_final_message,
        json_length=len(template.variables) + (0 if hides_tools else _written(request.tools)),
    )


def _hides_tools(request: Asking) -> bool:
    return not isinstance(request, pb.CountTokensRequest) and request.tool_choice.mode == pb.ToolChoice.MODE_NONE


def _written(tools: Sequence[pb.Tool]) -> int:
    return sum(len(tool.name) + len(tool.description) + len(tool.parameters) for tool in tools)


def _check_continued(messages: Sequence[pb.Message], path: str, faults: Faults) -> None:
    last = messages[-1] if messages else pb.Message()
    if last.role != pb.ROLE_ASSISTANT or last.tool_calls or not any(part.text for part in last.parts):
        faults.add(path, "the last message is not an assistant's with text and without tool calls")


def _message(given: pb.Message, path: str, faults: Faults) -> types.Message:
    _check_role(given, path, faults)
    if len(given.name) > MAX_NAME_LENGTH:
        faults.too_long(f"{path}.name", given.name, MAX_NAME_LENGTH)
    if not given.parts and not given.reasoning and not given.tool_calls:
        faults.add(f"{path}.parts", "at least one part is needed; it may be an empty text")
    return types.Message(
        role=ROLES.get(given.role, ""),
        content="".join([_text(part, path, place, faults) for place, part in enumerate(given.parts)]),
        name=given.name or None,
        reasoning=given.reasoning or None,
        tool_call_id=given.tool_call_id or None,
        tool_calls=_calls(given, f"{path}.tool_calls", faults) if given.tool_calls else (),
    )


def _check_role(given: pb.Message, path: str, faults: Faults) -> None:
    """That the role is one, and that the message has no fields of another's."""
    if given.role not in ROLES:
        faults.add(f"{path}.role", f"must be system, user, assistant or tool; {given.role} is none of them")
    if given.reasoning and given.role != pb.ROLE_ASSISTANT:
        faults.add(f"{path}.reasoning", "only an assistant's message has reasoning")
    if given.tool_call_id and given.role != pb.ROLE_TOOL:
        faults.add(f"{path}.tool_call_id", "only a tool's message has a tool_call_id")


def _calls(given: pb.Message, path: str, faults: Faults) -> tuple[types.ToolCall, ...]:
    if given.role == pb.ROLE_ASSISTANT:
        return parse_tools.calls(given.tool_calls, path, faults)
    faults.add(path, "only an assistant's message has tool calls")
    return ()


def _text(part: pb.Part, path: str, place: int, faults: Faults) -> str:
    """A part's text. The path is put together only for a fault: most parts have none."""
    kind = part.WhichOneof("kind")
    if kind is None:
        faults.add(f"{path}.parts[{place}]", "exactly one kind must be set")
    elif kind != "text":
        faults.not_supported(f"{path}.parts[{place}].{kind}")
    return part.text


def _variables(given: str, faults: Faults) -> dict[str, Any]:
    if not given:
        return {}
    path = "template.variables"
    variables = parse_tools.json_object(given, path, faults)
    for name in SERVER_VARIABLES:
        if name in variables:
            faults.add(path, f"{name!r} is the server's to give")
    return variables
