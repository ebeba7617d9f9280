"""The worker's end of the line, and what ends the process."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mlxrpc_server.engine import wire
from mlxrpc_server.engine.__main__ import Channel
from mlxrpc_server.types import RowId


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs)


def test_nothing_is_received_where_nothing_was_sent(ends: tuple[socket.socket, Channel]) -> None:
    assert list(ends[1].receive(wait=False)) == []


def test_what_came_behind_the_last_message_read_is_kept(ends: tuple[socket.socket, Channel]) -> None:
    """The process reads Load alone first; a Shutdown that came with it must not be lost."""
    server, channel = ends
    server.sendall(wire.encode(wire.Cancel(RowId(1))) + wire.encode(wire.Shutdown()))
    assert next(channel.receive(wait=True)) == wire.Cancel(RowId(1))
    assert list(channel.receive(wait=False)) == [wire.Shutdown()]


def test_the_end_of_the_server_is_the_end_of_the_line(ends: tuple[socket.socket, Channel]) -> None:
    server, channel = ends
    server.sendall(wire.encode(wire.Shutdown()))
    server.close()
    assert list(channel.receive(wait=True)) == [wire.Shutdown()]
    with pytest.raises(EOFError):
        list(channel.receive(wait=True))
