"""What balancers are told. "" is liveness, the service's name is readiness, and below it stands one name a model.

The standard servicer answers; this decides what, in the order in which things happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from mlxrpc_server.types import ModelHealth, ModelName

READINESS = "mlxrpc.v1.InferenceService"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Not ready until every one of `awaited` was loaded, nor while each known model has failed."""

    def __init__(self, models: Iterable[ModelName], awaited: Iterable[ModelName]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._models = dict.fromkeys(models, ModelHealth.UP)
        self._awaited = set(awaited)
        self._changes: asyncio.Queue[tuple[ModelName, ModelHealth]] = asyncio.Queue()

    async def begin(self) -> None:
        """Before the port listens: the servicer itself would begin as SERVING."""
        await self._set("", True)
        await self._set(READINESS, self._ready)
        for name in self._models:
            await self._set(model_service(name), True)

    def model_changed(self, name: ModelName, health: ModelHealth) -> None:
        self._changes.put_nowait((name, health))

    def preloaded(self, name: ModelName) -> None:
        """It is loaded, and need not be awaited any more."""
        self._awaited.discard(name)
        self._changes.put_nowait((name, ModelHealth.UP))

    async def follow(self) -> None:
        """Tells every change, one after the other; ends by being cancelled."""
        while True:
            name, health = await self._changes.get()
            self._models[name] = health
            await self._set(model_service(name), health is ModelHealth.UP)
            await self._set(READINESS, self._ready)

    async def leave(self) -> None:
        """From now on every name is NOT_SERVING, for good, liveness included."""
        await self.servicer.enter_graceful_shutdown()

    @property
    def _ready(self) -> bool:
        failed = all(health is ModelHealth.FAILED for health in self._models.values())
        return not self._awaited and not failed

    async def _set(self, service: str, serving: bool) -> None:
        await self.servicer.set(service, _SERVING if serving else _NOT_SERVING)


def model_service(name: ModelName) -> str:
    return f"{READINESS}/{name}"
