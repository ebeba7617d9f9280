"""A fake server for each test that asks for one, and a client of it."""

from __future__ import annotations

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
