"""What a token costs the server process: `python bench/server_cost.py --streams 1 32 128 --step-ms 20`.

The real server process and real gRPC clients in processes of their own, around a worker that computes nothing: it gives
every row one token a step, at the pace asked for. CPU time is the server process's own, all its threads counted.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import grpc
import psutil

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from mlxrpc_server import demo, loop
from mlxrpc_server.catalog import Entry
from mlxrpc_server.config import Config, read_config
from mlxrpc_server.engine import wire
from mlxrpc_server.model import Model
from mlxrpc_server.serve import Server
from mlxrpc_server.types import RowId
from mlxrpc_server.worker import Worker

if TYPE_CHECKING:
    from mlxrpc.v1.inference_pb2_grpc import InferenceServiceAsyncStub  # exists in the type stubs alone

PROMPT = list(range(100, 132))
VOCABULARY = 3000
TOKENS = range(400, 1468)
"""What the worker says in turns: whole words, since single bytes wait for their characters."""
HEADER = (
    "streams",
    "tokens/s",
    "tokens/message",
    "CPU us/token",
    "CPU us/message",
    "main thread",
    "gap p50/p99 ms",
    "MiB",
)


def main() -> None:
    arguments = parsed()
    print("  ".join(HEADER), flush=True)
    for streams in arguments.streams:
        with server(arguments.step_ms, arguments.profile) as (address, pid):
            print("  ".join(row(measured(address, pid, streams, arguments.seconds, arguments.details))), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--step-ms", type=float, default=20.0, help="0: as fast as the server reads")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--details", action="store_true", help="ask for each token's bytes too")
    parser.add_argument("--profile", action="store_true", help="say on stderr where the main thread's time goes")
    return parser.parse_args()


def row(found: dict[str, float]) -> list[str]:
    tokens, messages, cpu = found["tokens"], found["messages"], found["cpu"]
    cells = [
        f"{found['streams']:.0f}",
        f"{tokens / found['seconds']:.0f}",
        f"{tokens / messages:.2f}",
        f"{1e6 * cpu / tokens:.1f}",
        f"{1e6 * cpu / messages:.1f}",
        f"{100 * found['main'] / cpu:.0f} %",
        f"{1e3 * found['p50']:.1f}/{1e3 * found['p99']:.1f}",
        f"{found['bytes'] / 2**20:.0f}",
    ]
    return [cell.rjust(len(name)) for cell, name in zip(cells, HEADER, strict=True)]


@contextlib.contextmanager
def server(step_ms: float, profile: bool) -> Iterator[tuple[str, int]]:
    command = [sys.executable, __file__, "server", str(step_ms), "profile" if profile else ""]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=None if profile else log, text=True)
        try:
            yield next(iter(process.stdout or ())).split()[-1], process.pid
        finally:
            process.terminate()
            process.wait()


def measured(address: str, pid: int, streams: int, seconds: float, details: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "client", address, str(pid), str(streams), str(seconds), str(int(details))]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


# The server process


class Measured(Server):
    """The server as it is, but for its workers."""

    def __init__(self, config: Config, step_ms: str) -> None:
        super().__init__(config)
        self._command = (sys.executable, __file__, "worker", step_ms)

    def _make(self, entry: Entry, changed: Callable[[], None]) -> Model:
        load = wire.Load(entry.name, str(entry.config.source), "text", max_rows=256, prefill_tokens=256)
        return Model(entry, load, changed=changed, spawn=partial(Worker.spawn, self._command))


async def serve(step_ms: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    arguments = ["--listen", "127.0.0.1:0", "--model", f"m={demo.source()}"]
    async with Measured(read_config(arguments, {}), step_ms) as server:
        print(server.address, flush=True)
        await ended.wait()


class Samples:
    """Of the main thread's stack, one every millisecond of CPU time."""

    def __init__(self) -> None:
        self._own: collections.Counter[str] = collections.Counter()
        self._within: collections.Counter[str] = collections.Counter()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)

    def _take(self, _number: int, frame: FrameType | None) -> None:
        names = []
        while frame is not None:
            names.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        self._own[names[0]] += 1
        self._within.update(set(names))

    def tell(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = sum(self._own.values())
        for title, counts in (("in it", self._own), ("in it and below", self._within)):
            print(f"-- {title}, % of {total} samples", file=sys.stderr)
            for name, count in counts.most_common(28):
                print(f"{100 * count / total:6.1f}  {name}", file=sys.stderr)


# The worker process


def work(step_ms: float, connection: socket.socket) -> None:
    frames, number, due = wire.Frames(wire.Down), 0, 0.0
    rows: dict[RowId, int] = {}
    while True:
        wait = max(0.0, due - time.monotonic()) if rows else None
        if select.select([connection], [], [], wait)[0]:
            data = connection.recv(1 << 18)
            if not data:
                return
            for message in frames.feed(data):
                receive(message, rows, connection)
        if rows and time.monotonic() >= due:
            number += 1
            connection.sendall(wire.encode(stepped(number, rows)))
            due = max(due + step_ms / 1e3, time.monotonic() - step_ms / 1e3)


def receive(message: wire.Message, rows: dict[RowId, int], connection: socket.socket) -> None:
    match message:
        case wire.Load():
            ready = wire.Ready(VOCABULARY, batched=True, dtype="none", device="none", parameter_count=0, memory_bytes=0)
            connection.sendall(wire.encode(ready))
        case wire.Submit():
            rows[message.row] = message.max_tokens
        case wire.Cancel():
            rows.pop(message.row, None)
        case wire.Shutdown():
            sys.exit()


def stepped(number: int, rows: dict[RowId, int]) -> wire.Step:
    ids = list(rows)
    for row in ids:
        rows[row] -= 1
    left = [row for row in ids if rows[row] <= 0]
    for row in left:
        del rows[row]
    tokens = [TOKENS[(7 * row + number) % len(TOKENS)] for row in ids]
    return wire.Step(number, ids, tokens, left, [wire.Left.LENGTH] * len(left), [], 0.0, 0.0)


# The client process


class Streams:
    def __init__(self) -> None:
        self.tokens = self.messages = 0
        self.gaps: list[float] = []

    async def read(self, stub: InferenceServiceAsyncStub, running: asyncio.Barrier, details: bool) -> None:
        request = pb.StreamGenerateRequest(
            input=pb.Input(token_ids=pb.TokenIds(ids=PROMPT)),
            stop=pb.Stop(max_tokens=4_000, ignore_eos=True),
            output=pb.Output(token_ids=details),
        )
        begun = False
        while True:
            before = None
            async for event in stub.StreamGenerate(request):
                if event.HasField("delta"):
                    if not begun:
                        begun = await running.wait() >= 0
                    before = self._count(event.delta, before)

    def _count(self, delta: pb.Delta, before: float | None) -> float:
        now = time.monotonic()
        if before is not None:
            self.gaps.append(now - before)
        self.messages += 1
        self.tokens += len(delta.token_ids)
        return now


async def read(address: str, pid: int, streams: int, seconds: float, details: bool) -> dict[str, float]:
    found, running, process = Streams(), asyncio.Barrier(streams + 1), psutil.Process(pid)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        reading = [asyncio.create_task(found.read(stub, running, details)) for _ in range(streams)]
        await asyncio.wait([asyncio.create_task(running.wait()), *reading], return_when=asyncio.FIRST_COMPLETED)
        for failed in (task for task in reading if task.done()):
            failed.result()
        await asyncio.sleep(0.5)  # what piled up while they began
        found.tokens, found.messages, found.gaps = 0, 0, []
        begun, (main, cpu) = time.monotonic(), cpu_seconds(process)
        await asyncio.sleep(seconds)
        (main_now, cpu_now), now = cpu_seconds(process), time.monotonic()
        result = {
            "streams": streams,
            "tokens": found.tokens,
            "messages": found.messages,
            "seconds": now - begun,
            "cpu": cpu_now - cpu,
            "main": main_now - main,
            "bytes": process.memory_info().rss,
            "p50": statistics.median(found.gaps),
            "p99": sorted(found.gaps)[int(0.99 * len(found.gaps))],
        }
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    return result


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """The main thread's, and the whole process's; to the nanosecond where Linux tells, else in hundredths."""
    tasks = Path(f"/proc/{process.pid}/task")
    if not tasks.exists():
        times = process.cpu_times()
        return 0.0, times.user + times.system
    seconds = {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()}
    return seconds[str(process.pid)], sum(seconds.values())


def role(name: str, arguments: Sequence[str]) -> None:
    match name:
        case "server":
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
            samples = Samples() if arguments[1] else None
            loop.run(serve(arguments[0]))
            if samples:
                samples.tell()
        case "worker":
            work(float(arguments[0]), socket.socket(fileno=int(arguments[1])))
        case "client":
            address, pid, streams, seconds, details = arguments
            print(json.dumps(asyncio.run(read(address, int(pid), int(streams), float(seconds), details == "1"))))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in {"server", "worker", "client"}:
        role(sys.argv[1], sys.argv[2:])
    else:
        main()
