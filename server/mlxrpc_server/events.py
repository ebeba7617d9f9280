"""What a generation tells its caller, one thing after another. Values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlxrpc_server.details import Detail
from mlxrpc_server.types import FinishReason, ToolCall


@dataclass(frozen=True, slots=True)
class Started:
    response_id: str
    model: str
    seed: int
    prompt_tokens: int
    create_time: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    done: int
    total: int


class Delta(NamedTuple):
    """Built for every message, and so the cheapest kind of value."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[Detail, ...] = ()
    """In detail, where the request asked for it."""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds."""

    queue: float
    model_load: float
    prefill: float
    time_to_first_token: float | None
    """None where there was no new token."""
    decode: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    matched: int | str | None
    """The stop token or the stop sequence."""
    usage: Usage
    timings: Timings


Event = Started | PrefillProgress | Delta | Finished
