"""The Python programs in the README, each run alone, as somebody would who copies it into a file."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxrpc_server import demo
from mlxrpc_server.config import BUILT_IN
from tests.end_to_end.running import RunningServer, running_server

README = Path(__file__).parents[2] / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LISTEN = "127.0.0.1:50051"
PRINTED = re.compile(r"print\(.*\) +# (.*)")
GREEDY = f"""
[[models]]
name = "{BUILT_IN}"
source = "{demo.source()}"
defaults = {{ temperature = 0.0 }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The built-in model without draws, whose seeds the programs leave to the server."""
    config = tmp_path_factory.mktemp("readme") / "mlxrpc.toml"
    config.write_text(GREEDY, encoding="utf-8")
    with running_server("--config", str(config)) as running:
        yield running


def test_it_has_programs() -> None:
    assert len(PROGRAMS) > 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_and_prints_what_stands_beside_it(server: RunningServer, program: str) -> None:
    assert LISTEN in program
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program.replace(LISTEN, server.address)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    said = PRINTED.findall(program)
    assert not said or done.stdout.splitlines() == said
