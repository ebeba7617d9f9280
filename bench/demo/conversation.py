"""Conversations and how they are written for the model.

The same rules stand in CHAT_TEMPLATE, for servers, and in `pieces` and `prompt`, for training; a test holds them
together. It knows no skills and no token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
MARKER_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TOOLS_BEFORE = "You can call these tools:\n"
TOOLS_AFTER = (
    'To call one, write <tool_call>\n{"name": its name, "arguments": its arguments}\n</tool_call> '
    "and wait for the <tool_response>."
)

Role = Literal["user", "assistant", "tool"]
Schema = Mapping[str, Any]


class Thinking(Enum):
    """How the last answer is asked for."""

    UNSET = "unset"  # enable_thinking not given: the answer comes at once
    OFF = "off"  # enable_thinking false: an empty thought stands before the answer
    ON = "on"  # enable_thinking true: the thought is opened for the model
    ASKED = "asked"  # not given, but the user's own words ask: the model opens the thought itself


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    content: str
    reasoning: str = ""
    """What the model thinks before this turn, if it is asked to think."""
    call: Call | None = None

    @property
    def text(self) -> str:
        return f"<tool_call>\n{self.call}\n</tool_call>" if self.call else self.content


@dataclass(frozen=True, slots=True)
class Conversation:
    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[Schema, ...] = ()
    thinking: Thinking = Thinking.UNSET

    @property
    def last_question(self) -> int:
        """The place of the last user turn: thoughts before it are forgotten."""
        return max(place for place, turn in enumerate(self.turns) if turn.role == "user")


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    learned: bool


def pieces(conversation: Conversation) -> list[Piece]:
    """The whole conversation in order; learned is what the model itself would write."""
    written = [Piece(preamble(conversation), False)]
    for place, turn in enumerate(conversation.turns):
        if turn.role != "assistant":
            written.append(Piece(quoted(turn), False))
            continue
        current = place > conversation.last_question
        opening, thought = thought_of(conversation, place) if current else ("", "")
        written.append(Piece(f"{MESSAGE_START}assistant\n{opening}", False))
        written.append(Piece(thought + turn.text + MESSAGE_END, True))
        written.append(Piece("\n", False))
    return [piece for piece in written if piece.text]


def prompt(conversation: Conversation) -> str:
    """What stands before the answer, for a conversation that ends with a user's or a tool's turn."""
    text = preamble(conversation)
    for place, turn in enumerate(conversation.turns):
        if turn.role != "assistant":
            text += quoted(turn)
            continue
        thought = ""
        if place > conversation.last_question and conversation.thinking in {Thinking.ON, Thinking.ASKED}:
            thought = f"<think>\n{turn.reasoning}\n</think>\n\n"
        text += f"{MESSAGE_START}assistant\n{thought}{turn.text}{MESSAGE_END}\n"
    return f"{text}{MESSAGE_START}assistant\n{opened(conversation.thinking)}"


def opened(thinking: Thinking) -> str:
    """What the template writes at the start of an answer."""
    return {Thinking.ON: "<think>\n", Thinking.OFF: "<think>\n\n</think>\n\n"}.get(thinking, "")


def thought_of(conversation: Conversation, place: int) -> tuple[str, str]:
    """What is opened for the model and what it then writes before the answer at this place."""
    turn, thinking = conversation.turns[place], conversation.thinking
    match thinking:
        case Thinking.UNSET:
            return "", ""
        case Thinking.OFF:
            return (opened(thinking), "") if place == len(conversation.turns) - 1 else ("", "")
        case Thinking.ON:
            return opened(thinking), f"{turn.reasoning}\n</think>\n\n"
        case Thinking.ASKED:
            return "", f"<think>\n{turn.reasoning}\n</think>\n\n"


def quoted(turn: Turn) -> str:
    content = f"<tool_response>\n{turn.content}\n</tool_response>" if turn.role == "tool" else turn.content
    return f"{MESSAGE_START}{turn.role}\n{content}{MESSAGE_END}\n"


def preamble(conversation: Conversation) -> str:
    parts = [conversation.system] if conversation.system else []
    if conversation.tools:
        tools = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in conversation.tools)
        parts.append(TOOLS_BEFORE + tools + TOOLS_AFTER)
    text = "\n\n".join(parts)
    return f"{MESSAGE_START}system\n{text}{MESSAGE_END}\n" if parts else ""


def template_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as a server hands it to the template."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.call:
            function = {"name": turn.call.name, "arguments": dict(turn.call.arguments)}
            message["tool_calls"] = [{"type": "function", "function": function}]
        messages.append(message)
    return messages


CHAT_TEMPLATE = """\
{%- set seen = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set seen.question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if system %}
        {{- system + '\\n\\n' }}
    {%- endif %}
    {{- TOOLS_BEFORE }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- TOOLS_AFTER + '<|im_end|>\\n' }}
{%- elif system %}
    {{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('a system message can only be the first') }}
        {%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > seen.question %}
            {%- if message.reasoning_content %}
                {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
            {%- endif %}
        {%- elif '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set tool_call = call.function or call %}
            {%- if content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": ' + (tool_call.name | tojson) + ', "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking %}
        {{- '<think>\\n' }}
    {%- elif enable_thinking is defined %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""".replace("TOOLS_BEFORE", json.dumps(TOOLS_BEFORE)).replace("TOOLS_AFTER", json.dumps(TOOLS_AFTER))
