"""The models that are loaded: at most so many, the least recently used one gives way.

A lease pins its model. First requests for one model share one load; where every loaded model is leased, a newcomer
waits for room. Tells each model's health whenever it changed. Knows entries, leases and time; nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from mlxrpc_server.catalog import Entry
from mlxrpc_server.errors import ModelUnusable, ServerError, Unavailable
from mlxrpc_server.failures import Failures
from mlxrpc_server.model import Model, Report
from mlxrpc_server.types import ModelHealth, ModelName, ModelState

log = logging.getLogger(__name__)

BEFORE_DEADLINE = 0.05
"""An answer must leave this long before its caller's deadline, or the caller never sees it."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_loaded: int = 4
    memory_budget: int | None = None
    """Bytes of weights over all loaded models; None leaves it to `max_loaded`."""
    longest_wait: float = 60.0
    """Seconds that a request without a nearer deadline waits for room or for a load."""
    max_in_flight: int = 256
    """Requests that one model may have at a time, running and waiting."""


@dataclass(frozen=True, slots=True)
class Status:
    """One model as the outside sees it."""

    state: ModelState
    reason: str = ""
    leases: int = 0
    requests: int = 0
    """The leases that are requests'; administration holds some too."""
    last_used: float | None = None
    """When a request last ended; seconds since the epoch."""
    load_seconds: float | None = None
    """How long the last load took."""
    loaded_at: float | None = None
    """Seconds since the epoch."""
    model: Model | None = None

    @property
    def running(self) -> int:
        """Requests that the worker has taken up."""
        return self.model.in_flight - self.model.queued if self.model else 0

    @property
    def queued(self) -> int:
        """Requests that wait: for the load, for the worker, or in its queue."""
        return max(0, self.requests - self.running)


class _Stage(enum.Enum):
    WAITING = enum.auto()
    LOADING = enum.auto()
    LOADED = enum.auto()
    UNLOADING = enum.auto()


@dataclass(eq=False)
class _Resident:
    """A model that is loaded, or on its way in or out."""

    entry: Entry
    model: Model
    stage: _Stage = _Stage.WAITING
    leases: int = 0
    requests: int = 0
    used: float = field(default_factory=time.monotonic)
    loaded_at: float | None = None
    reports: list[Report] = field(default_factory=list)
    loading: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None

    @property
    def occupies(self) -> bool:
        return self.stage is not _Stage.WAITING

    @property
    def evictable(self) -> bool:
        return self.stage is _Stage.LOADED and not self.leases and not self.entry.config.pin

    def report(self, stage: str) -> None:
        for report in self.reports:
            report(stage)


@dataclass
class _Past:
    """What is remembered of a model beyond its unloading."""

    last_used: float | None = None
    load_seconds: float | None = None


Make = Callable[[Entry, Callable[[], None]], Model]
"""A model that is not started yet, and whom it tells when its health changed."""


