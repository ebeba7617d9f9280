"""One loaded model: its worker, and the requests in flight through it.

Nothing is lost when the worker dies: it is replaced at once, and every unfinished request goes on from the tokens
that it has. Knows token ids; no text, no protos.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import assert_never

import msgspec

from mlxrpc_server.catalog import Entry
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ModelUnusable, ServerError, Unavailable
from mlxrpc_server.flight import Flight, Orders
from mlxrpc_server.types import ModelHealth, RowId
from mlxrpc_server.worker import Worker

log = logging.getLogger(__name__)

MAX_STRIKES = 2
"""A request that sees so many workers die without a token in between is given up."""

START_ATTEMPTS = 2
"""A worker that is killed while it loads may have been killed by chance; twice is no chance."""

NOTHING_YET = wire.Stats(step=0, rows=0, waiting=0, memory_bytes=0)
"""What a worker holds before it has told."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Between attempts to replace a worker; the last one for ever after."""

PATIENT_ATTEMPTS = 3
"""So many times requests wait with the model where no process can be started; then they are told."""

ANSWER_SECONDS = 1.0
"""A worker answers between two steps. Whoever asks only wants to know: no call waits longer for it."""

Report = Callable[[str], None]
"""Told of each stage of a load."""

Spawn = Callable[[], Awaitable[Worker]]


Spelling = Callable[[], Awaitable[Sequence[bytes]]]
"""What each token id says; nothing where the tokenizer cannot be had."""


async def no_spelling() -> Sequence[bytes]:
    return ()


def no_report(_stage: str) -> None:
    pass


