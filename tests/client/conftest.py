"""A fake server for each test that asks for one, and a client of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import mlxrpc
from tests.client.fake_server import FakeInference, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


@pytest.fixture
def fake(server: FakeServer) -> FakeInference:
    return server.inference


@pytest.fixture
def client(server: FakeServer) -> Iterator[mlxrpc.Client]:
    with mlxrpc.Client(server.target) as opened:
        yield opened


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background has them, and their children, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
