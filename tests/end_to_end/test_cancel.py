"""A call that ends early takes its row with it, wherever the row is, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import inference_pb2_grpc
from mlxrpc_server.engine import wire
from mlxrpc_server.types import RowId, Sampling
from tests import noise_model
from tests.end_to_end.asking import FOREVER, ask, ids
from tests.end_to_end.running import RunningServer, running_server, until
from tests.end_to_end.streams import stream

pytestmark = pytest.mark.xdist_group("cancel")

WAYS = ("cancelled", "dropped", "past its deadline")


class Engine:
    """A worker process without a server: frames down, frames up, and SIGSTOP to look at it between two steps."""

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        self.process = process
        self._line = line
        self._frames = wire.Frames(wire.Up)
        self._arrived: list[wire.Message] = []
        self._rows = 0
        self._last_step = 0

    def submit(self, prompt_tokens: int) -> RowId:
        self._rows += 1
        sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
        row = RowId(self._rows)
        self.send(wire.Submit(row, list(ids(prompt_tokens)), [], sampling, max_tokens=FOREVER, stop_ids=[]))
        return row

    def send(self, message: wire.Message) -> None:
        self._line.sendall(wire.encode(message))

    def until(self, condition: Callable[[Any], bool]) -> Any:
        while True:
            while self._arrived:
                if condition(message := self._arrived.pop(0)):
                    return message
            data = self._line.recv(1 << 18)
            assert data, "the worker is gone"
            self._take(data)

    def until_step(self, condition: Callable[[wire.Step], bool]) -> wire.Step:
        step: wire.Step = self.until(lambda message: isinstance(message, wire.Step) and condition(message))
        return step

    def until_idle(self) -> wire.Stats:
        def idle(message: object) -> bool:
            return isinstance(message, wire.Stats) and not message.rows and not message.waiting

        stats: wire.Stats = self.until(idle)
        return stats

    @contextlib.contextmanager
    def stopped(self) -> Iterator[int]:
        """Holds the process still; gives the last step that it has told of. One more may be half done."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        try:
            self._take_all()
            yield self._last_step
            self._arrived.clear()
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _take_all(self) -> None:
        self._line.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while data := self._line.recv(1 << 18):
                self._take(data)
        self._line.setblocking(True)

    def _take(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._arrived.append(message)
            if isinstance(message, wire.Step):
                self._last_step = message.step


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One row at a time, and short prefill chunks."""
    ours, theirs = socket.socketpair()
    watched, lifeline = os.pipe()
    command = [sys.executable, "-m", "mlxrpc_server.engine", str(theirs.fileno()), str(watched)]
    process = subprocess.Popen(command, pass_fds=(theirs.fileno(), watched), stdin=subprocess.DEVNULL)
    theirs.close()
    os.close(watched)
    engine = Engine(process, ours)
    load = wire.Load(name="noise", path=str(noise_model.folder()), log_format="json", max_rows=1, prefill_tokens=32)
    engine.send(load)
    engine.until(lambda message: isinstance(message, wire.Ready))
    yield engine
    ours.close()
    os.close(lifeline)
    process.wait()


def queued_row(engine: Engine) -> RowId:
    """Behind a row that holds the only place; nothing tells that it has arrived but the statistics."""
    engine.submit(5)
    row = engine.submit(5)
    engine.until(lambda message: isinstance(message, wire.Stats) and message.waiting == 1)
    return row


def prefilling_row(engine: Engine) -> RowId:
    row = engine.submit(3000)
    engine.until_step(lambda step: row in dict(step.prefilled))
    return row


def decoding_row(engine: Engine) -> RowId:
    row = engine.submit(5)
    engine.until_step(lambda step: row in step.rows)
    return row


@pytest.mark.parametrize("begin", [queued_row, prefilling_row, decoding_row])
def test_a_cancelled_row_is_gone_within_two_steps(engine: Engine, begin: Callable[[Engine], RowId]) -> None:
    row = begin(engine)
    with engine.stopped() as last:
        # The step that was held in its middle ends first; the one behind it must be without the row.
        engine.send(wire.Cancel(row))
    gone = engine.until_step(lambda step: row in step.left)
    assert gone.step <= last + 2
    assert wire.Left.CANCELLED in gone.reasons
    assert row not in gone.rows
    assert row not in dict(gone.prefilled)
    for other in range(1, row):
        engine.send(wire.Cancel(RowId(other)))
    engine.until_idle()


def test_a_cancel_for_a_row_that_has_left_changes_nothing(engine: Engine) -> None:
    row = decoding_row(engine)
    engine.send(wire.Cancel(row))
    engine.send(wire.Cancel(row))
    engine.send(wire.Cancel(RowId(10**9)))
    assert engine.until_step(lambda step: bool(step.left)).left == [row]
    engine.until_idle()
    other = decoding_row(engine)
    engine.send(wire.Cancel(other))
    assert engine.until_step(lambda step: bool(step.left)).left == [other]


CLIENT = """
import sys, grpc
from mlxrpc.v1 import inference_pb2 as pb, inference_pb2_grpc
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
for event in stub.StreamGenerate(pb.StreamGenerateRequest.FromString(sys.stdin.buffer.read())):
    print(event.WhichOneof("event"), flush=True)
"""


class Cancelled:
    """A stream whose client cancels it."""

    def __init__(self, server: RunningServer, request: pb.StreamGenerateRequest) -> None:
        self._stream = server.inference.StreamGenerate(request)

    def until(self, kind: str) -> None:
        next(event for event in self._stream if event.WhichOneof("event") == kind)

    def cut(self, _server: RunningServer) -> None:
        self._stream.cancel()


class Dropped:
    """A stream whose client's process is killed: nobody says goodbye, the connection is just gone."""

    def __init__(self, server: RunningServer, request: pb.StreamGenerateRequest) -> None:
        command = [sys.executable, "-c", CLIENT, server.address]
        self._client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
        assert self._client.stdin is not None
        self._client.stdin.write(request.SerializeToString())
        self._client.stdin.close()

    def until(self, kind: str) -> None:
        assert self._client.stdout is not None
        next(line for line in self._client.stdout if line.decode().strip() == kind)

    def cut(self, _server: RunningServer) -> None:
        self._client.kill()
        self._client.wait()
        assert self._client.stdout is not None
        self._client.stdout.close()


class Late:
    """A stream whose deadline comes. The worker is held still, so that it comes in this very place."""

    def __init__(self, server: RunningServer, request: pb.StreamGenerateRequest) -> None:
        self._stream = server.inference.StreamGenerate(request, timeout=2)

    def until(self, kind: str) -> None:
        next(event for event in self._stream if event.WhichOneof("event") == kind)

    def cut(self, server: RunningServer) -> None:
        worker = psutil.Process(server.loaded().pid)
        worker.suspend()
        with pytest.raises(grpc.RpcError) as caught:
            deque(self._stream)
        worker.resume()
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningServer]:
    """One row at a time, so that the second request waits."""
    with running_server("--max-rows", "1", "--prefill-tokens", "32") as server:
        yield server


