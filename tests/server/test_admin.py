"""The admin RPCs with real Models and Model, and workers that have no process."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from mlxrpc.v1 import admin_pb2 as pb
from mlxrpc.v1 import model_pb2
from mlxrpc.v1.admin_pb2_grpc import ModelAdminServiceStub
from mlxrpc.v1.admin_pb2_grpc import add_ModelAdminServiceServicer_to_server as add_admin
from mlxrpc_server.admin import ModelAdminService
from mlxrpc_server.calls import Calls
from mlxrpc_server.catalog import Entry
from mlxrpc_server.engine import wire
from mlxrpc_server.flight import Orders
from mlxrpc_server.model import Model
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.types import Sampling
from mlxrpc_server.worker import Worker
from tests.fakes import FakeWorker, ScriptedService, catalog, connected, ready, two_deltas, until

if TYPE_CHECKING:
    from mlxrpc.v1.admin_pb2_grpc import ModelAdminServiceAsyncStub  # exists in the type stubs alone

ORDERS = Orders(prompt=[1, 2], sampling=Sampling(0, 1, 0, 0, 0), max_tokens=5, stop_ids=frozenset())


class Workshop:
    """Where Models gets its workers from; each waits to be told what to say."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.spawned = asyncio.Event()

    async def spawn(self) -> Worker:
        worker = FakeWorker()
        self.workers.append(worker)
        self.spawned.set()
        return worker

    async def next_worker(self) -> FakeWorker:
        await self.spawned.wait()
        self.spawned.clear()
        return self.workers[-1]

    def make(self, entry: Entry, changed: Callable[[], None]) -> Model:
        load = wire.Load(
            name=entry.name, path=str(entry.config.source), log_format="text", max_rows=1, prefill_tokens=8
        )
        return Model(entry, load, spawn=self.spawn, changed=changed)


@asynccontextmanager
async def admin(service: ScriptedService) -> AsyncIterator[ModelAdminServiceAsyncStub]:
    def register(server: grpc.aio.Server) -> None:
        add_admin(ModelAdminService(service, Calls()), server)

    async with connected(register) as channel:
        yield ModelAdminServiceStub(channel)


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture
async def service(tmp_path: Path, workshop: Workshop) -> AsyncIterator[ScriptedService]:
    models = Models(workshop.make, Limits(max_loaded=2))
    yield ScriptedService(two_deltas, catalog(tmp_path, "a", "b"), models)
    await models.close()


async def load(service: ScriptedService, workshop: Workshop, name: str) -> FakeWorker:
    """Loads a model to the end, past the admin service."""
    entry = service.catalog.find(name)

    async def lease() -> None:
        async with service.models.lease(entry):
            pass

    loading = asyncio.create_task(lease())
    worker = await workshop.next_worker()
    worker.say(ready())
    await loading
    return worker


def phases(events: list[pb.LoadModelResponse]) -> list[int]:
    return [event.progress.phase for event in events if event.HasField("progress")]


async def test_a_load_tells_its_progress_and_ends_with_the_model(service: ScriptedService, workshop: Workshop) -> None:
    async with admin(service) as stub:
        incoming = aiter(stub.LoadModel(pb.LoadModelRequest(model="a")))
        worker = await workshop.next_worker()
        worker.say(wire.Progress("config"), wire.Progress("weights"))
        events = [await anext(incoming), await anext(incoming)]
        # The last report and the end come together: neither is lost.
        worker.say(wire.Progress("warm-up"), ready())
        events += [event async for event in incoming]
    assert phases(events) == [pb.LOAD_PHASE_STARTING, pb.LOAD_PHASE_WEIGHTS, pb.LOAD_PHASE_WARM_UP]
    model = events[-1].model
    assert (model.name, model.state) == ("a", model_pb2.MODEL_STATE_LOADED)
    assert (model.parameter_count, model.memory_bytes) == (1000, 4000)
    assert (model.in_flight, model.queued) == (0, 0)
    assert model.HasField("load_duration")


async def test_a_loaded_model_is_given_at_once(service: ScriptedService, workshop: Workshop) -> None:
    await load(service, workshop, "a")
    async with admin(service) as stub:
        (event,) = [event async for event in stub.LoadModel(pb.LoadModelRequest(model="a"))]
    assert event.model.state == model_pb2.MODEL_STATE_LOADED
    assert len(workshop.workers) == 1


async def test_two_loads_share_one(service: ScriptedService, workshop: Workshop) -> None:
    async with admin(service) as stub:
        calls = [stub.LoadModel(pb.LoadModelRequest(model="a")) for _ in range(2)]
        entry = service.catalog.find("a")
        worker = await workshop.next_worker()
        await until(lambda: service.models.status(entry).leases == 2)
        worker.say(ready())
        last = [[event async for event in call][-1] for call in calls]
    assert [event.model.name for event in last] == ["a", "a"]
    assert len(workshop.workers) == 1


