"""The worker's loop: drain the inbox, step the batch, tell the server. Blocks only while there is nothing to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import mlx.core as mx

from mlxrpc_server.engine import wire
from mlxrpc_server.engine.batch import Batch, Outcome
from mlxrpc_server.engine.row import Row

log = logging.getLogger(__name__)

STATS_EVERY = 1.0


class Line(Protocol):
    """The way to the server: a socket, or a test's list."""

    def receive(self, *, wait: bool) -> Iterator[wire.Message]: ...

    def send(self, message: wire.Message) -> None: ...


class Loop:
    def __init__(self, line: Line, batch: Batch, vocabulary_size: int, clock: Callable[[], float]) -> None:
        self._line = line
        self._batch = batch
        self._vocabulary_size = vocabulary_size
        self._clock = clock
        self._closing = False
        self._stats_sent = float("-inf")

    def run(self) -> None:
        while not self._closing:
            self._receive()
            self._step()
            self._tell_stats()

    def _receive(self) -> None:
        for message in self._line.receive(wait=self._batch.idle):
            match message:
                case wire.Submit():
                    self._submit(message)
                case wire.Cancel(row):
                    self._batch.cancel(row)
                case wire.Shutdown():
                    self._closing = True
                case _:
                    raise ValueError(f"unexpected {type(message).__name__}")

    def _submit(self, submit: wire.Submit) -> None:
        """An id outside the logits would end the process on some backends: it is refused before it gets near."""
        biased = [token for token, _ in submit.sampling.logit_bias]
        ids = (*submit.prompt, *submit.produced, *biased)
        if not submit.prompt or min(ids) < 0 or max(ids) >= self._vocabulary_size:
            self._batch.refuse(submit.row)
            return
        self._batch.submit(
            Row(
                id=submit.row,
                prompt=submit.prompt,
                produced=submit.produced,
                sampling=submit.sampling,
                max_tokens=submit.max_tokens,
                # What the logits do not have is never drawn.
                stop_ids=frozenset(token for token in submit.stop_ids if token < self._vocabulary_size),
                logprobs=submit.logprobs,
                min_tokens=submit.min_tokens,
            )
        )

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
            mx.clear_cache()
        self._line.send(
            wire.Stats(
                step=self._batch.steps,
                rows=self._batch.rows,
                waiting=self._batch.waiting,
                memory_bytes=mx.get_active_memory(),
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
        prefill_seconds=outcome.prefill_seconds,
        seconds=outcome.seconds,
        logprobs=outcome.logprobs if any(outcome.logprobs) else [],
    )
