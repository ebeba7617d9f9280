"""The messages between the server process and a model's worker, and how they are framed.

One frame is a length and a msgpack-encoded struct. A Step carries all rows in columns: there is one frame a
step, never one a token. Nothing here knows RPCs, text or arrays.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from mlxrpc_server.types import LogProbs, RowId, Sampling

MAX_FRAME = 256 * 1024 * 1024
"""A frame above this is a broken peer, not a message: the longest prompts take a few megabytes."""

_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What travels, in either direction."""


class Load(Message, frozen=True):
    """The first message down: which model to load and within which limits to run it."""

    name: str
    path: str
    log_format: str
    max_rows: int
    prefill_tokens: int
    """The most prompt tokens that one step prefills."""
    kv_bytes: int = 0
    """For the rows' keys and values; 0 for a share of the device's memory. One row alone always runs."""
    models: int = 1
    """That may be loaded at once, and share the device's memory."""
    kv_bits: int | None = None
    """In how many bits keys and values are kept; None: as they are computed."""
    metal_kernels: bool = False
    """Whether kernels of our own may run on an Apple GPU."""
    spelling: list[bytes] = []
    """What each token id says; empty for an id that says nothing. Constrained rows need it."""
    prefix_bytes: int | None = None
    """The most that is kept of rows' beginnings, in the room of their keys and values; None for a share of it."""


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What a row's tokens must spell."""

    grammar: str
    """Ready for llguidance."""
    after: list[int] = []
    """Tokens, one behind the other, up to which the row is free: the end of its thinking. Empty: bound from its start."""
    opening: int | None = None
    """A token that may come first, and makes the row free up to `after`; without it, it is bound. None: free at once."""


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """How long a row may think."""

    tokens: int
    """Behind the opening marker; where the closing one is not among them, it comes next."""
    closing: list[int]
    """The closing marker, as tokens, with line breaks around it."""
    end: bytes
    """The closing marker, as text."""
    start: bytes = b""
    """The opening marker, which may come first. Empty: the prompt has opened the reasoning."""
    marks: dict[int, bytes] = {}
    """What those tokens say in markers that have no text elsewhere."""


class Submit(Message, frozen=True):
    """Begin a row, or take it up again behind the tokens that it had already produced."""

    row: RowId
    prompt: list[int]
    produced: list[int]
    sampling: Sampling
    max_tokens: int
    """Of all tokens that the row may produce, those in `produced` counted."""
    stop_ids: list[int]
    logprobs: int = -1
    """Of how many of the likeliest tokens beside each drawn one; -1 for none at all."""
    min_tokens: int = 0
    """Until the row has so many, those in `produced` counted, none of its stop ids is drawn."""
    tenant: str = ""
    """Whose kept beginnings the row may share."""
    bypass: bool = False
    """The row neither uses what is kept nor leaves anything."""
    constraint: Constraint | None = None
    budget: Budget | None = None
    """Of its reasoning."""


class Cancel(Message, frozen=True):
    row: RowId


class Ask(Message, frozen=True):
    """How many of the first of these tokens need not be computed for a row that begins now?"""

    number: int
    tenant: str
    prompt: list[int]


class Shutdown(Message, frozen=True):
    pass


Down = Load | Submit | Cancel | Ask | Shutdown


class Progress(Message, frozen=True):
    """The load has come to this stage."""

    stage: str


class Ready(Message, frozen=True):
    """Loaded, warm and tested. The facts are measured, not taken from files."""

    vocabulary_size: int
    """The width of the logits: no id at or above it may be sent."""
    batched: bool
    """False where rows run one after another because the model's caches cannot be batched."""
    dtype: str
    device: str
    parameter_count: int
    memory_bytes: int
    blas: str = ""
    """What matrix products run on, for people to read; empty where the device is no CPU, or MLX takes the system's own."""


class Left(enum.IntEnum):
    """Why a row is gone from the worker."""

    STOP_TOKEN = 1
    LENGTH = 2
    CANCELLED = 3
    REFUSED = 4
    """The worker could not take the row at all: an id out of range, or nothing to feed."""
    FAILED = 5
    """A step raises whenever this row runs, also alone."""
    CONSTRAINT_COMPLETE = 6
    """What the row says is whole, and nothing may follow."""
    CONSTRAINT_BROKEN = 7
    """The constraint cannot be followed any further; Step.causes says why."""


class Step(Message, frozen=True):
    """All that one step did. A row that left is in `left`, its last token (if any) in the same frame."""

    step: int
    rows: list[RowId]
    tokens: list[int]
    left: list[RowId]
    reasons: list[Left]
    prefilled: list[tuple[RowId, int]]
    """How many tokens of these rows' prompts are in the cache now."""
    prefill_seconds: float
    seconds: float
    """The whole step."""
    logprobs: list[LogProbs | None] = []
    """One for each token, None where its row did not ask; empty where none did."""
    causes: list[tuple[RowId, str]] = []
    """In words, of the rows in `left` that have one."""
    cached: list[tuple[RowId, int]] = []
    """Rows that begin, and how many of their tokens need not be computed: something of another row's is kept."""


class Stats(Message, frozen=True):
    """What the worker holds, sent when it changes to idle and about once a second while it is not."""

    step: int
    rows: int
    """Those that run: in prefill, or decoding."""
    waiting: int
    """Those that have not begun."""
    memory_bytes: int
    prefix_bytes: int = 0
    """What is kept of rows' beginnings."""


class Held(Message, frozen=True):
    """The answer to the question of that number: so many of the first tokens need not be computed."""

    number: int
    tokens: int


class Failed(Message, frozen=True):
    """The model cannot be loaded; the worker ends after this."""

    cause: str


Up = Progress | Ready | Step | Stats | Held | Failed


def encode(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes in, messages out, however the bytes were cut. ValueError where they are no messages."""

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while (frame := self._next()) is not None:
            yield self._decoded(frame)

    def _decoded(self, frame: bytes) -> Message:
        try:
            message: Message = self._decoder.decode(frame)
        except msgspec.DecodeError as error:
            raise ValueError(f"a frame of {len(frame):,} bytes is no message: {error}") from error
        return message

    def _next(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length:,} bytes is no message")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return frame
