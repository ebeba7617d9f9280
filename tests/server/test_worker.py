"""Worker processes: real ones where a model matters, a scripted one for accidents."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mlxrpc_server.engine import wire
from mlxrpc_server.types import RowId, Sampling
from mlxrpc_server.worker import Worker
from tests import noise_model
from tests.engine.running import GREEDY, alone, row
from tests.same_tokens import assert_same_tokens, judge
from tests.server.fake_worker import READY, command

LOAD = wire.Load(name="m", path="", log_format="text", max_rows=8, prefill_tokens=64)

# Starts a worker, keeps it busy, and says so; whoever reads its output to the end has seen both processes end.
PARENT = """
import asyncio
import sys
from mlxrpc_server.engine import wire
from mlxrpc_server.types import Sampling
from mlxrpc_server.worker import Worker

async def main():
    worker = await Worker.spawn()
    worker.send(wire.Load(name="m", path=sys.argv[1], log_format="text", max_rows=8, prefill_tokens=64))
    async for message in worker.messages():
        match message:
            case wire.Ready():
                greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
                worker.send(wire.Submit(1, [1, 2, 3], [], greedy, 1_000_000, []))
            case wire.Step():
                print(worker.pid, flush=True)
                await asyncio.Event().wait()

asyncio.run(main())
"""

# Starts a worker and says what it hears first.
SPAWNER = """
import asyncio
from mlxrpc_server.engine import wire
from mlxrpc_server.worker import Worker

async def main():
    worker = await Worker.spawn()
    worker.send(wire.Load(name="m", path="/no/model", log_format="json", max_rows=8, prefill_tokens=64))
    async for message in worker.messages():
        print(message)
        break
    await worker.end()

