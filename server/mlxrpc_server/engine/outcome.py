"""What one step did, for whoever tells the rows' owners. Knows rows by their numbers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import LogProbs, RowId


@dataclass(slots=True)
class Outcome:
    step: int
    tokens: list[tuple[RowId, int]] = field(default_factory=list)
    logprobs: list[LogProbs | None] = field(default_factory=list)
    """One for each token, None where its row did not ask."""
    left: list[tuple[RowId, Left]] = field(default_factory=list)
    causes: list[tuple[RowId, str]] = field(default_factory=list)
    """Why, in words, where there is more to say."""
    prefilled: list[tuple[RowId, int]] = field(default_factory=list)
    cached: list[tuple[RowId, int]] = field(default_factory=list)
    """Rows that begin, and how many of their tokens need not be computed."""
    preempted: list[RowId] = field(default_factory=list)
    """Rows that went back to the queue, for want of memory."""
    prefill_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def news(self) -> bool:
        """Whether there is anything in it for a row's owner."""
        return bool(self.tokens or self.left or self.prefilled)
