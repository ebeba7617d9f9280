"""What balancers are told. "" is liveness, the service's name is readiness, and below it stands one name a model.

The standard health service, of our own making: the library's holds a lock while it writes to a watcher, so that one
watcher who does not read would keep every change from all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthServicer

from mlxrpc_server.types import ModelHealth, ModelName

READINESS = "mlxrpc.v1.InferenceService"

Context = grpc.aio.ServicerContext[Any, Any]


class Health(HealthServicer):
    """Not ready until every one of `awaited` was loaded, nor while each known model has failed."""

    def __init__(self, models: Iterable[ModelName], awaited: Iterable[ModelName]) -> None:
        self._models = dict.fromkeys(models, ModelHealth.UP)
        self._awaited = set(awaited)
        self._leaving = False
        self._changed = asyncio.Event()

    def model_changed(self, name: ModelName, health: ModelHealth) -> None:
        self._models[name] = health
        self._pulse()

    def preloaded(self, name: ModelName) -> None:
        """It is loaded, and need not be awaited any more."""
        self._awaited.discard(name)
        self._pulse()

    def leave(self) -> None:
        """From now on every name is NOT_SERVING, for good, liveness included."""
        self._leaving = True
        self._pulse()

    def serving(self, service: str) -> bool | None:
        """None where there is no such name."""
        if service not in self._names():
            return None
        return not self._leaving and self._names()[service]

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:  # noqa: N802
        serving = self.serving(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no health of that name")
        return _response(serving)

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """Each state as it comes; a watcher that reads slowly misses what has passed meanwhile, and nobody waits for it."""
        told: pb.HealthCheckResponse | None = None
        while True:
            changed = self._changed
            response = _response(self.serving(request.service))
            if response != told:
                await context.write(response)
                told = response
            await changed.wait()

    def _names(self) -> dict[str, bool]:
        models = {model_service(name): health is ModelHealth.UP for name, health in self._models.items()}
        failed = all(health is ModelHealth.FAILED for health in self._models.values())
        return {"": True, READINESS: not self._awaited and not failed, **models}

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def model_service(name: ModelName) -> str:
    return f"{READINESS}/{name}"


def _response(serving: bool | None) -> pb.HealthCheckResponse:
    if serving is None:
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
    status = pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
    return pb.HealthCheckResponse(status=status)