asyncio.run(main())
"""


def submit(number: int, prompt: list[int], max_tokens: int = 4, sampling: Sampling = GREEDY) -> wire.Submit:
    return wire.Submit(RowId(number), prompt, [], sampling, max_tokens, [])


async def until_ready(worker: Worker) -> list[wire.Message]:
    """All that a worker says up to Ready."""
    said = []
    async for message in worker.messages():
        said.append(message)
        if isinstance(message, wire.Ready):
            return said
    raise AssertionError(f"the worker ended; it had said {said}")


async def steps(worker: Worker) -> AsyncIterator[wire.Step]:
    async for message in worker.messages():
        if isinstance(message, wire.Step):
            yield message


async def until(said: AsyncIterator[wire.Step], *left: int) -> AsyncIterator[wire.Step]:
    """The steps up to the one in which the last of those rows leaves."""
    waiting = set(left)
    async for step in said:
        yield step
        waiting.difference_update(step.left)
        if not waiting:
            return
    raise AssertionError("the worker ended")


def tokens_of(said: list[wire.Step], number: int) -> list[int]:
    return [token for step in said for id, token in zip(step.rows, step.tokens, strict=True) if id == number]  # noqa: A001


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[Worker]:
    """A real worker with the noise model, for tests that leave it idle."""
    worker = await Worker.spawn()
    worker.send(
        wire.Load(name="noise", path=str(noise_model.folder()), log_format="text", max_rows=8, prefill_tokens=64)
    )
    await until_ready(worker)
    yield worker
    await worker.end()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_gives_every_row_its_solo_tokens(engine: Worker) -> None:
    drawn = Sampling(temperature=0.9, top_p=0.9, top_k=0, min_p=0.0, seed=2**64 - 1)
    engine.send(submit(1, [5, 6, 7], 8))
    engine.send(submit(2, [8], 6, drawn))
    said = [step async for step in until(steps(engine), 1, 2)]
    for number, prompt, length, sampling in ((1, [5, 6, 7], 8, GREEDY), (2, [8], 6, drawn)):
        expected = alone(judge().model, row(number, prompt, length, sampling))
        assert_same_tokens(prompt, sampling, expected, tokens_of(said, number))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_row_is_gone_before_whatever_is_submitted_behind_it(engine: Worker) -> None:
    engine.send(submit(3, [5, 6, 7], 10_000))
    async for step in steps(engine):
        if step.rows == [3]:
            break
    engine.send(wire.Cancel(RowId(3)))
    engine.send(submit(4, [9], 1))
    said = [step async for step in until(steps(engine), 4)]
    gone = next(step for step in said if 3 in step.left)
    assert gone.reasons[gone.left.index(RowId(3))] == wire.Left.CANCELLED
    assert all(3 not in step.rows for step in said if step.step >= gone.step)
    assert said[-1].step >= gone.step


@pytest.mark.asyncio(loop_scope="module")
async def test_ids_beyond_the_logits_are_refused_and_harm_nobody(engine: Worker) -> None:
    engine.send(submit(5, [1_280]))
    engine.send(submit(6, [1_279], 2))
    said = [step async for step in until(steps(engine), 6)]
    assert (said[0].left, said[0].reasons) == ([5], [wire.Left.REFUSED])
    assert len(tokens_of(said, 6)) == 2


async def test_rows_that_have_no_room_beside_each_other_run_one_after_another() -> None:
    worker = await Worker.spawn()
    worker.send(wire.Load("noise", str(noise_model.folder()), "text", max_rows=8, prefill_tokens=64, kv_bytes=1))
    await until_ready(worker)
    worker.send(submit(1, [5, 6, 7], 3))
    worker.send(submit(2, [8], 3))
    said = [step async for step in until(steps(worker), 2)]
    assert [step.rows for step in said if step.rows] == [[1]] * 3 + [[2]] * 3
    await worker.end()


async def test_keys_and_values_are_kept_in_as_many_bits_as_were_asked_for() -> None:
    worker = await Worker.spawn()
    worker.send(wire.Load("noise", str(noise_model.folder()), "text", max_rows=8, prefill_tokens=64, kv_bits=4))
    await until_ready(worker)
    worker.send(submit(1, [5, 6, 7], 8))
    said = [step async for step in until(steps(worker), 1)]
    in_four, as_computed = (alone(judge().model, row(1, [5, 6, 7], 8), kv_bits=bits) for bits in (4, None))
    assert tokens_of(said, 1) == in_four != as_computed
    await worker.end()


def test_a_busy_worker_dies_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, str(noise_model.folder())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        try:
            # The worker inherited the pipe: it is read to its end when both are gone.
            parent.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise
    assert parent.returncode == -signal.SIGKILL


def test_what_lies_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('this is not the package')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(place).resolve()) for place in sys.path)}
    command = [sys.executable, "-P", "-c", SPAWNER]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"{wire.Progress('imports')}\n", done.stderr


def test_a_worker_that_fails_says_whose_it_was_and_why() -> None:
    ours, theirs = socket.socketpair()
    watched, lifeline = os.pipe()
    command = [sys.executable, "-m", "mlxrpc_server.engine", str(theirs.fileno()), str(watched)]
    fds = (theirs.fileno(), watched)
    with ours, theirs, subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True) as process:
        ours.sendall(
            wire.encode(wire.Load("of mine", str(noise_model.folder()), "json", max_rows=8, prefill_tokens=64))
        )
        ours.recv(1 << 18)
        ours.sendall(b"\x02\x00\x00\x00no")
        assert process.stderr is not None
        told = json.loads(process.stderr.read().splitlines()[-1])
        os.close(watched)
        os.close(lifeline)
    assert process.returncode == 1
    assert (told["worker"], told["level"]) == ("of mine", "error")
    assert "ValueError: a frame of 2 bytes is no message" in told["exception"]


async def test_what_it_says_arrives_in_order_and_may_be_left_and_taken_up_again() -> None:
    worker = await Worker.spawn(command("says all at once"))
    worker.send(LOAD)
    async for first in worker.messages():
        assert first == wire.Progress("a")
        break
    assert await until_ready(worker) == [wire.Progress("b"), READY]
    await worker.end()


async def test_a_worker_ends_when_it_is_told() -> None:
    worker = await Worker.spawn(command("obeys"))
    worker.send(LOAD)
    await until_ready(worker)
    assert await worker.end() == "exit code 0"
    assert [message async for message in worker.messages()] == []


async def test_a_worker_that_does_not_listen_is_killed() -> None:
    worker = await Worker.spawn(command("is deaf"))
    assert await worker.end() == "signal SIGKILL"


async def test_a_caller_that_stops_waiting_for_the_end_kills_it_too() -> None:
    worker = await Worker.spawn(command("is deaf"))
    ending = asyncio.create_task(worker.end())
    await asyncio.wait([ending], timeout=0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert [message async for message in worker.messages()] == []
    assert await worker.end() == "signal SIGKILL"


async def test_a_death_is_the_end_of_its_messages_and_tells_how() -> None:
    worker = await Worker.spawn(command("dies while loading"))
    worker.send(LOAD)
    assert [message async for message in worker.messages()] == []
    assert await worker.end() == "exit code 7"


async def test_a_kill_is_told_by_its_signal() -> None:
    worker = await Worker.spawn(command("obeys"))
    os.kill(worker.pid, signal.SIGKILL)
    assert [message async for message in worker.messages()] == []
    assert await worker.end() == "signal SIGKILL"


async def test_sending_to_a_dead_worker_does_no_harm() -> None:
    worker = await Worker.spawn(command("dies while loading"))
    worker.send(LOAD)
    assert [message async for message in worker.messages()] == []
    for _ in range(10):
        worker.send(wire.Cancel(RowId(1)))
    assert await worker.end() == "exit code 7"


async def test_a_worker_that_talks_nonsense_counts_as_gone() -> None:
    worker = await Worker.spawn(command("talks nonsense"))
    worker.send(LOAD)
    worker.send(submit(1, [1]))
    assert [message async for message in worker.messages()] == [READY]
    await worker.end()


async def test_an_ended_worker_leaves_no_descriptor_open() -> None:
    before = open_descriptors()
    worker = await Worker.spawn(command("obeys"))
    assert open_descriptors() > before
    await worker.end()
    await worker.end()
    assert open_descriptors() == before


async def test_a_program_that_cannot_be_started_leaves_no_descriptor_open() -> None:
    await (await Worker.spawn(command("obeys"))).end()  # the event loop keeps what it opens for its first child
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        await Worker.spawn(["/no/such/program"])
    assert open_descriptors() == before
