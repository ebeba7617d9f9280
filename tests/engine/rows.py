"""Rows of a KV beside what they give alone, and scripts of what may happen to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import mlx.core as mx
from hypothesis import strategies as st

from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.layouts import layouts
from mlxrpc_server.engine.room import UNBOUNDED, Room
from mlxrpc_server.types import RowId
from tests.engine import tiny

prompts = st.lists(st.integers(0, tiny.VOCABULARY - 1), min_size=1, max_size=12)
joins = st.tuples(st.just("join"), prompts)
joint = st.tuples(st.just("join together"), st.lists(prompts, min_size=2, max_size=4))
leaves = st.tuples(st.just("leave"), st.integers(0, 9))
steps = st.tuples(st.just("step"), st.integers(0, tiny.VOCABULARY - 1))
operations = st.lists(st.one_of(joins, leaves, steps), min_size=1, max_size=12)
joint_operations = st.lists(st.one_of(joins, joint, leaves, steps), min_size=1, max_size=12)


Alone = Callable[[Any, Sequence[int]], mx.array]
"""A model's logits behind the last of the tokens."""


def for_model(model: Any, room: Room = UNBOUNDED, kv_bits: int | None = None) -> KV:
    """The layout that suits the model best."""
    return next(layouts(model, room, kv_bits))


class Rows:
    """A KV and, beside it, what each of its rows holds."""

    def __init__(self, model: Any, kv: KV, alone: Alone = tiny.logits_alone) -> None:
        self.held: dict[RowId, list[int]] = {}
        self._alone = alone
        self._model = model
        self._kv = kv
        self._numbers = count()

    def join(self, prompt: Sequence[int]) -> None:
        """All but the last token is prefilled, which the next step feeds."""
        self.join_together([prompt])

    def join_together(self, prompts: Sequence[Sequence[int]]) -> None:
        """In one prefill, padded behind with what must never be seen."""
        cache = self._kv.open()
        longest = max(len(prompt) for prompt in prompts) - 1
        if longest:
            self._model(
                mx.array([[*prompt[:-1], *[9] * (longest - len(prompt) + 1)] for prompt in prompts]), cache=cache
            )
        rows = [RowId(next(self._numbers)) for _ in prompts]
        self._kv.join(rows, cache, [len(prompt) - 1 for prompt in prompts])
        self.held |= {row: list(prompt) for row, prompt in zip(rows, prompts, strict=True)}

    def leave(self, index: int) -> None:
        row = list(self.held)[index]
        self._kv.leave(row)
        del self.held[row]

    def step(self) -> float:
        """Feeds every row its last token; gives the largest difference to the rows' logits alone."""
        order = self._kv.arrange()
        assert sorted(order) == sorted(self.held)
        together = self._kv.decode(mx.array([self.held[row][-1] for row in order]))
        alone = mx.stack([self._alone(self._model, self.held[row]) for row in order])
        return float(mx.abs(together - alone).max())

    def append(self, token: int) -> None:
        for place, row in enumerate(self.held.values()):
            row.append((token + 13 * place) % tiny.VOCABULARY)


def run(rows: Rows, script: Sequence[tuple[str, Any]]) -> float:
    """The largest difference that any step showed."""
    worst = 0.0
    for kind, value in script:
        if kind == "join":
            rows.join(value)
        elif kind == "join together":
            rows.join_together(value)
        elif kind == "leave" and value < len(rows.held):
            rows.leave(value)
        elif kind == "step" and rows.held:
            worst = max(worst, rows.step())
            rows.append(value)
    return worst