@pytest.mark.parametrize("end", [Cancelled, Dropped, Late])
@pytest.mark.parametrize("stage", ["queued", "in prefill", "decoding"])
def test_whoever_leaves_frees_row_lease_and_task(
    narrow: RunningServer, stage: str, end: type[Cancelled | Dropped | Late]
) -> None:
    at_rest, steps = narrow.info().tasks, narrow.loaded().steps
    match stage:
        case "queued":
            holder = narrow.inference.StreamGenerate(ask(max_tokens=FOREVER))
            next(holder)
            call = end(narrow, ask(max_tokens=FOREVER))
            until(lambda: narrow.loaded().waiting == 1, "the second request waits")
            call.cut(narrow)
            until(lambda: narrow.loaded().leases == 1, "the waiting request is gone")
            holder.cancel()
        case "in prefill":
            call = end(narrow, ask(400, FOREVER, progress=True))
            call.until("prefill_progress")
            call.cut(narrow)
        case "decoding":
            call = end(narrow, ask(max_tokens=FOREVER))
            call.until("delta")
            call.cut(narrow)
    until_at_rest(narrow, at_rest)
    # The only row is free again, long before who left would have been through with it.
    assert len(stream(narrow, ask(max_tokens=3)).token_ids) == 3
    assert narrow.loaded().steps < steps + FOREVER // 2


