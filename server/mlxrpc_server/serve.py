"""The server process from start to end: build the parts, listen, preload, drain, stop.

The event loop evaluates no array and does nothing long; whatever takes time runs in threads or in workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mlxrpc.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from mlxrpc_server import demo, loop
from mlxrpc_server.admin import ModelAdminService
from mlxrpc_server.calls import Calls
from mlxrpc_server.catalog import Catalog, Entry, ModelConfig
from mlxrpc_server.config import BUILT_IN, Config
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ServerError
from mlxrpc_server.generation import Service
from mlxrpc_server.health import Health
from mlxrpc_server.model import Model
from mlxrpc_server.models import Models
from mlxrpc_server.servicer import InferenceService
from mlxrpc_server.tokenizer import TokenizerError, Tokenizers

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Room for prompts of millions of tokens; gRPC's own 4 MB would refuse them without a word of ours."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # On by default on Linux: two servers would silently share a port.
    ("grpc.so_reuseport", 0),
    # Clients keep idle connections alive through balancers; gRPC's default answers that with GOAWAY.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


LAST_WRITES = 0.5
"""Seconds for what calls that have ended still have to send."""


PRELOAD_RETRY_SECONDS = (5.0, 15.0, 60.0)
"""Between attempts; the last one for ever after."""


BUILT_IN_MODEL = ModelConfig(
    name=BUILT_IN,
    source=demo.source(),
    display_name="Pebble",
    description="The built-in model: small talk, sums, facts, stories.",
)


class CannotListen(Exception):
    """The address is taken, or is not ours."""


async def serve(config: Config, announce: Callable[[str], None]) -> None:
    """Until a signal. `announce` is told where it listens, once it does."""
    with _signals() as (drain, abort):
        async with Server(config) as server:
            announce(f"mlxrpc is listening on {server.address}")
            if server.admin_address is not None:
                announce(f"mlxrpc admin is listening on {server.admin_address}")
            await server.run(drain, abort)


class Server:
    """Everything with a life, in the order in which it begins; it ends in the opposite one."""

    def __init__(self, config: Config) -> None:
        self.address = ""
        self.admin_address: str | None = None
        self._config = config
        self._lives = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with self._lives as lives:
            await self._start(lives)
            self._lives = lives.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lives.aclose()

    async def _start(self, lives: contextlib.AsyncExitStack) -> None:
        config = self._config
        configs = config.models or (BUILT_IN_MODEL,)
        catalog = Catalog(configs)
        await asyncio.to_thread(catalog.read_facts)
        self._health = Health((entry.name for entry in catalog), (catalog.find(name).name for name in config.preload))
        tokenizers = Tokenizers()
        lives.push_async_callback(tokenizers.close)
        models = Models(self._make, config.limits, self._health.model_changed)
        for entry in catalog:
            self._health.model_changed(entry.name, models.health(entry))
        lives.push_async_callback(models.close)
        self._calls = Calls()
        self._service = Service(catalog, tokenizers, models)
        self._grpc, self.address = await self._listen(config.listen)
        lives.push_async_callback(self._grpc.stop, 0)
        if config.admin is not None:
            admin, self.admin_address = await self._listen_admin(config.admin)
            lives.push_async_callback(admin.stop, 0)
        await lives.enter_async_context(_running(self._preload(), "preload"))

    async def run(self, drain: asyncio.Event, abort: asyncio.Event) -> None:
        """Serves until `drain`, then lets running calls end; `abort` cuts that short."""
        await drain.wait()
        async with _running(self._drain(), "drain") as draining:
            aborted = asyncio.create_task(abort.wait())
            await asyncio.wait([draining, aborted], return_when=asyncio.FIRST_COMPLETED)
            aborted.cancel()
            if draining.done():
                draining.result()

    async def _drain(self) -> None:
        log.info("draining", extra={"lame_duck": self._config.lame_duck, "open_calls": self._calls.open})
        self._health.leave()
        # Balancers need this long to see it; until then they still send calls, and those are served.
        await asyncio.sleep(self._config.lame_duck)
        self._calls.drain()
        await self._service.models.drain()
        if not await self._all_ended(self._config.drain_timeout):
            log.warning("ending calls that took too long", extra={"open_calls": self._calls.open})
            self._service.models.end_requests()
            await self._all_ended(LAST_WRITES)
        # The last answers are still being written; health watches, which never end by themselves, are cut here.
        await self._grpc.stop(LAST_WRITES)
        log.info("drained", extra={"open_calls": self._calls.open})

    async def _all_ended(self, seconds: float) -> bool:
        """Whether all open calls ended within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calls.all_ended()
        return not self._calls.open

    def _make(self, entry: Entry, changed: Callable[[], None]) -> Model:
        load = wire.Load(
            name=entry.name,
            path=str(entry.config.source),
            log_format=self._config.log_format,
            max_rows=self._config.max_rows,
            prefill_tokens=self._config.prefill_tokens,
            models=self._config.limits.max_loaded,
            kv_bits=entry.config.kv_bits,
            metal_kernels=entry.config.metal_kernels,
            prefix_bytes=self._config.prefix_bytes,
        )
        return Model(entry, load, changed=changed, spelling=partial(self._spelling, entry))

    async def _spelling(self, entry: Entry) -> Sequence[bytes]:
        """Whoever asks for a model has its tokenizer already."""
        try:
            return (await self._service.tokenizers.get(entry.tokenizer_path)).vocabulary.pieces
        except TokenizerError:
            return ()

    async def _listen(self, address: str) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(options=OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(self._service, self._calls), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, server)
        return server, await _bound(server, address)

    async def _listen_admin(self, address: str) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(options=OPTIONS)
        admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(ModelAdminService(self._service, self._calls), server)
        name = admin_pb2.DESCRIPTOR.services_by_name["ModelAdminService"].full_name
        reflection.enable_server_reflection((name, reflection.SERVICE_NAME), server)
        return server, await _bound(server, address)

    async def _preload(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name in self._config.preload:
                group.create_task(self._preloaded(self._service.catalog.find(name)), name=f"preload {name}")
        loop.settle()

    async def _preloaded(self, entry: Entry) -> None:
        """Tries until it is loaded: not ready, the server gets no request that could try again."""
        for attempt in itertools.count():
            try:
                await self._service.tokenizer(entry)
                async with self._service.models.lease(entry, patient=True):
                    self._health.preloaded(entry.name)
                    return
            except ServerError as error:
                wait = PRELOAD_RETRY_SECONDS[min(attempt, len(PRELOAD_RETRY_SECONDS) - 1)]
                facts = {"model": entry.name, "cause": str(error), "retry_seconds": wait}
                log.error("a model to preload failed", extra=facts)
            await asyncio.sleep(wait)


async def _bound(server: grpc.aio.Server, address: str) -> str:
    """Starts listening; gives the address with the port that port 0 became."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: is the address in use?") from error
    await server.start()
    return f"{address.rpartition(':')[0]}:{port}"


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """A task that lives as long as the context, and no longer."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_failure)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell_failure(task: asyncio.Task[None]) -> None:
    """At once: whoever owns the task may look only at the end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a part of the server failed", exc_info=error, extra={"part": task.get_name()})


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """The first SIGTERM or SIGINT drains, the second ends at once."""
    loop, drain, abort = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def received() -> None:
        (abort if drain.is_set() else drain).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    try:
        yield drain, abort
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
