"""The examples in the docstrings run as printed."""

from __future__ import annotations

import asyncio
import doctest
from types import ModuleType

import pytest

import mlxrpc
from mlxrpc import _aio, _errors, _messages, _sync
from tests.client.fake_server import FakeServer


@pytest.mark.parametrize("module", [_sync, _aio, _errors, _messages])
def test_examples_work(module: ModuleType, server: FakeServer, client: mlxrpc.Client) -> None:
    names = {"mlxrpc": mlxrpc, "asyncio": asyncio, "client": client, "target": server.target}
    found = doctest.DocTestFinder().find(module, extraglobs=names)
    runner = doctest.DocTestRunner()
    tried = sum(runner.run(each).attempted for each in found)
    assert tried > 0
    assert runner.summarize(verbose=False).failed == 0


def test_every_public_name_is_documented() -> None:
    classes = [getattr(mlxrpc, name) for name in mlxrpc.__all__ if isinstance(getattr(mlxrpc, name), type)]
    ours = [each for each in classes if each.__module__.startswith("mlxrpc._") and not issubclass(each, Exception)]
    assert [each.__name__ for each in ours if not each.__doc__] == []
