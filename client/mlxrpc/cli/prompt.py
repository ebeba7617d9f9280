"""The arguments that say what the model is given, and the prompt for them."""

from __future__ import annotations

import argparse
import sys

from mlxrpc._messages import Prompt, Text, system, user


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what the user says; absent or -: read from stdin")
    add_model(parser)
    kind = parser.add_mutually_exclusive_group()
    add_system(kind)
    kind.add_argument("--raw", action="store_true", help="no chat template: the model goes on with the text as it is")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", help="its name or an alias (default: the server's first)")
    parser.add_argument(
        "--thinking",
        dest="enable_thinking",
        action=argparse.BooleanOptionalAction,
        help="let the model think first (default: its own)",
    )


def add_system(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--system", metavar="TEXT", help="instructions for the whole conversation")


def prompt_from(arguments: argparse.Namespace) -> Prompt:
    text = _text(arguments.prompt)
    if arguments.raw:
        return Text(text)
    text = text.removesuffix("\n") if arguments.prompt in (None, "-") else text
    return [system(arguments.system), user(text)] if arguments.system else [user(text)]


def _text(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        raise ValueError("there is no prompt: give one as an argument, or pipe one in")
    return sys.stdin.read() if given in (None, "-") else str(given)
