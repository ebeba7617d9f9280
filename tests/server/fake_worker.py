"""A worker process without a model, for what a real one does only by accident: `fake_worker.py HOW SOCKET_FD LIFELINE_FD`.

It says Ready to Load, and then does what HOW says. Its tokens are the absolute positions at which they stand.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from mlxrpc_server.engine import wire
from mlxrpc_server.types import RowId

READY = wire.Ready(
    vocabulary_size=100,
    batched=True,
    dtype="float32",
    device="cpu",
    parameter_count=0,
    memory_bytes=0,
)


def command(how: str) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__)), how)


def main(how: str, connection: socket.socket) -> None:
    for message in received(connection):
        match message:
            case wire.Load():
                load(how, connection)
            case wire.Submit():
                submit(how, connection, message)
            case wire.Shutdown():
                shut_down(how)
                return


def load(how: str, connection: socket.socket) -> None:
    match how:
        case "dies while loading":
            os._exit(7)
        case "steps before it is ready":
            say(connection, step(RowId(1), 5))
        case "says all at once":
            say(connection, wire.Progress("a"), wire.Progress("b"), READY)
        case _:
            say(connection, READY)


def submit(how: str, connection: socket.socket, message: wire.Submit) -> None:
    match how:
        case "dies at every request":
            os._exit(9)
        case "gives one token and dies":
            say(connection, step(message.row, len(message.prompt) + len(message.produced)))
            os._exit(9)
        case "talks nonsense":
            connection.sendall(b"\xff" * 64)


def shut_down(how: str) -> None:
    if how == "is deaf":
        select.select([], [], [])


def received(connection: socket.socket) -> Iterator[wire.Message]:
    frames = wire.Frames(wire.Down)
    while data := connection.recv(65536):
        yield from frames.feed(data)


def say(connection: socket.socket, *messages: wire.Message) -> None:
    connection.sendall(b"".join(wire.encode(message) for message in messages))


def step(row: RowId, token: int) -> wire.Step:
    return wire.Step(
        step=1, rows=[row], tokens=[token], left=[], reasons=[], prefilled=[], prefill_seconds=0.0, seconds=0.0
    )


if __name__ == "__main__":
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
