"""A worker process: `python -m mlxrpc_server.engine SOCKET_FD LIFELINE_FD`.

Receive, step, reply, all in one thread: others watch the server's end, and read grammars. It serves one model until its
server says so or is gone.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlxrpc_server.engine import wire
from mlxrpc_server.logs import log_to_stderr

if TYPE_CHECKING:
    from mlxrpc_server.engine.batch import Batch
    from mlxrpc_server.engine.load import Loaded
    from mlxrpc_server.engine.room import Room

log = logging.getLogger(__name__)

RECEIVE_BYTES = 1 << 20


class Channel:
    """The server's end of the line, as messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = wire.Frames(wire.Down)
        # What came behind a message at which the reader stopped: the socket would not announce it again.
        self._arrived: deque[wire.Message] = deque()

    def receive(self, *, wait: bool) -> Iterator[wire.Message]:
        """What has arrived; where `wait` is set, sleeps until something has."""
        if not self._arrived:
            self._read(wait=wait)
        while self._arrived:
            yield self._arrived.popleft()

    def _read(self, *, wait: bool) -> None:
        readable, _, _ = select.select([self._connection], [], [], None if wait else 0)
        if not readable:
            return
        data = self._connection.recv(RECEIVE_BYTES)
        if not data:
            raise EOFError
        self._arrived.extend(self._frames.feed(data))

    def send(self, message: wire.Message) -> None:
        self._connection.sendall(wire.encode(message))


def main(socket_fd: int, lifeline_fd: int) -> None:
    _end_with_parent(lifeline_fd)
    channel = Channel(socket.socket(fileno=socket_fd))
    try:
        load = _first(channel)
        log_to_stderr(load.log_format, {"worker": load.name})
        _serve(channel, load)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.info("the server is gone; ending")
    except Exception:
        log.exception("the worker fails; ending")
        sys.exit(1)


def _end_with_parent(lifeline_fd: int) -> None:
    """Ends this process when the parent's end of the pipe closes, even in the middle of a long kernel."""

    def watch() -> None:
        os.read(lifeline_fd, 1)
        os._exit(3)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
    _be_signalled_at_its_end(lifeline_fd)


def _be_signalled_at_its_end(lifeline_fd: int) -> None:
    """For when native code keeps the interpreter from every thread, as mlx does while it opens a weights file.

    Linux alone lets one choose a signal for this that ends a process without its help.
    """
    if sys.platform == "linux":
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)


def _first(channel: Channel) -> wire.Load:
    while True:
        for message in channel.receive(wait=True):
            if isinstance(message, wire.Load):
                return message
            raise ValueError(f"{type(message).__name__} came before Load")


def _serve(channel: Channel, load: wire.Load) -> None:
    # Here and below, not at the top: these take two seconds, and the watchdog must stand before them.
    channel.send(wire.Progress("imports"))
    from mlxrpc_server.engine import device
    from mlxrpc_server.engine.constraint import Grammars
    from mlxrpc_server.engine.load import CannotLoad
    from mlxrpc_server.engine.load import load as load_model
    from mlxrpc_server.engine.loop import Loop

    # First of all: it prepares the vocabulary in a thread, and holds the interpreter for a second where that is large.
    grammars = Grammars(load.spelling) if load.spelling else None
    blas_name = device.prepare()
    room = _room(load)
    try:
        loaded = load_model(
            Path(load.path),
            lambda stage: channel.send(wire.Progress(stage)),
            room,
            kv_bits=load.kv_bits,
            metal_kernels=load.metal_kernels,
            blas=blas_name,
        )
    except CannotLoad as error:
        channel.send(wire.Failed(str(error)))
        return
    batch = _batch(load, loaded, room)
    # What is there now stays, and no collection is to go through it while rows wait.
    gc.collect()
    gc.freeze()
    channel.send(_ready(loaded, blas_name))
    Loop(channel, batch, loaded.vocabulary_size, clock=time.monotonic, grammars=grammars).run()


def _room(load: wire.Load) -> Room:
    from mlxrpc_server.engine import device
    from mlxrpc_server.engine.room import SHARE, Room

    return Room(rows=load.max_rows, bytes=load.kv_bytes or int(SHARE * device.memory_bytes() / load.models))


def _batch(load: wire.Load, loaded: Loaded, room: Room) -> Batch:
    """An empty one, behind which nothing is left to compile."""
    from mlxrpc_server.engine import device
    from mlxrpc_server.engine.batch import Batch
    from mlxrpc_server.engine.room import PREFIX_SHARE
    from mlxrpc_server.engine.warm import warmed

    make = functools.partial(
        Batch,
        loaded.model,
        loaded.kv,
        max_rows=load.max_rows,
        prefill_tokens=load.prefill_tokens,
        clock=time.perf_counter,
        prefix_bytes=int(PREFIX_SHARE * room.bytes) if load.prefix_bytes is None else load.prefix_bytes,
    )
    # On a CPU nothing is compiled.
    return make() if device.on_cpu() else warmed(make, loaded.model, loaded.kv, max_rows=load.max_rows)


def _ready(loaded: Loaded, blas_name: str) -> wire.Ready:
    import mlx.core as mx

    return wire.Ready(
        vocabulary_size=loaded.vocabulary_size,
        batched=loaded.batched,
        dtype=str(loaded.dtype).removeprefix("mlx.core."),
        device=mx.default_device().type.name,
        parameter_count=loaded.parameter_count,
        memory_bytes=mx.get_active_memory(),
        blas=blas_name,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
