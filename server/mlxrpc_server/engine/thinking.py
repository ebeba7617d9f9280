"""How much longer a row may think: the budget of its reasoning, and the marker that closes it when that is spent.

What is to be drawn follows from the row's tokens alone, so it is the same wherever the row is taken up again. Knows the
markers' text and what each token says; not why anybody wants less reasoning.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxrpc_server.engine import wire

UNHEARD = b"\0"
"""For tokens without text, other than markers': nothing that is written over them is a marker."""


class Thinking:
    """One row's reasoning, as far as its tokens are read."""

    def __init__(self, budget: wire.Budget, spelling: Sequence[bytes], produced: Sequence[int] = ()) -> None:
        self._budget = budget
        self._spelling = spelling
        self._said = b""
        """Behind the last token that cannot belong to a marker any more, or all of it."""
        self._spent = -1 if budget.start else 0
        """Tokens behind the opening marker; -1 before it."""
        self._over = False
        for token in produced:
            self.follow(token)

    @property
    def closing(self) -> int | None:
        """The token that comes next whatever the model would draw; None where it is the model's choice."""
        late = self._spent - self._budget.tokens
        return None if self._over or late < 0 else self._budget.closing[late]

    def due(self, unread: int) -> bool:
        """Whether that may be said of the next token, with so many before it that nobody has read."""
        return not self._over and self._spent + unread >= self._budget.tokens

    def follow(self, token: int) -> None:
        if self._over:
            return
        self._said += self._text(token)
        if self._spent < 0:
            self._begin()
        else:
            self._spent += 1
        if self._spent > self._budget.tokens:
            self._over = self._spent - self._budget.tokens == len(self._budget.closing)
        elif self._spent >= 0:
            self._look_for_the_end()

    def _begin(self) -> None:
        """Reasoning comes first, behind line breaks at most, or not at all."""
        rest, start = self._said.lstrip(b"\n"), self._budget.start
        if rest.startswith(start):
            self._spent, self._said = 0, rest[len(start) :]
        else:
            self._said, self._over = rest, not start.startswith(rest)

    def _look_for_the_end(self) -> None:
        end = self._budget.end
        self._over = end in self._said
        self._said = self._said[-(len(end) - 1) :] if len(end) > 1 else b""

    def _text(self, token: int) -> bytes:
        said = self._spelling[token] if token < len(self._spelling) else b""
        return self._budget.marks.get(token) or said or UNHEARD


def closed(logits: mx.array, closing: Sequence[int | None]) -> mx.array:
    """The logits of all rows, with nothing left to draw but the closing token where there is one."""
    if all(token is None for token in closing):
        return logits
    tokens = mx.array([-1 if token is None else token for token in closing])[:, None]
    alone = mx.where(mx.arange(logits.shape[-1]) == tokens, 0.0, -mx.inf).astype(logits.dtype)
    return mx.where(tokens >= 0, alone, logits)