def until_at_rest(server: RunningServer, tasks: int) -> None:
    def at_rest() -> bool:
        info = server.info()
        (model,) = info.models
        return not (model.rows or model.waiting or model.leases) and info.open_rpcs == 1 and info.tasks <= tasks

    until(at_rest, "no rows, no leases, no calls, and no more tasks than before")


def test_two_hundred_calls_that_end_early_leave_nothing_behind() -> None:
    leave_early(200)


@pytest.mark.soak
def test_two_thousand_calls_that_end_early_leave_nothing_behind() -> None:
    leave_early(2000)


ROWS = 3
CALLS_IN_A_WAVE = 2 * ROWS + 1
MOST_HALVES = 4


def leave_early(calls: int) -> None:
    """In every stage and way. Memory is compared between the half and the end, when both have what they keep.

    The allocator may take one step more for itself, early or late; a leak grows with every half: so where the second
    half grew, another one must not.
    """
    waves = -(-calls // CALLS_IN_A_WAVE)
    with running_server("--max-rows", str(ROWS), "--prefill-tokens", "32") as server:
        wave(server, 0)
        tasks = server.info().tasks
        halves = [after_waves(server, waves // 2, tasks), after_waves(server, waves // 2, tasks)]
        while grown(halves) and len(halves) < MOST_HALVES:
            halves.append(after_waves(server, waves // 2, tasks))
        assert server.loaded().restarts == 0
    print(f"resident bytes behind each {calls // 2} calls: {halves}")  # noqa: T201
    assert not grown(halves)


def after_waves(server: RunningServer, waves: int, tasks: int) -> dict[str, int]:
    """What is resident when these have come and gone."""
    for number in range(waves):
        wave(server, number)
    until_at_rest(server, tasks)
    return resident(server)


def grown(halves: list[dict[str, int]]) -> bool:
    before, after = halves[-2:]
    return any(after[name] >= 1.05 * before[name] for name in after)


def resident(server: RunningServer) -> dict[str, int]:
    pids = {"server": server.process.pid, "worker": server.loaded().pid}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def wave(server: RunningServer, number: int) -> None:
    """Every row taken and as many requests behind them, all cut; then one that is cut in prefill."""
    with contextlib.ExitStack() as channels:
        decoding = [begun(server, channels, way, ask(max_tokens=FOREVER)) for way in WAYS]
        for call, _ in decoding:
            reach(call, "delta")
        queued = [begun(server, channels, way, ask(max_tokens=FOREVER)) for way in WAYS]
        open_calls = [call for call, _ in decoding + queued]
        until(lambda: server.loaded().leases >= sum(call.is_active() for call in open_calls), "all are admitted")
        for call, cut in queued + decoding:
            cut(call)
        prefilling, cut = begun(server, channels, WAYS[number % 3], ask(400, progress=True))
        reach(prefilling, "prefill_progress")
        cut(prefilling)
    until(lambda: server.loaded().leases == 0, "all are gone")


def begun(
    server: RunningServer, channels: contextlib.ExitStack, way: str, request: pb.StreamGenerateRequest
) -> tuple[Any, Callable[[Any], None]]:
    """A stream, and what ends it."""
    match way:
        case "cancelled":
            return server.inference.StreamGenerate(request), lambda call: call.cancel()
        case "dropped":
            channel = channels.enter_context(
                grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            return stub.StreamGenerate(request), lambda _: channel.close()
        case _:
            return server.inference.StreamGenerate(request, timeout=0.2), lambda call: call.code()


def reach(call: Any, kind: str) -> None:
    """Or the end, where the deadline comes first."""
    with contextlib.suppress(grpc.RpcError):
        next(event for event in call if event.WhichOneof("event") == kind)
