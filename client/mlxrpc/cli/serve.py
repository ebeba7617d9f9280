"""`mlxrpc serve`: starts the server, which is another package and not always installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from mlxrpc.cli import terminal

# Imported by the server only when it loads a model: too late to say that they are missing.
LATE = ("mlx", "mlx_lm")


def add(commands: Any) -> None:
    """For the list of commands alone: `main` hands everything after `serve` to the server."""
    commands.add_parser("serve", help="start a server (mlxrpc serve --help)", add_help=False)


def run(arguments: Sequence[str]) -> int:
    try:
        importlib.import_module("mlxrpc_server")
        server = importlib.import_module("mlxrpc_server.__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mlxrpc_server."):  # a broken installation, not a missing one
            raise
        return _refuse(error.name or "mlxrpc_server")
    for name in LATE:
        if importlib.util.find_spec(name) is None:
            return _refuse(name)
    return int(server.main(list(arguments)) or terminal.OK)


def _refuse(missing: str) -> int:
    extra = "server" if sys.platform == "darwin" else "cpu"
    terminal.say(f"mlxrpc: this installation is the client alone ({missing} is missing). To serve models:")
    terminal.say(f"  pip install 'mlxrpc[{extra}]'")
    if extra == "cpu":
        terminal.say("or, with an NVIDIA GPU, mlxrpc[cuda12] or mlxrpc[cuda13].")
    return terminal.USAGE
