"""The values that the server's parts hand to each other.

Frozen, without I/O; they know neither protos nor arrays, so that the worker process can share them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NewType

ModelName = NewType("ModelName", str)
RequestId = NewType("RequestId", str)
RowId = NewType("RowId", int)
"""A request's number inside one model's worker; never reused while the server lives."""

ENGINE_MAX_TOP_K = 2**31 - 1
"""More means the same, since no vocabulary is so large, and the engine counts in 32 bits with a sign."""


class FinishReason(enum.Enum):
    """Why a generation ended well. Errors and cancels are not here: those are statuses."""

    STOP_TOKEN = "stop_token"
    STOP_SEQUENCE = "stop_sequence"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LENGTH = "context_length"


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


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row's tokens are drawn, every field resolved."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """What somebody chose of the sampling; None leaves it to the next source."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def over(self, other: SamplingChoice) -> SamplingChoice:
        return SamplingChoice(
            temperature=other.temperature if self.temperature is None else self.temperature,
            top_p=other.top_p if self.top_p is None else self.top_p,
            top_k=other.top_k if self.top_k is None else self.top_k,
            min_p=other.min_p if self.min_p is None else self.min_p,
        )

    def resolve(self, seed: int) -> Sampling:
        """The constants that the contract promises fill what nobody chose."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=min(self.top_k or 0, ENGINE_MAX_TOP_K),
            min_p=0.0 if self.min_p is None else self.min_p,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class TextInput:
    """A raw prompt: no template; the tokenizer's own special tokens are added."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids taken as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template, and what the caller gave the template beside them."""

    messages: tuple[Message, ...]
    enable_thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


Input = TextInput | TokenInput | Conversation


@dataclass(frozen=True, slots=True)
class Stop:
    max_tokens: int | None = None
    sequences: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


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
    coalescing: Coalescing = Coalescing()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's input after template and tokenizer."""

    token_ids: Sequence[int]
    text: str | None
    """The rendered template or the raw text; None where the caller gave ids."""
