"""`mlxrpc models`: lists the models that a server may serve."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from mlxrpc._models import Model
from mlxrpc.cli import connection, terminal

HEADINGS = ("NAME", "STATE", "ARCHITECTURE", "CONTEXT", "SIZE", "ABOUT")
NUMBERS = {"CONTEXT", "SIZE"}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "models", help="list the server's models", description="Lists the models that a server may serve."
    )
    parser.set_defaults(run=run)
    parser.add_argument("query", nargs="*", metavar="WORD", help="only models with all these words")
    parser.add_argument("--json", action="store_true", help="print a JSON list of everything that is known")
    connection.add(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.client(arguments) as client:
        found = client.models(" ".join(arguments.query))
    if arguments.json:
        terminal.print_json(terminal.as_json(*(model.proto for model in found)))
    else:
        for line in table([HEADINGS, *(row(model) for model in found)]):
            print(line)
    return terminal.OK


def row(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        model.state,
        model.architecture,
        "" if model.context_length is None else f"{model.context_length:,}",
        "" if model.weights_bytes is None else size(model.weights_bytes),
        model.state_reason or model.description,
    )


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell, numbers to the right; the first row is the headings. One line for each."""
    rows = [[" ".join(cell.split()) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (
            cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(cells, widths, rows[0], strict=True)
        )
        yield "  ".join(padded).rstrip()


def size(count: float) -> str:
    """Bytes for people, such as `4.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} TB"
