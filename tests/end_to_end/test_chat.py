"""`mlxrpc chat` with the built-in model: what a newcomer does in the first minute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxrpc_server import demo
from mlxrpc_server.config import BUILT_IN
from tests.end_to_end.running import RunningServer, running_server, until
from tests.terminal import CTRL_C, CTRL_D, terminal

README = Path(__file__).parents[2] / "README.md"
CONFIG = f"""
preload = []

[[models]]
name = "{BUILT_IN}"
source = "{demo.source()}"

[[models]]
name = "forgetful"
source = "{demo.source()}"
context_length = 200
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The built-in model, and again with a context of a few sentences."""
    config = tmp_path_factory.mktemp("chat") / "mlxrpc.toml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server("--config", str(config)) as running:
        yield running


def chat(server: RunningServer, *arguments: str, said: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlxrpc", "chat", "--server", server.address, "-t", "0", *arguments],
        input=said,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
        timeout=120,
    )


def test_the_conversation_in_the_readme_comes_out_so(server: RunningServer) -> None:
    """Greedily, and so more strictly than the one that was printed; a question begins with the prompt."""
    _, _, shown = README.read_text(encoding="utf-8").partition("$ .venv/bin/mlxrpc chat\n")
    lines = shown.partition("> /exit")[0].splitlines()[1:]
    questions = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    answers = [line for line in lines if line and not line.startswith("> ")]
    assert len(questions) == len(answers) > 5
    done = chat(server, said="\n".join(questions))
    assert done.stdout.splitlines() == answers
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_conversation_goes_on_when_it_outgrows_the_context(server: RunningServer) -> None:
    questions = [f"What is {number} + {number}?" for number in range(10, 24)]
    done = chat(server, "-m", "forgetful", said="\n".join(questions))
    assert done.stdout.splitlines() == [f"{number} + {number} = {2 * number}" for number in range(10, 24)]
    assert done.stderr.count("(the conversation is longer than the model's context: ") >= 1
    assert done.returncode == 0


def test_ctrl_c_stops_an_answer_on_the_server_too_and_the_conversation_goes_on(server: RunningServer) -> None:
    with terminal("chat", "--server", server.address, "-t", "0", "--ignore-eos") as screen:
        screen.until("> ")
        screen.type("Who are you?\n")
        screen.until("I am Pebble")
        assert server.loaded(BUILT_IN).leases == 1
        screen.type(CTRL_C)
        screen.until("\n\n> ")
        until(lambda: not server.loaded(BUILT_IN).leases, "nothing is generated any more")
        screen.type("Hello!\n")
        screen.until("Hello! 👋 How can I help you?")
        screen.type(CTRL_C)
        screen.until("\n\n> ")
        screen.type(CTRL_D)
        assert screen.left() == 0
