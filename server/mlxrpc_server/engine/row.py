"""One request in the engine: what was asked, and how far it has come. Knows no arrays but its own unfinished cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxrpc_server.engine.constraint import Guide
from mlxrpc_server.engine.penalties import History
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.thinking import Thinking
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId, Sampling

MOST_SETBACKS = 2


@dataclass(slots=True, eq=False)
class Row:
    id: RowId
    prompt: Sequence[int]
    produced: list[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]
    logprobs: int = -1
    """Of how many of the likeliest tokens beside each drawn one; -1 for none at all."""
    min_tokens: int = 0
    """How many it must have before a stop id can be drawn."""
    guide: Guide | None = None
    """What it may say, at the last token that was read; None for anything."""
    thinking: Thinking | None = None
    """How long it may still think, at the same token; None for as long as it likes."""
    tenant: str = ""
    """Whose kept beginnings it may share."""
    bypass: bool = False
    """Whether it neither uses what is kept nor leaves anything."""
    unread: int = 0
    """Tokens that were drawn behind `produced` and that nobody has read yet."""
    cache: list[Any] = field(default_factory=list)
    """Its own during prefill; then the KV has it."""
    cached: int = 0
    """Tokens of the context that its cache or the KV holds."""
    kept: Sequence[Kept] = ()
    """What it begins with, until it is fed for the first time."""
    halt: int = 0
    """Tokens behind which its state is worth keeping, in whole layouts: another row parted from it there."""
    arrival: int = 0
    """Its place among all rows that were submitted, for good."""
    setbacks: int = 0
    """Steps that raised while it ran, since its last token."""
    history: History = field(init=False)
    """What penalties look at: it sees `produced` grow."""

    def __post_init__(self) -> None:
        self.history = History(self.prompt, self.produced)

    @property
    def length(self) -> int:
        """Of the whole context, with what is not read yet."""
        return len(self.prompt) + len(self.produced) + self.unread

    @property
    def known(self) -> int:
        """How many of the cached tokens have been read."""
        return min(self.cached, len(self.prompt) + len(self.produced))

    @property
    def last_token(self) -> int:
        return self.produced[-1] if self.produced else self.prompt[-1]

    @property
    def to_prefill(self) -> int:
        """All but the last token, which the first decoding step feeds."""
        return self.length - 1 - self.cached

    @property
    def next_halt(self) -> int:
        """How many of those, up to the next place worth a stop."""
        return self.halt - self.cached if self.halt > self.cached else self.to_prefill

    @property
    def spent(self) -> bool:
        """Whether every token that it may produce has been drawn."""
        return len(self.produced) + self.unread >= self.max_tokens

    @property
    def early(self) -> bool:
        """Whether its next token cannot be one that ends it."""
        return len(self.produced) + self.unread < self.min_tokens

    @property
    def heeds(self) -> bool:
        """Whether what it may draw next follows from the token before, which must be read for it."""
        return self.guide is not None or (self.thinking is not None and self.thinking.due(self.unread))

    @property
    def closing(self) -> int | None:
        """The token that ends its reasoning, where that is what it must draw next."""
        token = self.thinking.closing if self.thinking is not None else None
        is_bound = self.guide is not None and not self.guide.free and token not in self.guide.besides
        return None if is_bound else token

    @property
    def suspected(self) -> bool:
        """Whether too many steps raised while it ran for that to be others' fault."""
        return self.setbacks >= MOST_SETBACKS

    @property
    def unstopped(self) -> Sequence[int]:
        """What it has produced, but for a stop token at the end: whatever that spells, it is no part of the text."""
        return self.produced[:-1] if self.produced and self.produced[-1] in self.stop_ids else self.produced

    def context(self, start: int, end: int) -> list[int]:
        """The tokens from `start` to `end` of prompt and produced together."""
        behind = len(self.prompt)
        produced = self.produced[max(0, start - behind) : max(0, end - behind)]
        return [*self.prompt[start:end], *produced]

    def gain(self, token: int) -> Left | None:
        """A drawn token is read; says why it was the last one, if it was."""
        self.unread -= 1
        self.setbacks = 0
        self.produced.append(token)
        if self.guide is not None and token not in self.stop_ids:
            self.guide.follow(token)
        if self.thinking is not None:
            self.thinking.follow(token)
        return self.ended()

    def ended(self) -> Left | None:
        if self.produced and self.produced[-1] in self.stop_ids:
            return Left.STOP_TOKEN
        if self.guide is not None and self.guide.fault:
            return Left.CONSTRAINT_BROKEN
        if self.guide is not None and self.guide.complete:
            return Left.CONSTRAINT_COMPLETE
        if len(self.produced) >= self.max_tokens:
            return Left.LENGTH
        return None

    def rewind(self) -> None:
        """Back to what was read: the rest is fed and drawn again, and comes out the same."""
        self.unread, self.cached, self.cache, self.kept, self.halt = 0, 0, [], (), 0
