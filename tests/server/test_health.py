"""What balancers are told, and that none of them can keep it from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from mlxrpc_server.health import READINESS, Health, model_service
from mlxrpc_server.types import ModelHealth, ModelName
from tests.fakes import connected

A, B = ModelName("a"), ModelName("b")
SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING


class Watcher:
    """A watch's end of the line: keeps what it is told, or takes nothing at all."""

    def __init__(self, *, reads: bool) -> None:
        self.told: list[int] = []
        self._reads = reads
        self._news = asyncio.Event()

    async def write(self, response: pb.HealthCheckResponse) -> None:
        self.told.append(response.status)
        self._news.set()
        if not self._reads:
            await asyncio.Event().wait()

    async def has_been_told(self, *statuses: int) -> None:
        while tuple(self.told) != statuses:
            self._news.clear()
            await self._news.wait()


def watching(health: Health, service: str, *, reads: bool = True) -> tuple[Watcher, asyncio.Task[None]]:
    watcher: Any = Watcher(reads=reads)
    return watcher, asyncio.create_task(health.Watch(pb.HealthCheckRequest(service=service), watcher))


def test_it_is_alive_at_once_and_ready_when_all_that_was_awaited_is_loaded() -> None:
    health = Health([A, B], awaited=[A, B])
    assert (health.serving(""), health.serving(READINESS)) == (True, False)
    health.preloaded(A)
    assert health.serving(READINESS) is False
    health.preloaded(B)
    assert health.serving(READINESS) is True


def test_a_model_is_served_unless_it_failed_or_is_being_replaced() -> None:
    health = Health([A, B], awaited=[])
    for state, serving in [(ModelHealth.REPLACING, False), (ModelHealth.FAILED, False), (ModelHealth.UP, True)]:
        health.model_changed(A, state)
        assert health.serving(model_service(A)) is serving
        assert (health.serving(model_service(B)), health.serving(READINESS)) == (True, True)


def test_it_is_not_ready_where_every_model_has_failed() -> None:
    health = Health([A, B], awaited=[])
    health.model_changed(A, ModelHealth.FAILED)
    health.model_changed(B, ModelHealth.REPLACING)
    assert health.serving(READINESS) is True
    health.model_changed(B, ModelHealth.FAILED)
    assert (health.serving(READINESS), health.serving("")) == (False, True)


@pytest.mark.parametrize(
    "late", [lambda health: health.preloaded(A), lambda health: health.model_changed(A, ModelHealth.UP)]
)
def test_whoever_leaves_does_not_come_back(late: Callable[[Health], None]) -> None:
    health = Health([A], awaited=[A])
    health.leave()
    late(health)
    assert [health.serving(name) for name in ("", READINESS, model_service(A))] == [False] * 3


async def test_a_watcher_is_told_every_change_once() -> None:
    health = Health([A], awaited=[])
    watcher, task = watching(health, model_service(A))
    await watcher.has_been_told(SERVING)
    health.model_changed(A, ModelHealth.REPLACING)
    await watcher.has_been_told(SERVING, NOT_SERVING)
    health.model_changed(A, ModelHealth.FAILED)
    health.model_changed(A, ModelHealth.UP)
    await watcher.has_been_told(SERVING, NOT_SERVING, SERVING)
    task.cancel()
    await asyncio.wait([task])


async def test_a_watcher_who_does_not_read_keeps_nothing_from_the_others() -> None:
    health = Health([A], awaited=[])
    stuck, stuck_task = watching(health, "", reads=False)
    await stuck.has_been_told(SERVING)
    reader, reader_task = watching(health, "")
    await reader.has_been_told(SERVING)
    health.leave()
    await reader.has_been_told(SERVING, NOT_SERVING)
    assert stuck.told == [SERVING]
    for task in (stuck_task, reader_task):
        task.cancel()
    await asyncio.wait([stuck_task, reader_task])


async def test_over_the_wire_unknown_names_are_not_found_and_watched_as_unknown() -> None:
    health = Health([A], awaited=[])
    async with connected(lambda server: add_HealthServicer_to_server(health, server)) as channel:
        stub: Any = HealthStub(channel)
        assert (await stub.Check(pb.HealthCheckRequest(service=model_service(A)))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(pb.HealthCheckRequest(service="nobody"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(pb.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