class Models:
    def __init__(
        self,
        make: Make,
        limits: Limits,
        health_changed: Callable[[ModelName, ModelHealth], None] = lambda _name, _health: None,
    ) -> None:
        self.limits = limits
        self._make = make
        self._health_changed = health_changed
        self._residents: dict[ModelName, _Resident] = {}
        self._failures = Failures()
        self._past: dict[ModelName, _Past] = {}
        self._told: dict[ModelName, ModelHealth] = {}
        self._known: dict[ModelName, Entry] = {}
        self._changed = asyncio.Event()
        self._closing = False

    @contextlib.asynccontextmanager
    async def lease(
        self, entry: Entry, deadline: float | None = None, report: Report | None = None, *, patient: bool = False
    ) -> AsyncIterator[Model]:
        """The model, loaded, and not evicted while the context lasts. `deadline` is in time.monotonic's terms.

        Whoever is `patient` waits beyond the longest wait of requests, for a large model takes minutes to load; tries
        one again that has just failed; and is not counted as a use.
        """
        until = self._until_at_most(deadline, math.inf if patient else self.limits.longest_wait)
        resident = await self._admitted(entry, until, patient=patient)
        if report is not None:
            resident.reports.append(report)
        resident.leases += 1
        resident.requests += not patient
        try:
            await self._loaded(resident, until)
            yield resident.model
        finally:
            resident.leases -= 1
            resident.requests -= not patient
            resident.used = time.monotonic()
            if not patient:
                self._remembered(entry).last_used = time.time()
            if report is not None:
                resident.reports.remove(report)
            self._abandon(resident)
            self._pulse()

    async def unload(self, entry: Entry, *, force: bool) -> int:
        """Ends a model's worker: behind its requests, or with `force` at once. Gives how many requests that ended.

        Waits as long as it takes. Cancelling it leaves the model loaded.
        """
        resident = self._residents.get(entry.name)
        if resident is None or resident.stage is _Stage.WAITING:
            return 0
        if resident.loading is not None:
            await self._loaded_or_not(resident.loading, force=force)
            return await self.unload(entry, force=force)
        resident.stage = _Stage.UNLOADING
        try:
            while resident.leases and not force:
                await self._changed.wait()
        except BaseException:
            if resident.ending is None:
                resident.stage = _Stage.LOADED
                self._pulse()
            raise
        ended = resident.model.in_flight
        await self._end(resident)
        return ended

    async def _loaded_or_not(self, loading: asyncio.Task[None], *, force: bool) -> None:
        """The end of a load, whatever it came to; with `force` it is given up."""
        if force:
            loading.cancel()
        await asyncio.wait([loading])

    def status(self, entry: Entry) -> Status:
        past = self._remembered(entry)
        resident = self._residents.get(entry.name)
        if resident is None:
            reason = self._why_unusable(entry)
            state = ModelState.FAILED if reason else ModelState.AVAILABLE
            return Status(state, reason, last_used=past.last_used, load_seconds=past.load_seconds)
        states = {
            _Stage.WAITING: ModelState.AVAILABLE,
            _Stage.LOADING: ModelState.LOADING,
            _Stage.LOADED: ModelState.LOADED,
            _Stage.UNLOADING: ModelState.UNLOADING,
        }
        lost = resident.model.lost
        return Status(
            ModelState.FAILED if lost else states[resident.stage],
            str(lost or ""),
            leases=resident.leases,
            requests=resident.requests,
            last_used=past.last_used,
            load_seconds=past.load_seconds,
            loaded_at=resident.loaded_at,
            model=resident.model if resident.occupies else None,
        )

    def health(self, entry: Entry) -> ModelHealth:
        resident = self._residents.get(entry.name)
        if resident is not None and resident.stage is _Stage.LOADED:
            return resident.model.health
        return ModelHealth.FAILED if self._why_unusable(entry) else ModelHealth.UP

    def failed(self, entry: Entry, error: ServerError) -> None:
        """For a cause found before a load was begun, such as a broken tokenizer: for a while it counts as failed."""
        if isinstance(error, ModelUnusable):
            wait = self._failures.note(entry.name, error, time.monotonic())
            # When the failure no longer stands, the model is up again, and balancers must learn it.
            asyncio.get_running_loop().call_later(wait, self._pulse)
            log.error("model failed", extra={"model": entry.name, "cause": str(error), "retry_seconds": wait})
            self._known[entry.name] = entry
            self._pulse()

    def _why_unusable(self, entry: Entry) -> str:
        failure = self._failures.current(entry.name, time.monotonic())
        return str(failure) if failure else entry.facts.problem

    def _remembered(self, entry: Entry) -> _Past:
        return self._past.setdefault(entry.name, _Past())

    async def drain(self) -> None:
        """Refuses whoever waits: for room, for a load, or in a model's queue. What runs goes on."""
        self._closing = True
        self._pulse()
        loading = [other.loading for other in self._residents.values() if other.loading is not None]
        for task in loading:
            task.cancel()
        for resident in self._residents.values():
            resident.model.refuse_queued(_draining())
        await asyncio.gather(*loading, return_exceptions=True)

    def end_requests(self) -> None:
        """Ends what still runs when there is no more time for it."""
        for resident in self._residents.values():
            resident.model.end_flights(_draining())

    async def close(self) -> None:
        await self.drain()
        await asyncio.gather(*(self._end(resident) for resident in list(self._residents.values())))

    async def _admitted(self, entry: Entry, until: float, *, patient: bool) -> _Resident:
        """The model's record, begun by whoever comes first; waits while the model is on its way out."""
        while True:
            if self._closing:
                raise _draining()
            resident = self._residents.get(entry.name)
            if resident is None:
                failure = self._failures.current(entry.name, time.monotonic())
                if failure is not None and not patient:
                    raise failure
                return self._begin(entry)
            if resident.leases >= self.limits.max_in_flight:
                sentence = f"model {entry.name!r} has {resident.leases} requests, which is its limit"
                raise Unavailable("QUEUE_FULL", sentence, 1.0)
            if resident.stage is not _Stage.UNLOADING:
                return resident
            await self._pulsed(until, _busy(entry, "is being unloaded"))

    def _begin(self, entry: Entry) -> _Resident:
        self._known[entry.name] = entry
        resident = self._residents[entry.name] = _Resident(entry, self._make(entry, self._pulse))
        resident.loading = asyncio.create_task(self._load(resident), name=f"load {entry.name}")
        resident.loading.add_done_callback(_retrieved)
        return resident

    async def _load(self, resident: _Resident) -> None:
        entry = resident.entry
        try:
            await entry.read_again()
            await self._make_room(resident)
            resident.stage = _Stage.LOADING
            self._pulse()
            begun = time.monotonic()
            await resident.model.start(resident.report)
        except BaseException as error:
            self._forget(resident)
            if isinstance(error, ServerError):
                self.failed(entry, error)
            raise
        self._remembered(entry).load_seconds = seconds = time.monotonic() - begun
        resident.loaded_at = time.time()
        resident.stage = _Stage.LOADED
        resident.loading = None
        self._failures.clear(entry.name)
        self._pulse()
        log.info("model loaded", extra={"model": entry.name, "seconds": round(seconds, 3)})

    async def _loaded(self, resident: _Resident, until: float) -> None:
        if resident.loading is not None:
            await self._finished(resident, resident.loading, until)

    async def _make_room(self, resident: _Resident) -> None:
        """Ends least recently used models until this one fits. Newcomers are served in their order of arrival."""
        self._refuse_hopeless(resident.entry)
        told = False
        while not (self._is_next(resident) and self._fits(resident.entry)):
            victim = self._victim(resident.entry) if self._is_next(resident) else None
            if victim is None:
                if not told:
                    resident.report("waiting")
                    told = True
                await self._changed.wait()
            else:
                log.info("evicting", extra={"model": victim.entry.name, "for": resident.entry.name})
                await self._end(victim)

    def _refuse_hopeless(self, entry: Entry) -> None:
        """Before any other model is evicted for it."""
        if entry.facts.problem:
            raise ModelUnusable(entry.name, entry.facts.problem)
        budget, needed = self.limits.memory_budget, entry.facts.weights_bytes
        if budget is not None and needed > budget:
            raise ModelUnusable(entry.name, f"its weights take {needed:,} bytes; the memory budget is {budget:,}")

    def _is_next(self, resident: _Resident) -> bool:
        waiting = (other for other in self._residents.values() if other.stage is _Stage.WAITING)
        return next(waiting, None) is resident

    def _fits(self, entry: Entry, without: Sequence[_Resident] = ()) -> bool:
        held = [other for other in self._residents.values() if other.occupies and other not in without]
        if len(held) >= self.limits.max_loaded:
            return False
        used = sum(other.entry.facts.weights_bytes for other in held)
        budget = self.limits.memory_budget
        return budget is None or used + entry.facts.weights_bytes <= budget

    def _victim(self, entry: Entry) -> _Resident | None:
        """The least recently used model; none where ending all that may be ended would not make room."""
        evictable = [other for other in self._residents.values() if other.evictable]
        if not self._fits(entry, without=evictable):
            return None
        return min(evictable, key=lambda other: other.used, default=None)

    async def _end(self, resident: _Resident) -> None:
        """Once begun it is carried through, whoever stops waiting for it."""
        resident.stage = _Stage.UNLOADING
        if resident.ending is None:
            resident.ending = asyncio.create_task(self._ended(resident), name=f"end {resident.entry.name}")
        await asyncio.shield(resident.ending)

    async def _ended(self, resident: _Resident) -> None:
        """The record goes last: until the process is gone, its memory is not free."""
        try:
            await resident.model.close()
        finally:
            self._forget(resident)

    def _abandon(self, resident: _Resident) -> None:
        """A load that still waits for room, and for which nobody waits any more, is dropped."""
        if resident.stage is _Stage.WAITING and not resident.leases and resident.loading is not None:
            resident.loading.cancel()
            # At once: who comes before the task has ended begins another load, and is not cancelled with this one.
            self._forget(resident)

    def _forget(self, resident: _Resident) -> None:
        if self._residents.get(resident.entry.name) is resident:
            del self._residents[resident.entry.name]
        self._pulse()

    async def _finished(self, resident: _Resident, loading: asyncio.Task[None], until: float) -> None:
        """Waits for a load that others wait for too: leaving does not stop it."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await asyncio.shield(loading)
        except TimeoutError:
            waits = resident.stage is _Stage.WAITING
            sentence = "waits for room: every loaded model is in use" if waits else "is still loading"
            raise _busy(resident.entry, sentence) from None
        except asyncio.CancelledError:
            if not loading.cancelled():
                raise
            if self._closing:
                raise _draining() from None
            sentence = f"model {resident.entry.name!r} was unloaded while it was loading"
            raise Unavailable("MODEL_UNLOADED", sentence, 1.0) from None

    async def _pulsed(self, until: float, late: ServerError) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            raise late from None

    def _until_at_most(self, deadline: float | None, longest_wait: float) -> float:
        """When whoever asks now has waited long enough, in time.monotonic's terms."""
        longest = time.monotonic() + longest_wait
        return longest if deadline is None else min(longest, deadline - BEFORE_DEADLINE)

    def _pulse(self) -> None:
        """Wakes everybody who waits for a change, and tells of those in health."""
        self._changed.set()
        self._changed = asyncio.Event()
        for name, entry in self._known.items():
            health = self.health(entry)
            if self._told.get(name) is not health:
                self._told[name] = health
                self._health_changed(name, health)


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the server is shutting down", 1.0)


def _busy(entry: Entry, what: str) -> Unavailable:
    return Unavailable("MODEL_BUSY", f"model {entry.name!r} {what}", 1.0)


def _retrieved(task: asyncio.Task[None]) -> None:
    """A load may fail when nobody waits for it any more; `_failures` has noted it."""
    if not task.cancelled():
        task.exception()
