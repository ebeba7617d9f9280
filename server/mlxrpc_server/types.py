"""The values that the server's parts hand to each other.

Frozen, without I/O; they know neither protos nor arrays, so that the worker process can share them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, NewType

ModelName = NewType("ModelName", str)
RequestId = NewType("RequestId", str)
RowId = NewType("RowId", int)
"""A request's number inside one model's worker; never reused while the server lives."""

ENGINE_MAX_TOP_K = 2**31 - 1
"""More means the same, since no vocabulary is so large, and the engine counts in 32 bits with a sign."""


class LogProbs(NamedTuple):
    """How likely a token was at its place, by the model's own distribution, and the likeliest tokens there, in order."""

    chosen: float
    top_ids: tuple[int, ...] = ()
    top: tuple[float, ...] = ()


class FinishReason(enum.Enum):
    """Why a generation ended well. Errors and cancels are not here: those are statuses."""

    STOP_TOKEN = "stop_token"
    STOP_SEQUENCE = "stop_sequence"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LENGTH = "context_length"
    CONSTRAINT_COMPLETE = "constraint_complete"
    TOOL_CALLS = "tool_calls"


class ModelState(enum.Enum):
    AVAILABLE = "available"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


class ModelHealth(enum.Enum):
    """What balancers may know of a model. One that is not loaded is up: it would be loaded for a request."""

    UP = "up"
    REPLACING = "replacing"
    """Its worker died and another is being started; requests wait for it."""
    FAILED = "failed"


Biases = tuple[tuple[int, float], ...]
"""Token ids, each once, and what is added to their logits."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row's tokens are drawn, every field resolved."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Biases = ()
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    end_ids: tuple[int, ...] = ()
    """What xtc never removes."""


_CONSTANTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""What the contract promises where nobody chose; the other fields have theirs as defaults above."""


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """What somebody chose of the sampling; None leaves it to the next source."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Biases | None = None
    min_tokens_to_keep: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """The fields that are not left to others."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, other: SamplingChoice) -> SamplingChoice:
        return SamplingChoice(**other.chosen | self.chosen)

    def resolve(self, seed: int, end_ids: Iterable[int] = ()) -> Sampling:
        given = _CONSTANTS | self.chosen
        given["top_k"] = min(given["top_k"], ENGINE_MAX_TOP_K)
        return Sampling(**given, seed=seed, end_ids=tuple(sorted(end_ids)) if self.xtc_probability else ())


@dataclass(frozen=True, slots=True)
class TextInput:
    """A raw prompt: no template; the tokenizer's own special tokens are added."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids taken as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may call. The parameters are a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """A JSON object as text."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools must be called, where there are any."""

    names: tuple[str, ...] = ()
    """One of these must be called; empty: the model decides."""
    once: bool = False
    """One call and no more, as where the caller named the tool."""

    @property
    def path(self) -> str:
        """The request's field."""
        return "tool_choice.name" if self.once else "tool_choice.mode"


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template, and what the caller gave the template beside them."""

    messages: tuple[Message, ...]
    enable_thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    hides_tools: bool = False
    """The template is given none of them."""
    continues: bool = False
    """The last message is the beginning of the answer."""
    json_length: int = field(default=0, compare=False)
    """Characters of the JSON that came for tools and variables: what has been read of it tells that no more."""


Input = TextInput | TokenInput | Conversation


class ConstraintKind(enum.Enum):
    """The values are the fields' names in the contract."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICES = "choices"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a completion must conform to."""

    kind: ConstraintKind
    text: str = ""
    """The schema, the expression or the grammar."""
    choices: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The request's field."""
        return f"constraint.{self.kind.value}"


@dataclass(frozen=True, slots=True)
class Stop:
    max_tokens: int | None = None
    sequences: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """A broken stream, told by its client: what it had received."""

    token_ids: tuple[int, ...]
    seed: int
    fingerprint: str
    create_time: float


@dataclass(frozen=True, slots=True)
class Coalescing:
    """A delta waits until it has so many tokens, or so many seconds behind its first one."""

    min_tokens: int = 1
    max_delay: float = 0.1


@dataclass(frozen=True, slots=True)
class Cache:
    """How what is kept of other requests' beginnings may be used, and who may use this one's."""

    tenant: str = ""
    bypass: bool = False


SHARED = Cache()
"""By all who say nothing of it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation, as asked for and found well formed."""

    id: RequestId
    model: ModelName
    input: Input
    sampling: SamplingChoice = SamplingChoice()
    seed: int | None = None
    stop: Stop = Stop()
    resume: Resume | None = None
    prefill_progress: bool = False
    token_details: bool = False
    """Whether each delta tells its tokens' bytes too."""
    logprobs: int | None = None
    """Of how many of the likeliest tokens beside each one's own; None for none at all."""
    coalescing: Coalescing = Coalescing()
    tool_choice: ToolChoice = ToolChoice()
    constraint: Constraint | None = None
    inline_reasoning: bool = False
    """Reasoning is left in the text, as the model wrote it."""
    cache: Cache = SHARED


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's input after template and tokenizer."""

    token_ids: Sequence[int]
    text: str | None
    """The rendered template or the raw text; None where the caller gave ids."""