class Model:
    def __init__(
        self,
        entry: Entry,
        load: wire.Load,
        *,
        spawn: Spawn = Worker.spawn,
        changed: Callable[[], None] = lambda: None,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        spelling: Spelling = no_spelling,
    ) -> None:
        self.entry = entry
        self.ready: wire.Ready | None = None
        self.stats = NOTHING_YET
        self.restarts = 0
        self._load = load
        self._spelling = spelling
        self._spawn = spawn
        self._changed = changed
        self._retry_seconds = retry_seconds
        self._worker: Worker | None = None
        self._serving = False
        self._flights: dict[RowId, Flight] = {}
        self._over: ServerError | None = None
        self._lost: ServerError | None = None
        self._rows = itertools.count(1)
        self._questions: dict[int, asyncio.Future[int]] = {}
        self._question_numbers = itertools.count(1)
        self._prefill_rate = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self, report: Report = no_report) -> None:
        """Returns when the model is warm. Raises ModelUnusable where it cannot be loaded."""
        self._worker = await self._started(report)
        self._serving = True
        self._task = asyncio.create_task(self._serve(self._worker), name=f"model {self.entry.name}")

    async def close(self) -> None:
        """Ends the worker, and every request that is still in flight."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.end_flights(Unavailable("MODEL_UNLOADED", f"model {self.entry.name!r} was unloaded", 1.0))
        if self._worker is not None:
            await self._worker.end()
            self._worker = None

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def queued(self) -> int:
        """Those in flight that no worker has taken up yet."""
        return sum(1 for flight in self._flights.values() if flight.began_at is None)

    @property
    def lost(self) -> ServerError | None:
        """Why the worker cannot be replaced, while that is so."""
        return self._lost

    @property
    def health(self) -> ModelHealth:
        if self._lost is not None:
            return ModelHealth.FAILED
        return ModelHealth.UP if self._serving else ModelHealth.REPLACING

    def seconds_to_first_token(self, prompt_tokens: int) -> float:
        """The least that a prompt of that length would have to wait: at the best rate seen, behind those before it."""
        if not self._prefill_rate:
            return 0.0
        ahead = sum(flight.to_prefill for flight in self._flights.values())
        return (ahead + prompt_tokens) / self._prefill_rate

    async def soonest(self, orders: Orders, wanted: float) -> float:
        """The same for these; where that is more than wanted, without what the worker need not compute."""
        seconds = self.seconds_to_first_token(len(orders.prompt))
        if seconds <= wanted or orders.cache.bypass:
            return seconds
        held = await self.held(orders.cache.tenant, orders.prompt)
        return self.seconds_to_first_token(len(orders.prompt) - held)

    async def held(self, tenant: str, prompt: Sequence[int]) -> int:
        """How many of its first tokens the worker would not compute; 0 where it does not say so in time."""
        if not self._serving:
            return 0
        number = next(self._question_numbers)
        question: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        self._send(wire.Ask(number, tenant, list(prompt)))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question
        except TimeoutError:
            return 0
        finally:
            del self._questions[number]

    @contextlib.contextmanager
    def fly(self, orders: Orders, produced: Sequence[int] = ()) -> Iterator[Flight]:
        """Submits a request; leaving the context, for whatever reason, takes it out of the worker."""
        flight = Flight(RowId(next(self._rows)), orders, produced, time.monotonic())
        self._flights[flight.row] = flight
        if (error := self._over or self._lost) is not None:
            flight.fail(error)
        self._submit(flight)
        try:
            yield flight
        finally:
            del self._flights[flight.row]
            if not flight.ended:
                self._send(wire.Cancel(flight.row))

    def refuse_queued(self, error: ServerError) -> None:
        """Ends the requests that the worker has not taken up yet."""
        for flight in self._flights.values():
            if flight.began_at is None:
                flight.fail(error)
                self._send(wire.Cancel(flight.row))

    def _submit(self, flight: Flight) -> None:
        """While the worker is being replaced there is nobody to tell: the replacement is told of all."""
        if self._serving and not flight.ended:
            self._send(flight.submission())

    def _send(self, message: wire.Message) -> None:
        if self._worker is not None:
            self._worker.send(message)

    def end_flights(self, error: ServerError) -> None:
        """Those to come, too: whoever leased the model before its end may still submit."""
        self._over = self._over or error
        self._fail_flights(error)

    async def _serve(self, worker: Worker) -> None:
        """Owns the worker: routes what it says, and replaces it whenever it is gone."""
        while True:
            try:
                await self._route(worker)
            except ValueError:
                log.exception("the worker talks nonsense", extra={"model": self.entry.name, "pid": worker.pid})
            worker = await self._replaced(worker)

    async def _route(self, worker: Worker) -> None:
        """Until the worker is gone."""
        async for message in worker.messages():
            match message:
                case wire.Step():
                    self._step(message)
                case wire.Stats():
                    self.stats = message
                case wire.Held(number, tokens):
                    if (question := self._questions.get(number)) is not None and not question.done():
                        question.set_result(tokens)
                case wire.Ready() | wire.Progress() | wire.Failed():
                    log.warning("unexpected message", extra={"model": self.entry.name, "kind": str(type(message))})

    def _step(self, step: wire.Step) -> None:
        now = time.monotonic()
        for row, cached in step.cached:
            if (flight := self._flights.get(row)) is not None:
                flight.begin_behind(cached)
        self._measure_prefill(step)
        for row, prefilled in step.prefilled:
            if (flight := self._flights.get(row)) is not None:
                flight.advance(prefilled, now, step.seconds)
        logprobs = step.logprobs or [None] * len(step.rows)
        for row, token, its in zip(step.rows, step.tokens, logprobs, strict=True):
            if (flight := self._flights.get(row)) is not None:
                flight.append(token, now, its)
        causes = dict(step.causes)
        for row, reason in zip(step.left, step.reasons, strict=True):
            if (flight := self._flights.get(row)) is not None:
                flight.leave(reason, causes.get(row, ""))

    def _measure_prefill(self, step: wire.Step) -> None:
        known = (self._flights.get(row) for row, _ in step.prefilled)
        before = sum(flight.prefilled for flight in known if flight is not None)
        fed = sum(prefilled for row, prefilled in step.prefilled if row in self._flights) - before
        if fed > 0 and step.prefill_seconds > 0:
            self._prefill_rate = max(self._prefill_rate, fed / step.prefill_seconds)

    async def _replaced(self, worker: Worker) -> Worker:
        """A new worker that has been told of every request in flight, however long it takes to get one."""
        self._serving = False
        self._changed()
        how = await worker.end()
        self.restarts += 1
        log.warning(
            "the worker died; replacing it",
            extra={"model": self.entry.name, "pid": worker.pid, "how": how, "in_flight": self.in_flight},
        )
        self._strike(how)
        self._worker = replacement = await self._started_at_last()
        self.stats = NOTHING_YET
        self._serving, self._lost = True, None
        self._changed()
        for flight in list(self._flights.values()):
            if not flight.ended:
                self._send(flight.submission())
        return replacement

    async def _started_at_last(self) -> Worker:
        for attempt in itertools.count():
            wait = self._retry_seconds[min(attempt, len(self._retry_seconds) - 1)]
            try:
                return await self._started(no_report)
            except ServerError as error:
                log.error(
                    "no worker can be had",
                    extra={"model": self.entry.name, "cause": str(error), "retry_seconds": wait},
                )
                if isinstance(error, ModelUnusable) or attempt + 1 >= PATIENT_ATTEMPTS:
                    self._lost = Unavailable("ENGINE_DIED", str(error), wait)
                    self._fail_flights(self._lost)
                    self._changed()
            await asyncio.sleep(wait)
        raise AssertionError("counting has no end")

    def _strike(self, how: str) -> None:
        for flight in self._flights.values():
            if flight.crashed() >= MAX_STRIKES:
                sentence = f"the engine died {MAX_STRIKES} times under this request ({how}) without a token in between"
                flight.fail(Unavailable("ENGINE_DIED", sentence, 1.0))

    def _fail_flights(self, error: ServerError) -> None:
        for flight in self._flights.values():
            flight.fail(error)

    async def _started(self, report: Report) -> Worker:
        """A worker that has said Ready."""
        how = ""
        for _attempt in range(START_ATTEMPTS):
            worker = await self._spawned()
            try:
                self.ready = await self._loaded(worker, report)
            except BaseException:
                await worker.end()
                raise
            if self.ready is not None:
                return worker
            how = await worker.end()
        raise ModelUnusable(self.entry.name, f"its worker died while loading it ({how})")

    async def _spawned(self) -> Worker:
        try:
            return await self._spawn()
        except OSError as error:
            raise Unavailable("NO_WORKER", f"no worker process can be started: {error}", 5.0) from error

    async def _loaded(self, worker: Worker, report: Report) -> wire.Ready | None:
        """None where the worker died before it said anything final."""
        worker.send(msgspec.structs.replace(self._load, spelling=list(await self._spelling())))
        async for message in worker.messages():
            match message:
                case wire.Progress():
                    report(message.stage)
                case wire.Ready():
                    return message
                case wire.Failed(cause):
                    raise ModelUnusable(self.entry.name, cause)
                case wire.Step() | wire.Stats() | wire.Held():
                    raise ModelUnusable(self.entry.name, "its worker began to step before it was ready")
                case _:
                    assert_never(message)  # type: ignore[arg-type]
        return None
