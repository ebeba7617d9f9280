"""The admin RPCs: models in and out, and a look inside."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mlxrpc.v1 import admin_pb2 as pb
from mlxrpc.v1.admin_pb2_grpc import ModelAdminServiceServicer
from mlxrpc_server import protos
from mlxrpc_server.calls import Calls, Context
from mlxrpc_server.catalog import Entry
from mlxrpc_server.description import describe
from mlxrpc_server.generation import Service
from mlxrpc_server.model import Report


class ModelAdminService(ModelAdminServiceServicer):
    def __init__(self, service: Service, calls: Calls) -> None:
        self._service = service
        self._calls = calls
        self._started_at = time.time()

    # A coroutine that writes, for the reason that StreamGenerate is one.
    async def LoadModel(  # type: ignore[override]  # noqa: N802
        self, request: pb.LoadModelRequest, context: Context
    ) -> None:
        async with self._calls.admit(context, "LoadModel") as call:
            entry = self._service.catalog.find(request.model)
            call.note(model=entry.name)
            async with aclosing(self._loading(entry, call.deadline)) as events:
                async for event in events:
                    await call.write(event)

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:  # noqa: N802
        async with self._calls.admit(context, "UnloadModel", while_draining=True) as call:
            entry = self._service.catalog.find(request.model)
            call.note(model=entry.name)
            ended = await self._service.models.unload(entry, force=request.force)
            (model,) = await describe([entry], self._service.models)
            return pb.UnloadModelResponse(model=model, ended_requests=ended)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:  # noqa: N802
        async with self._calls.admit(context, "GetServerInfo", while_draining=True):
            response = pb.GetServerInfoResponse(
                server=protos.server(),
                python_version=platform.python_version(),
                mlx_version=_installed("mlx"),
                mlx_lm_version=_installed("mlx-lm"),
                start_time=protos.timestamp(self._started_at),
                cached_tokenizers=len(self._service.tokenizers),
                open_rpcs=self._calls.open,
                tasks=len(asyncio.all_tasks()),
            )
            self._add_loaded(response)
            return response

    def _add_loaded(self, response: pb.GetServerInfoResponse) -> None:
        for entry in self._service.catalog:
            status = self._service.models.status(entry)
            if status.model is None:
                continue
            response.models.append(protos.loaded_model(entry, status, status.model))
            if status.model.ready is not None:
                response.device = status.model.ready.device
                response.blas = status.model.ready.blas

    async def _loading(self, entry: Entry, deadline: float | None) -> AsyncGenerator[pb.LoadModelResponse, None]:
        """Reports as they come, and the model at the end. The load is a task, for it reports while we wait to write."""
        reports = deque[str]()
        news = asyncio.Event()

        def report(stage: str) -> None:
            reports.append(stage)
            news.set()

        loading = asyncio.create_task(self._loaded(entry, deadline, report), name=f"LoadModel {entry.name}")
        loading.add_done_callback(lambda _: news.set())
        try:
            while not loading.done():
                await news.wait()
                news.clear()
                while reports:
                    yield protos.load_progress(reports.popleft())
            yield await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _loaded(self, entry: Entry, deadline: float | None, report: Report) -> pb.LoadModelResponse:
        """The model is described while it is leased: it cannot be evicted before."""
        async with self._service.models.lease(entry, deadline, report, patient=True):
            (model,) = await describe([entry], self._service.models)
            return pb.LoadModelResponse(model=model)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
