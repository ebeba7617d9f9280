"""A server under measurement, as a process: started, watched from outside, ended. Knows no protocol."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.contenders import Contender

STARTED_WITHIN = 180.0
ENDS_WITHIN = 10.0


class NotStarted(Exception):
    """`str()` has the end of its log."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a server has used so far, in seconds of processor; its children apart."""

    server: float
    workers: float

    def since(self, earlier: Use) -> Use:
        return Use(self.server - earlier.server, self.workers - earlier.workers)


@dataclass(slots=True)
class Server:
    process: psutil.Popen
    address: str
    most_bytes: int = 0
    """Of memory, the whole tree's, at the times it was looked at."""

    def use(self) -> Use:
        return Use(_seconds(self.process), sum(map(_seconds, self._children())))

    def look(self) -> None:
        self.most_bytes = max(self.most_bytes, sum(map(_bytes, [self.process, *self._children()])))

    @property
    def state(self) -> str:
        code = self.process.poll()
        return "it gave no token, and runs" if code is None else f"it ended with exit code {code}"

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(self.process.children(recursive=True))
        return []


@contextlib.contextmanager
def running(contender: Contender, model: Path, rows: int) -> Iterator[Server]:
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **contender.environment()}
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(
            contender.command(model, port, rows),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            if not _listens(process, port):
                raise NotStarted(_end_of(log.fileno()))
            yield Server(process, f"127.0.0.1:{port}")
        finally:
            _end(process)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def device_bytes() -> int | None:
    """What all processes hold on the first NVIDIA GPU; with one server at a time, that is the server's."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return int(answer[0]) << 20 if answer and answer[0].isdigit() else None


def _listens(process: psutil.Popen, port: int) -> bool:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False


def _end(process: psutil.Popen) -> None:
    """And its children, should it leave any behind."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = process.children(recursive=True)
    for one in (process, *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    _, late = psutil.wait_procs([process, *children], timeout=ENDS_WITHIN)
    for one in late:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _end_of(log: int, most: int = 2000) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, most, max(0, size - most)).decode(errors="replace")


def _seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0
