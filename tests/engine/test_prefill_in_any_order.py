"""Whatever comes while prompts go through the model in parts: who stays gets the tokens that it gets alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.kernels.plain import PlainStore
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.paged import Form, Paged
from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.sizes import FEW
from mlxrpc_server.engine.wire import Left
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import Run, alone, row

LAYERS = 4
MODEL = tiny.attention(LAYERS)
FORM = Form(layers=LAYERS, kv_heads=2, head_size=8, queries=2, dtype=mx.float32)
LENGTHS, TOKENS = (2, 40, 600, 700), (1, 9, 60)
SLAB = 8
ROOM = Room(rows=4, bytes=6 * SLAB * FORM.page_bytes)
"""Too small for four of the longest."""


class Few(PlainStore):
    sizes = FEW


class Dear:
    """The model, on a device where a prompt takes as long as many steps, and a clock that says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.now += 0.003 if tokens.shape[1] == 1 else 0.02 + 0.0001 * tokens.size
        logits: mx.array = MODEL(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(MODEL, name)

    def clock(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Submit:
    length: int
    tokens: int
    shared: bool
    """Whether it begins like all others that are."""

    def prompt(self, number: int) -> list[int]:
        begin = [7] * (self.length // 2) if self.shared else []
        return begin + [(number + 3 * place) % 90 for place in range(self.length - len(begin))]


@dataclass(frozen=True, slots=True)
class Burst:
    """Some rows at once, of which one is cancelled behind so many steps."""

    submits: list[Submit]
    steps: int
    cancelled: int | None


@dataclass(frozen=True, slots=True)
class Raised:
    """A step did, behind so many others."""

    steps: int


Event = Burst | Raised
SUBMITS = st.builds(Submit, st.sampled_from(LENGTHS), st.sampled_from(TOKENS), st.booleans())
BURSTS = st.builds(
    Burst, st.lists(SUBMITS, min_size=1, max_size=3), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 2))
)
EVENTS = st.lists(st.one_of(BURSTS, BURSTS, BURSTS, st.builds(Raised, st.integers(0, 3))), min_size=1, max_size=6)
FIRST = Submit(40, 150, shared=False)
"""It goes on beside all others."""


@cache
def expected(submit: Submit, number: int) -> list[int]:
    return alone(MODEL, row(number, submit.prompt(number), max_tokens=submit.tokens))


def played(events: list[Event], kv: KV, model: Dear) -> tuple[Run, list[Submit]]:
    run = Run(model, kv=kv, max_rows=4, ahead=True, clock=model.clock, prefix_bytes=1 << 21)
    submitted: list[Submit] = []

    def submit(one: Submit) -> None:
        run.batch.submit(row(len(submitted), one.prompt(len(submitted)), max_tokens=one.tokens))
        submitted.append(one)

    submit(FIRST)
    run.step(4)
    for event in events:
        match event:
            case Burst(submits, steps, cancelled):
                for one in submits:
                    submit(one)
                run.step(steps)
                if cancelled is not None:
                    run.batch.cancel(row(len(submitted) - 1 - cancelled % len(submits), []).id)
            case Raised(steps):
                run.step(steps)
                run.outcomes.append(run.batch.rebuild())
    return run.to_end(), submitted


def judged(run: Run, submitted: list[Submit]) -> None:
    for number, submit in enumerate(submitted):
        [left] = run.left(number)
        tokens = run.tokens(number)
        if left is Left.CANCELLED:
            assert tokens == expected(submit, number)[: len(tokens)]
        elif left is not Left.FAILED:
            assert tokens == expected(submit, number)


@settings(max_examples=30, deadline=None)
@given(EVENTS)
def test_rows_in_pages_of_few_sizes(events: list[Event]) -> None:
    model = Dear()
    judged(*played(events, Paged(model, FORM, Few(FORM, SLAB), ROOM), model))


@settings(max_examples=15, deadline=None)
@given(EVENTS)
def test_rows_in_blocks(events: list[Event]) -> None:
    model = Dear()
    judged(*played(events, for_model(model, ROOM), model))
