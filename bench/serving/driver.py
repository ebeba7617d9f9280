"""A process that plays clients: takes jobs, runs their streams against one server, gives the answers.

As many of these as the machine has room for share a job's streams, so that the clients are not what is measured.
Knows no figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import grpc

from serving.contenders import Client, Contender
from serving.exchange import CUT, Answer, Job, Stream

LEAD = 0.05
"""Seconds from a job's sending to its begin: all drivers have it by then."""

FAILURES = (grpc.RpcError, OSError, EOFError, ValueError)
"""What a server that dies or refuses does to its clients: recorded, and the run goes on."""


@dataclass(frozen=True, slots=True)
class Done:
    answers: list[Answer]
    cpu: float
    """Seconds of this driver's processor."""


class Drivers:
    """For one server, for as long as it lives."""

    def __init__(self, contender: Contender, address: str, count: int) -> None:
        spawn = get_context("spawn")
        pairs = [spawn.Pipe() for _ in range(count)]
        self._lines = [ours for ours, _ in pairs]
        self._processes = [
            spawn.Process(target=drive, args=(theirs, contender, address), daemon=True) for _, theirs in pairs
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def begin(self, job: Job) -> float:
        """Deals the streams out; gives the monotonic time at which they begin."""
        begin = time.monotonic() + LEAD
        count = len(self._lines)
        for place, line in enumerate(self._lines):
            part = [(number, stream) for number, stream in enumerate(job.streams) if number % count == place]
            line.send((part, begin, job.cap))
        return begin

    def ended(self, seconds: float) -> bool:
        """Whether all are through, within so many seconds."""
        return all(line.poll(seconds) for line in self._lines)

    def result(self) -> Done:
        parts: list[Done] = [line.recv() for line in self._lines]
        answers = [answer for part in parts for answer in part.answers]
        return Done(sorted(answers, key=lambda answer: answer.begun), max(part.cpu for part in parts))


def drive(line: Connection, contender: Contender, address: str) -> None:
    asyncio.run(_drive(line, contender.client(address)))


async def _drive(line: Connection, client: Client) -> None:
    async with client:
        while True:
            streams, begin, cap = await asyncio.to_thread(line.recv)
            used = time.process_time()
            answers = await play(client, streams, begin, cap)
            line.send(Done(answers, time.process_time() - used))


async def play(client: Client, streams: Sequence[tuple[int, Stream]], begin: float, cap: float) -> list[Answer]:
    answers: list[Answer] = []
    tasks = [asyncio.create_task(_stream(client, number, stream, begin, answers)) for number, stream in streams]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=begin + cap - time.monotonic())
        for task in late:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
    return answers


async def _stream(client: Client, number: int, stream: Stream, begin: float, answers: list[Answer]) -> None:
    await asyncio.sleep(begin + stream.after - time.monotonic())
    for ask in stream.asks:
        answer = Answer(ask, number, time.monotonic())
        answers.append(answer)
        try:
            await client.ask(answer)
        except asyncio.CancelledError:
            answer.error = CUT
            raise
        except FAILURES as error:
            answer.error = sentence(error)
        finally:
            answer.ended = time.monotonic()


def sentence(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:200]
    return f"{type(error).__name__}: {error}"[:200]
