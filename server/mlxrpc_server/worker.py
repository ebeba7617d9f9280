"""One worker process and the line to it: spawn, send, receive, end.

Knows messages, not what they mean; that a process can die at any moment is its normal case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence

from mlxrpc_server.engine import wire

log = logging.getLogger(__name__)

RECEIVE_BYTES = 1 << 18
END_SECONDS = 2.0
"""How long a worker may take to end by itself; it has nothing to save."""


class Worker:
    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ended: asyncio.Future[int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lifeline: int,
    ) -> None:
        self._process = process
        self._ended = ended
        self._reader = reader
        self._writer = writer
        self._lifeline = lifeline
        self._frames = wire.Frames(wire.Up)
        self._arrived: deque[wire.Message] = deque()

    @classmethod
    async def spawn(cls, command: Sequence[str] = ()) -> Worker:
        """`command` replaces the engine's own in tests; the two descriptors are its last arguments."""
        # -P: what lies in the operator's working directory is not ours to import.
        command = command or (sys.executable, "-P", "-m", "mlxrpc_server.engine")
        with contextlib.ExitStack() as child_ends, contextlib.ExitStack() as our_ends:
            ours, theirs = socket.socketpair()
            watched, lifeline = os.pipe()
            child_ends.callback(theirs.close)
            child_ends.callback(os.close, watched)
            our_ends.callback(ours.close)
            our_ends.callback(os.close, lifeline)
            # Not by way of the event loop: uvloop 0.23.0 forks and runs Python in the child, whatever locks the threads of
            # gRPC and of the tokenizers hold, and children of busy servers ended in segmentation faults. This one execs.
            process = subprocess.Popen(  # noqa: ASYNC220
                [*command, str(theirs.fileno()), str(watched)],
                pass_fds=(theirs.fileno(), watched),
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the server, which drains; its workers go on until it says so.
                start_new_session=True,
            )
            ended = _exit_of(process)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            our_ends.pop_all()
        return cls(process, ended, reader, writer, lifeline)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.Message) -> None:
        """Never waits, and never fails: a dead worker's end is seen by whoever receives."""
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    async def messages(self) -> AsyncIterator[wire.Message]:
        """Everything that the worker says, until it is gone. May be left and taken up again."""
        more = True
        while more or self._arrived:
            while self._arrived:
                yield self._arrived.popleft()
            more = more and await self._receive()

    async def _receive(self) -> bool:
        """False where nothing more will come. A worker that talks nonsense is as good as gone: end() makes it so."""
        try:
            data = await self._reader.read(RECEIVE_BYTES)
            self._arrived.extend(self._frames.feed(data))
        except ConnectionError:
            return False
        except ValueError as error:
            log.error("a worker talks nonsense", extra={"pid": self.pid, "cause": str(error)})
            return False
        return bool(data)

    async def end(self) -> str:
        """Ends the process and waits until it is gone, its memory with it; tells how it went."""
        try:
            self.send(wire.Shutdown())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), END_SECONDS)
        finally:
            self._writer.close()
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
            if self._process.returncode is None:
                self._process.kill()
        code = await asyncio.shield(self._ended)
        return f"exit code {code}" if code >= 0 else f"signal {_name_of(-code)}"


def _exit_of(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """The exit code, once it is gone; a thread waits for it, as asyncio's own would."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def wait() -> None:
        code = process.wait()
        # RuntimeError: the loop is closed, and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, code)

    threading.Thread(target=wait, name=f"end of {process.pid}", daemon=True).start()
    return ended


def _name_of(number: int) -> str:
    """Python has no names for the real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
