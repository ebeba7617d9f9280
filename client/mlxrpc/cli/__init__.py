"""The command `mlxrpc`: which commands there are. Each module here is one of them, or what they share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlxrpc._version import __version__
from mlxrpc.cli import chat, count, generate, health, models, serve, terminal


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:  # its arguments are the server's, which this package does not know
        return terminal.exit_code(lambda: serve.run(arguments[1:]))
    parsed = _parser().parse_args(arguments)
    return terminal.exit_code(lambda: parsed.run(parsed), getattr(parsed, "server", ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlxrpc", description="Language models on MLX, served over gRPC.")
    parser.add_argument("--version", action="version", version=f"mlxrpc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in (serve, chat, generate, models, count, health):
        command.add(commands)
    return parser
