"""Fakes by hand, each for what the real part cannot show on demand, and the servers that tests put them behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from mlxrpc_server.catalog import Catalog, ModelConfig
from mlxrpc_server.details import Detail
from mlxrpc_server.engine import wire
from mlxrpc_server.events import Delta, Event, Finished, Started, Timings, Usage
from mlxrpc_server.generation import Service
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.tokenizer import Tokenizers
from mlxrpc_server.types import FinishReason, ModelName, Request
from mlxrpc_server.worker import Worker

Script = Callable[[Request], AsyncGenerator[Event, None]]


class ScriptedService(Service):
    """A service whose generations are the test's own: no tokenizer, no model."""

    def __init__(self, script: Script, catalog: Catalog | None = None, models: Models | None = None) -> None:
        super().__init__(catalog or Catalog([]), Tokenizers(), models or Models(no_model, Limits()))
        self.requests: list[Request] = []
        self.deadlines: list[float | None] = []
        self._script = script

    async def generate(self, request: Request, deadline: float | None) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.deadlines.append(deadline)
        async with contextlib.aclosing(self._script(request)) as events:
            async for event in events:
                yield event


class FakeWorker(Worker):
    """A worker without a process: it keeps what it is told, and says what the test lets it say."""

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []
        self.gone = False
        self._said: deque[wire.Message] = deque()
        self._news = asyncio.Event()

    @property
    def pid(self) -> int:
        return 4711

    def say(self, *messages: wire.Message) -> None:
        self._said.extend(messages)
        self._news.set()

    def die(self) -> None:
        self.gone = True
        self._news.set()

    def send(self, message: wire.Message) -> None:
        self.sent.append(message)

    async def messages(self) -> AsyncIterator[wire.Message]:
        while self._said or not self.gone:
            while self._said:
                yield self._said.popleft()
            if not self.gone:
                await self._news.wait()
                self._news.clear()

    async def end(self) -> str:
        self.die()
        return "exit code 0"


def ready(**facts: Any) -> wire.Ready:
    """What a worker says once its model is warm."""
    usual: dict[str, Any] = {
        "vocabulary_size": 100,
        "batched": True,
        "dtype": "float32",
        "device": "cpu",
        "parameter_count": 1000,
        "memory_bytes": 4000,
    }
    return wire.Ready(**(usual | facts))


def no_model(*_: object) -> Any:
    raise AssertionError("no model may be loaded here")


def model_folder(folder: Path, weights: int = 64, **config: object) -> Path:
    """What the catalog reads of a model: its configuration, and a weight file's header with nothing behind it."""
    folder.mkdir(parents=True)
    given = {"model_type": "llama", "max_position_embeddings": 128} | config
    (folder / "config.json").write_text(json.dumps(given))
    tensor = {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * weights))
    return folder


def catalog(root: Path, *names: str, **config: Any) -> Catalog:
    """Models of these names, configured alike."""
    return Catalog([ModelConfig(name=ModelName(name), source=model_folder(root / name), **config) for name in names])


def started(response_id: str = "r", **changes: Any) -> Started:
    usual: dict[str, Any] = {"model": "m", "seed": 7, "prompt_tokens": 3, "create_time": 1.5, "fingerprint": "f"}
    return Started(response_id, **(usual | changes))


def finished(
    reason: FinishReason = FinishReason.MAX_TOKENS,
    matched: int | str | None = None,
    first: float | None = 0.5,
) -> Finished:
    timings = Timings(
        queue=0.25, model_load=0.125, prefill=0.5, time_to_first_token=first, decode=2.0, tokens_per_second=1.5
    )
    return Finished(reason, matched, Usage(prompt_tokens=3, completion_tokens=2), timings)


def saying(*events: Event) -> Script:
    """A script of these events."""

    async def script(_request: Request) -> AsyncGenerator[Event, None]:
        for event in events:
            yield event

    return script


def refusing(error: Exception, *before: Event) -> Script:
    """A script that fails, behind these events."""

    async def script(_request: Request) -> AsyncGenerator[Event, None]:
        for event in before:
            yield event
        raise error

    return script


def two_deltas(request: Request) -> AsyncGenerator[Event, None]:
    """The shortest generation that has everything."""
    hel, lo, end = Detail(1, b"Hel"), Detail(2, b"lo"), Detail(3, b"")
    events = (started(request.id), Delta("Hel", (1,), (hel,)), Delta("lo", (2, 3), (lo, end)), finished())
    return saying(*events)(request)


@contextlib.asynccontextmanager
async def connected(
    *register: Callable[[grpc.aio.Server], None], options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a real server on a port of its own."""
    server = grpc.aio.server()
    for servicer in register:
        servicer(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel
    finally:
        await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until something is so that nobody announces."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