async def test_a_load_that_fails_tells_the_cause_and_is_tried_again(
    service: ScriptedService, workshop: Workshop
) -> None:
    async with admin(service) as stub:
        call = stub.LoadModel(pb.LoadModelRequest(model="a"))
        (await workshop.next_worker()).say(wire.Failed("the weights are broken"))
        with pytest.raises(grpc.aio.AioRpcError, match="the weights are broken") as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        again = stub.LoadModel(pb.LoadModelRequest(model="a"))
        (await workshop.next_worker()).say(ready())
        assert [event async for event in again][-1].model.state == model_pb2.MODEL_STATE_LOADED


async def test_a_caller_who_stops_listening_does_not_stop_the_load(
    service: ScriptedService, workshop: Workshop
) -> None:
    async with admin(service) as stub:
        call = stub.LoadModel(pb.LoadModelRequest(model="a"))
        worker = await workshop.next_worker()
        worker.say(wire.Progress("weights"))
        await call.read()
        call.cancel()
        other = stub.LoadModel(pb.LoadModelRequest(model="a"))
        worker.say(ready())
        assert [event async for event in other][-1].model.state == model_pb2.MODEL_STATE_LOADED
    assert len(workshop.workers) == 1


@pytest.mark.parametrize("ask", ["load", "unload"])
async def test_an_unknown_model_is_not_found(service: ScriptedService, ask: str) -> None:
    async with admin(service) as stub:
        calls: dict[str, Callable[[], Any]] = {
            "load": lambda: stub.LoadModel(pb.LoadModelRequest(model="x")).read(),
            "unload": lambda: stub.UnloadModel(pb.UnloadModelRequest(model="x")),
        }
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await calls[ask]()
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_unloaded_models_worker_is_gone(service: ScriptedService, workshop: Workshop) -> None:
    worker = await load(service, workshop, "a")
    async with admin(service) as stub:
        response = await stub.UnloadModel(pb.UnloadModelRequest(model="a"))
    assert worker.gone
    assert (response.model.state, response.ended_requests) == (model_pb2.MODEL_STATE_AVAILABLE, 0)
    assert not response.model.HasField("memory_bytes")


async def test_unloading_what_is_not_loaded_is_no_error(service: ScriptedService) -> None:
    async with admin(service) as stub:
        response = await stub.UnloadModel(pb.UnloadModelRequest(model="a"))
    assert response.model.state == model_pb2.MODEL_STATE_AVAILABLE


async def test_unloading_by_force_tells_how_many_requests_it_ended(
    service: ScriptedService, workshop: Workshop
) -> None:
    await load(service, workshop, "a")
    async with service.models.lease(service.catalog.find("a")) as model, admin(service) as stub:
        with model.fly(ORDERS), model.fly(ORDERS):
            response = await stub.UnloadModel(pb.UnloadModelRequest(model="a", force=True))
    assert response.ended_requests == 2


async def test_server_info_tells_what_runs(service: ScriptedService, workshop: Workshop) -> None:
    worker = await load(service, workshop, "b")
    model = service.models.status(service.catalog.find("b")).model
    assert model is not None
    entry = service.catalog.find("b")
    async with service.models.lease(entry), service.models.lease(entry), admin(service) as stub:
        with model.fly(ORDERS), model.fly(ORDERS):
            flights = [message.row for message in worker.sent if isinstance(message, wire.Submit)]
            worker.say(
                wire.Stats(step=8, rows=1, waiting=1, memory_bytes=5000),
                wire.Step(8, [flights[0]], [3], [], [], [], 0.0, 0.1),
            )
            await until(lambda: model.stats.step == 8)
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert list(info.models) == [
        pb.LoadedModel(
            name="b",
            state=model_pb2.MODEL_STATE_LOADED,
            pid=worker.pid,
            rows=1,
            waiting=1,
            leases=2,
            steps=8,
            memory_bytes=5000,
            dtype="float32",
        )
    ]
    assert (info.device, info.open_rpcs, info.python_version) == ("cpu", 1, platform.python_version())
    assert info.server.name == "mlxrpc"
    assert info.mlx_lm_version


async def test_ended_calls_leave_no_task_behind(service: ScriptedService, workshop: Workshop) -> None:
    await load(service, workshop, "a")
    async with admin(service) as stub:
        before = await stub.GetServerInfo(pb.GetServerInfoRequest())
        for _ in range(20):
            assert [event async for event in stub.LoadModel(pb.LoadModelRequest(model="a"))]
        after = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert 0 < after.tasks <= before.tasks
