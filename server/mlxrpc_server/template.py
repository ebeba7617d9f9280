"""A conversation rendered through a model's chat template.

It knows templates, dates and refusals; nothing of token ids. The one place that reaches into the renderer of
transformers, because a template's date must come from the request and not from the machine's clock.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2

from mlxrpc_server.errors import InvalidRequest, Violation, shortened
from mlxrpc_server.tools import call_for_template, for_template
from mlxrpc_server.types import Conversation, Message

ChatMessage = dict[str, Any]

CONVERSATION = "input.conversation"

# A template is a program, run on what a caller sent: these are the ways in which it can fail on that.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


CUT = "\ue5d5\ufdd0\ue5d5"
"""Stands behind a text that is to be continued while the template runs: two for private use around one that is none."""


def render(fill: Callable[[list[ChatMessage]], str], conversation: Conversation) -> str:
    """What `fill` makes of the messages; where it fails, a refusal that names the conversation."""
    if not conversation.messages:
        raise InvalidRequest([Violation(CONVERSATION, "the conversation has no message")])
    messages = [chat_message(message) for message in conversation.messages]
    if conversation.continues:
        messages[-1]["content"] += CUT
    try:
        rendered = fill(messages)
    except _FAILURES as error:
        why = shortened(str(error) or type(error).__name__, 512)
        sentence = f"the model's chat template does not take the conversation: {why}"
        raise InvalidRequest([Violation(CONVERSATION, sentence)]) from error
    return _up_to_cut(rendered) if conversation.continues else rendered


def _up_to_cut(rendered: str) -> str:
    """Without what the template writes behind the last message's text."""
    beginning, cut, rest = rendered.partition(CUT)
    if not cut or CUT in rest:
        sentence = "the model's chat template does not write the last message's text just once"
        raise InvalidRequest([Violation(f"{CONVERSATION}.continue_final_message", sentence)])
    return beginning


def chat_message(message: Message) -> ChatMessage:
    """As templates read it: gpt-oss's calls the reasoning `thinking`, all others `reasoning_content`."""
    everything = {
        "thinking": message.reasoning,
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
        "tool_calls": [call_for_template(call) for call in message.tool_calls] or None,
    }
    return {key: value for key, value in everything.items() if value is not None}


def chosen_variables(conversation: Conversation) -> dict[str, Any]:
    """The caller's own variables, and enable_thinking where the caller chose. None has a name that is the server's."""
    if conversation.enable_thinking is None:
        return dict(conversation.variables)
    return {**conversation.variables, "enable_thinking": conversation.enable_thinking}


def offered(conversation: Conversation) -> list[dict[str, Any]] | None:
    """The tools as templates are given them; None where there are none to be shown."""
    return None if conversation.hides_tools else for_template(conversation.tools) or None


def jinja(source: str, variables: Mapping[str, Any], create_time: float, messages: list[ChatMessage]) -> str:
    """In the sandbox of transformers; there a variable hides the environment's global of the same name."""
    templates = importlib.import_module("transformers.utils.chat_template_utils")

    def strftime_now(pattern: str) -> str:
        return datetime.fromtimestamp(create_time, UTC).strftime(pattern)

    # Private, but there is no public way to a template compiled as transformers does; mlx-lm's pin holds it still.
    compiled = templates._compile_jinja_template(source)
    rendered: str = compiled.render(
        {
            **variables,
            "messages": messages,
            "strftime_now": strftime_now,
        }
    )
    return rendered


def chatml(begin: str, messages: list[ChatMessage]) -> str:
    """For models that bring no template; it has no place for names, reasoning, calls or variables."""
    if any("tool_calls" in message for message in messages):
        raise ValueError("ChatML has no place for tool calls, and the model brings no template of its own")
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return begin + "".join(turns) + "<|im_start|>assistant\n"
