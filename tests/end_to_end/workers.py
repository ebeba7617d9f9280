"""The worker processes of a running server, as the system shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import psutil

from tests.end_to_end.running import RunningServer, until


def workers(server: RunningServer) -> list[psutil.Process]:
    """Those that run the engine already: a child is a copy of the server until it does."""
    return [child for child in psutil.Process(server.process.pid).children() if _runs_the_engine(child)]


def next_worker(server: RunningServer, known: Collection[int] = ()) -> psutil.Process:
    """The one that comes beside those that are known. It takes seconds to load: there is time to do something to it."""
    young: list[psutil.Process] = []

    def seen() -> bool:
        young[:] = [worker for worker in workers(server) if worker.pid not in known]
        return bool(young)

    until(seen, "another worker is started")
    (worker,) = young
    return worker


@contextlib.contextmanager
def suspended(worker: psutil.Process) -> Iterator[None]:
    """What it is doing stays undone meanwhile."""
    worker.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()


def gone(worker: psutil.Process) -> bool:
    """Ended, its memory with it; where nobody has fetched its exit code, a name of it may be left."""
    try:
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _runs_the_engine(process: psutil.Process) -> bool:
    try:
        return "mlxrpc_server.engine" in process.cmdline()
    except psutil.NoSuchProcess:
        return False
