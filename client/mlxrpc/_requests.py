"""Keywords to requests: one table says where in the contract each keyword goes. Pure: knows no channel and no response."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as AnyMessage

from mlxrpc import _messages
from mlxrpc._messages import Prompt, Tool
from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2

ToolLike = Tool | Mapping[str, Any]


class PromptOptions(TypedDict, total=False):
    """What decides the prompt beside its text. A keyword that is absent or None is left to the server."""

    model: str | None  # a name or an alias; absent: the server's default model
    tools: Sequence[ToolLike] | None  # dicts with name, description and parameters (a JSON schema)
    enable_thinking: bool | None  # absent: the chat template's own default
    template_variables: Mapping[str, Any] | str | None  # more variables for the chat template
    continue_final_message: bool | None  # go on with the assistant's message that ends the conversation


class CountOptions(PromptOptions, total=False):
    """The keywords of count_tokens()."""

    return_token_ids: bool | None  # the response has the prompt's ids
    return_prompt: bool | None  # the response has the rendered prompt


class GenerateOptions(PromptOptions, total=False):
    """The keywords of generate(). The contract's comments on Sampling, Stop and Output give ranges and defaults."""

    temperature: float | None  # 0: greedy
    top_p: float | None
    top_k: int | None  # 0: off
    min_p: float | None
    min_tokens_to_keep: int | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repetition_penalty: float | None
    repetition_context_size: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None  # by token id
    seed: int | None  # the same request with the same seed repeats its draws

    max_tokens: int | None
    min_tokens: int | None
    max_reasoning_tokens: int | None  # then the reasoning is closed, and the answer follows
    stop: str | Sequence[str] | None  # texts that end the generation and are not part of it
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None

    logprobs: int | None  # 0 to 20 alternatives for each token, in `tokens`
    return_token_ids: bool | None  # generate() fills `token_ids` and `tokens`; a stream always has the ids
    reasoning: Literal["separate", "inline"] | None

    tool_choice: str | pb.ToolChoice | None  # "auto", "none", "required" or a tool's name
    json_schema: Mapping[str, Any] | str | None  # at most one of these five constraints
    json_object: bool | None
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None

    resume: pb.Resume | None  # Stream.resumption() of a stream that was cut
    cache_tenant: str | None  # the prompt cache is shared among equal tenants only
    bypass_cache: bool | None


class StreamOptions(GenerateOptions, total=False):
    """The keywords of stream()."""

    prefill_progress: bool | None
    min_delta_tokens: int | None  # a delta waits for so many tokens,
    max_delta_delay: float | None  # but not longer than so many seconds


def _same(value: Any) -> Any:
    return value


def _true(value: bool) -> bool | None:
    return True if value else None


