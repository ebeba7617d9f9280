"""One server for all tests that leave it as they found it; a test that breaks something starts its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.running import RunningServer, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running
