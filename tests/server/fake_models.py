"""Models without workers, whose loads and ends last as long as a test likes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mlxrpc_server.catalog import Catalog, Entry
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ServerError
from mlxrpc_server.model import Model, Report, no_report
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.types import ModelHealth
from tests import fakes

LOAD = wire.Load(name="", path="", log_format="text", max_rows=1, prefill_tokens=1)


class FakeModel(Model):
    """Tells its house when it begins and ends to load and to close, and lasts while the house holds it."""

    def __init__(self, house: House, entry: Entry, changed: Callable[[], None]) -> None:
        super().__init__(entry, LOAD, changed=changed)
        self.refusals: list[ServerError] = []
        self._house = house

    async def start(self, report: Report = no_report) -> None:
        name = self.entry.name
        self._house.note(f"load {name}")
        report("weights")
        try:
            await self._house.passed(f"load {name}")
        except asyncio.CancelledError:
            self._house.note(f"gave up {name}")
            raise
        if (error := self._house.errors.get(name)) is not None:
            raise error
        self._serving = True
        self._house.note(f"loaded {name}")

    def be(self, *, serving: bool, lost: ServerError | None = None) -> None:
        """What a worker's death, and the search for another, make of it."""
        self._serving, self._lost = serving, lost
        self._changed()

    async def close(self) -> None:
        self._house.note(f"end {self.entry.name}")
        await self._house.passed(f"end {self.entry.name}")
        self._house.note(f"ended {self.entry.name}")

    def refuse_queued(self, error: ServerError) -> None:
        self.refusals.append(error)


class House:
    """The models under test, and what happened to them, in order."""

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self.events: list[str] = []
        self.errors: dict[str, ServerError] = {}
        self.health: list[tuple[str, ModelHealth]] = []
        self.catalog = catalog
        self.models = Models(self._make, limits, lambda name, health: self.health.append((name, health)))
        self._held: dict[str, asyncio.Event] = {}
        self._noted = asyncio.Event()

    def _make(self, entry: Entry, changed: Callable[[], None]) -> FakeModel:
        return FakeModel(self, entry, changed)

    def entry(self, name: str) -> Entry:
        return self.catalog.find(name)

    def lease(self, name: str, deadline: float | None = None, report: Report | None = None) -> Lease:
        return Lease(self.models, self.entry(name), deadline, report)

    async def use(self, *names: str) -> None:
        """Each is leased and given back, one after another."""
        for name in names:
            async with self.models.lease(self.entry(name)):
                pass

    def hold(self, event: str) -> None:
        """`load NAME` or `end NAME` does not come to its end before it is let go."""
        self._held[event] = asyncio.Event()

    def let_go(self, event: str) -> None:
        self._held.pop(event).set()

    async def passed(self, event: str) -> None:
        if (held := self._held.get(event)) is not None:
            await held.wait()

    def note(self, event: str) -> None:
        self.events.append(event)
        self._noted.set()

    async def seen(self, event: str) -> None:
        while event not in self.events:
            self._noted.clear()
            await self._noted.wait()

    def count(self, event: str) -> int:
        return self.events.count(event)

    def loaded(self) -> list[str]:
        """Those in memory, by name."""
        return [entry.name for entry in self.catalog if self.models.status(entry).model is not None]


class Lease:
    """A lease that a task asks for and holds until it is given back."""

    def __init__(self, models: Models, entry: Entry, deadline: float | None, report: Report | None) -> None:
        self._models = models
        self._given_back = asyncio.Event()
        self._model: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live(entry, deadline, report))

    async def _live(self, entry: Entry, deadline: float | None, report: Report | None) -> None:
        try:
            async with self._models.lease(entry, deadline, report) as model:
                self._model.set_result(model)
                await self._given_back.wait()
        except BaseException as error:
            if not self._model.done():
                self._model.set_exception(error) if isinstance(error, Exception) else self._model.cancel()
                self._model.add_done_callback(_retrieved)
            raise

    async def granted(self) -> FakeModel:
        model = await self._model
        assert isinstance(model, FakeModel)
        return model

    @property
    def waits(self) -> bool:
        return not self._model.done()

    async def give_back(self) -> None:
        self._given_back.set()
        await self.task

    async def give_up(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


def _retrieved(model: asyncio.Future[Model]) -> None:
    """A test may look at the task's error alone."""
    if not model.cancelled():
        model.exception()


@contextlib.asynccontextmanager
async def house(folder: Path, *names: str, limits: Limits | None = None, **config: Any) -> AsyncIterator[House]:
    """All is given back and closed at the end, and no task is left."""
    built = House(fakes.catalog(folder, *names, **config), limits or Limits())
    try:
        yield built
    finally:
        for event in list(built._held):  # noqa: SLF001
            built.let_go(event)
        await built.models.close()
    await no_tasks_left()


async def no_tasks_left() -> None:
    """Tasks that end by themselves may; one that waits for something is left over."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _done, left = await asyncio.wait(others, timeout=5)
        assert not left, left