def _stop(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _texts(value: Sequence[str]) -> list[str]:
    if isinstance(value, str):  # which is a sequence of its characters, and never meant so
        raise TypeError("a list of str is wanted")
    return list(value)


def _tools(value: Sequence[ToolLike]) -> list[Tool]:
    return [_messages.tool(each) for each in value]


def _tool_choice(value: str | pb.ToolChoice) -> pb.ToolChoice:
    modes = {
        "auto": pb.ToolChoice.MODE_AUTO,
        "none": pb.ToolChoice.MODE_NONE,
        "required": pb.ToolChoice.MODE_REQUIRED,
    }
    if isinstance(value, pb.ToolChoice):
        return value
    return pb.ToolChoice(mode=modes[value]) if value in modes else pb.ToolChoice(name=value)


def _reasoning(value: str) -> pb.ReasoningFormat.ValueType:
    formats = {"separate": pb.REASONING_FORMAT_SEPARATE, "inline": pb.REASONING_FORMAT_INLINE}
    if value not in formats:
        raise ValueError("it is one of separate, inline")
    return formats[value]


def _resume(value: object) -> pb.Resume:
    if isinstance(value, pb.Resume):
        return value
    raise TypeError("it is what a stream's resumption() gives")


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


class Field(NamedTuple):
    """Where a keyword goes in the request, and what it becomes there; None leaves the field unset."""

    path: str
    convert: Callable[[Any], Any] = _same


PROMPT = {
    "model": Field("model"),
    "tools": Field("tools", _tools),
    "enable_thinking": Field("template.enable_thinking"),
    "template_variables": Field("template.variables", _messages.json_text),
    "continue_final_message": Field("input.conversation.continue_final_message", _true),
}

COUNT = PROMPT | {
    "return_token_ids": Field("return_token_ids"),
    "return_prompt": Field("return_prompt"),
}

CONSTRAINTS = {
    "json_schema": Field("constraint.json_schema", _messages.json_text),
    "json_object": Field("constraint.json_object", lambda value: pb.JsonObject() if value else None),
    "regex": Field("constraint.regex"),
    "grammar": Field("constraint.grammar"),
    "choices": Field("constraint.choices", lambda value: pb.Choices(texts=_texts(value))),
}

GENERATE = PROMPT | {
    "temperature": Field("sampling.temperature"),
    "top_p": Field("sampling.top_p"),
    "top_k": Field("sampling.top_k"),
    "min_p": Field("sampling.min_p"),
    "min_tokens_to_keep": Field("sampling.min_tokens_to_keep"),
    "xtc_probability": Field("sampling.xtc_probability"),
    "xtc_threshold": Field("sampling.xtc_threshold"),
    "repetition_penalty": Field("sampling.repetition_penalty"),
    "repetition_context_size": Field("sampling.repetition_context_size"),
    "presence_penalty": Field("sampling.presence_penalty"),
    "frequency_penalty": Field("sampling.frequency_penalty"),
    "logit_bias": Field("sampling.logit_bias", dict),
    "seed": Field("sampling.seed"),
    "max_tokens": Field("stop.max_tokens"),
    "min_tokens": Field("stop.min_tokens"),
    "max_reasoning_tokens": Field("stop.max_reasoning_tokens"),
    "stop": Field("stop.sequences", _stop),
    "stop_token_ids": Field("stop.token_ids", list),
    "ignore_eos": Field("stop.ignore_eos"),
    "logprobs": Field("output.logprobs"),
    "return_token_ids": Field("output.token_ids"),
    "reasoning": Field("output.reasoning", _reasoning),
    "tool_choice": Field("tool_choice", _tool_choice),
    **CONSTRAINTS,
    "resume": Field("resume", _resume),
    "cache_tenant": Field("cache.tenant"),
    "bypass_cache": Field("cache.bypass"),
}

STREAM = GENERATE | {
    "prefill_progress": Field("stream_options.prefill_progress"),
    "min_delta_tokens": Field("stream_options.min_delta_tokens"),
    "max_delta_delay": Field("stream_options.max_delta_delay", _duration),
}

TABLES: dict[type[AnyMessage], dict[str, Field]] = {
    pb.GenerateRequest: GENERATE,
    pb.StreamGenerateRequest: STREAM,
    pb.CountTokensRequest: COUNT,
}

Request = TypeVar("Request", pb.GenerateRequest, pb.StreamGenerateRequest, pb.CountTokensRequest)


def build(
    kind: type[Request], prompt: Prompt | None, options: Mapping[str, Any], request: Request | None = None
) -> Request:
    """A request of this kind: a copy of `request`, with the prompt and the keywords over it."""
    table = TABLES[kind]
    given = {name: value for name, value in options.items() if value is not None}
    _check_names(given, table)
    built = kind()
    if request is not None:
        built.CopyFrom(request)
    if prompt is not None:
        built.input.CopyFrom(_messages.input_from(prompt))
    if not built.HasField("input"):
        raise TypeError("a prompt is needed: text, messages, mlxrpc.Text or mlxrpc.Tokens, or request= with an input")
    if given.get("continue_final_message") and built.input.WhichOneof("kind") != "conversation":
        raise ValueError("continue_final_message goes with a conversation, not with raw text or token ids")
    for name, value in given.items():
        _set(built, name, table[name], value)
    return built


def list_models_request(
    *,
    query: str | None,
    states: Sequence[str] | None,
    max_size_bytes: int | None,
    capabilities: Sequence[str] | None,
) -> pb.ListModelsRequest:
    """The first page's request for these filters."""
    wanted = pb.ListModelsFilter(query=query or "", max_size_bytes=max_size_bytes)
    wanted.states.extend(_state(name) for name in _texts(states or ()))
    for name in _texts(capabilities or ()):
        if name not in model_pb2.Capabilities.DESCRIPTOR.fields_by_name:
            raise ValueError(f"there is no capability {name!r}")
        setattr(wanted.capabilities, name, True)
    return pb.ListModelsRequest(filter=wanted, page_size=1000)


def _state(name: str) -> model_pb2.ModelState.ValueType:
    try:
        return model_pb2.ModelState.Value(f"MODEL_STATE_{name.upper()}")
    except ValueError:
        raise ValueError(f"there is no model state {name!r}") from None


def _check_names(given: Mapping[str, Any], table: Mapping[str, Field]) -> None:
    for name in given.keys() - table.keys():
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"unexpected keyword argument {name!r}{hint}")
    constraints = sorted(given.keys() & CONSTRAINTS.keys())
    if len(constraints) > 1:
        raise ValueError(f"{' and '.join(constraints)} exclude each other: a completion has one constraint")


def _set(request: AnyMessage, name: str, field: Field, value: Any) -> None:
    """Puts one keyword in its place. What cannot even be written there is the caller's mistake, named as the caller wrote it."""
    *parents, leaf = field.path.split(".")
    try:
        converted = field.convert(value)
        if converted is None:
            return
        owner: Any = request
        for parent in parents:
            owner = getattr(owner, parent)
        _assign(owner, leaf, converted)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} cannot be {value!r}: {error}") from None


def _assign(owner: Any, leaf: str, value: Any) -> None:
    match value:
        case AnyMessage():
            owner.ClearField(leaf)
            getattr(owner, leaf).CopyFrom(value)
            getattr(owner, leaf).SetInParent()
        case list():
            owner.ClearField(leaf)
            getattr(owner, leaf).extend(value)
        case dict():
            owner.ClearField(leaf)
            getattr(owner, leaf).update(value)
        case _:
            setattr(owner, leaf, value)
