"""The worker's loop: drain the inbox, step the batch, tell the server. Blocks only while there is nothing to do.

Rows whose grammar is still being compiled wait here, outside of the batch; it goes on without them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future
from typing import Protocol

import mlx.core as mx

from mlxrpc_server.engine import device, wire
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.constraint import Broken, Grammars, Guide
from mlxrpc_server.engine.outcome import Outcome
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.thinking import Thinking
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId

log = logging.getLogger(__name__)

STATS_EVERY = 1.0

IDLE_CACHE, IDLE_CACHE_ON_CPU = 1 / 16, 1 / 64
"""Of the device's memory, that MLX may keep for the next rows while there are none: to ask a driver for it takes time."""

COMPILES_WAIT = 0.02
"""Seconds between looks at the line while there is nothing but grammars to wait for."""


class Line(Protocol):
    """The way to the server: a socket, or a test's list."""

    def receive(self, *, wait: bool) -> Iterator[wire.Message]: ...

    def send(self, message: wire.Message) -> None: ...


class Loop:
    def __init__(
        self,
        line: Line,
        batch: Batch,
        vocabulary_size: int,
        clock: Callable[[], float],
        grammars: Grammars | None = None,
    ) -> None:
        self._line = line
        self._grammars = grammars
        self._compiling: dict[RowId, tuple[Row, Future[Guide]]] = {}
        self._batch = batch
        self._vocabulary_size = vocabulary_size
        self._clock = clock
        self._closing = False
        self._stats_sent = float("-inf")

    def run(self) -> None:
        while not self._closing:
            self._receive()
            self._take_compiled()
            self._step()
            self._tell_stats()

    def _receive(self) -> None:
        for message in self._line.receive(wait=self._batch.idle and not self._compiling):
            match message:
                case wire.Submit():
                    self._submit(message)
                case wire.Cancel(row) if row in self._compiling:
                    _, guide = self._compiling.pop(row)
                    guide.cancel()
                    self._batch.refuse(row, Left.CANCELLED)
                case wire.Cancel(row):
                    self._batch.cancel(row)
                case wire.Ask(number, tenant, prompt):
                    self._line.send(wire.Held(number, self._batch.held(tenant, prompt)))
                case wire.Shutdown():
                    self._closing = True
                case _:
                    raise ValueError(f"unexpected {type(message).__name__}")

    def _submit(self, submit: wire.Submit) -> None:
        """An id outside the logits would end the process on some backends: it is refused before it gets near."""
        biased = [token for token, _ in submit.sampling.logit_bias]
        closing = submit.budget.closing if submit.budget else ()
        ids = (*submit.prompt, *submit.produced, *biased, *closing)
        if not submit.prompt or min(ids) < 0 or max(ids) >= self._vocabulary_size:
            self._batch.refuse(submit.row)
            return
        row = Row(
            id=submit.row,
            prompt=submit.prompt,
            produced=submit.produced,
            sampling=submit.sampling,
            max_tokens=submit.max_tokens,
            # What the logits do not have is never drawn.
            stop_ids=frozenset(token for token in submit.stop_ids if token < self._vocabulary_size),
            logprobs=submit.logprobs,
            min_tokens=submit.min_tokens,
            thinking=self._thinking(submit),
            tenant=submit.tenant,
            bypass=submit.bypass,
        )
        if submit.constraint is None:
            self._batch.submit(row)
        elif self._grammars is None:
            self._batch.refuse(row.id, Left.CONSTRAINT_BROKEN, "the model came without its tokens' spelling")
        else:
            self._compiling[row.id] = row, self._grammars.begin(submit.constraint, row.unstopped)

    def _thinking(self, submit: wire.Submit) -> Thinking | None:
        if submit.budget is None:
            return None
        return Thinking(submit.budget, self._grammars.spelling if self._grammars else (), submit.produced)

    def _take_compiled(self) -> None:
        """Into the batch; where they are all that there is, waits a little."""
        if not self._compiling:
            return
        if self._batch.idle:
            futures.wait([guide for _, guide in self._compiling.values()], COMPILES_WAIT, FIRST_COMPLETED)
        for row, guide in [waiting for waiting in self._compiling.values() if waiting[1].done()]:
            del self._compiling[row.id]
            try:
                row.guide = guide.result()
                self._batch.submit(row)
            except Broken as broken:
                self._batch.refuse(row.id, Left.CONSTRAINT_BROKEN, str(broken))

    def _step(self) -> None:
        if self._batch.idle:
            return
        try:
            outcome = self._batch.step()
        except Exception:  # whatever MLX and a model's own code raise: memory, most of all
            log.exception("a step fails; its rows begin again behind their last tokens")
            outcome = self._batch.rebuild()
        if outcome.preempted:
            facts = {"rows": outcome.preempted, "beside": self._batch.rows, "kv_bytes": self._batch.nbytes}
            log.info("rows went back to the queue for want of memory", extra=facts)
        if outcome.news:
            self._line.send(_told(outcome))

    def _tell_stats(self) -> None:
        now = self._clock()
        if not self._batch.idle and now - self._stats_sent < STATS_EVERY:
            return
        self._stats_sent = now
        if self._batch.idle:
            device.keep_cached(int((IDLE_CACHE_ON_CPU if device.on_cpu() else IDLE_CACHE) * device.memory_bytes()))
        self._line.send(
            wire.Stats(
                step=self._batch.steps,
                rows=self._batch.rows,
                waiting=self._batch.waiting,
                memory_bytes=mx.get_active_memory(),
                prefix_bytes=self._batch.prefix_bytes,
            )
        )


def _told(outcome: Outcome) -> wire.Step:
    """The outcome in columns."""
    return wire.Step(
        step=outcome.step,
        rows=[row for row, _ in outcome.tokens],
        tokens=[token for _, token in outcome.tokens],
        left=[row for row, _ in outcome.left],
        reasons=[reason for _, reason in outcome.left],
        prefilled=outcome.prefilled,
        cached=outcome.cached,
        prefill_seconds=outcome.prefill_seconds,
        seconds=outcome.seconds,
        logprobs=outcome.logprobs if any(outcome.logprobs) else [],
        causes=outcome.causes,
    )
