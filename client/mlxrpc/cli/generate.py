"""`mlxrpc generate`: prints a completion as it is made."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mlxrpc._results import Completion
from mlxrpc._sync import Client, Stream
from mlxrpc.cli import connection, prompt, sampling, terminal


def add(commands: Any) -> None:
    parser = commands.add_parser("generate", help="generate text", description="Prints a completion as it is made.")
    parser.set_defaults(run=run)
    prompt.add(parser)
    parser.add_argument("--json", action="store_true", help="print the whole response as JSON, at the end")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: each token's log-probability, and N likely ones beside it",
    )
    parser.add_argument("--stats", action="store_true", help="print counts and speed to stderr, at the end")
    sampling.add(parser)
    connection.add(parser)


def run(arguments: argparse.Namespace) -> int:
    given = prompt.prompt_from(arguments)
    options = sampling.options(arguments) | {"logprobs": _logprobs(arguments)}
    with connection.client(arguments) as client:
        completion = (_whole if arguments.json else _streamed)(client, given, options)
    if arguments.stats:
        terminal.say(_stats(completion))
    return terminal.OK


def _logprobs(arguments: argparse.Namespace) -> int | None:
    wanted: int | None = arguments.logprobs
    if wanted is not None and not arguments.json:
        raise ValueError("--logprobs needs --json: there is no other place for them")
    return wanted


def _whole(client: Client, given: Any, options: dict[str, Any]) -> Completion:
    completion = client.generate(given, **options)
    terminal.print_json(*terminal.as_json(completion.proto))
    return completion


def _streamed(client: Client, given: Any, options: dict[str, Any]) -> Completion:
    with client.stream(given, **options) as stream:
        try:
            _print(stream)
        finally:
            if stream.text and not stream.text.endswith("\n"):
                print(flush=True)
        return stream.result()


def _print(stream: Stream) -> None:
    for delta in stream:
        sys.stdout.write(delta.text)
        sys.stdout.flush()


def _stats(completion: Completion) -> str:
    usage, timings = completion.usage, completion.timings
    first = f", first after {timings.time_to_first_token:.2f} s" if timings.time_to_first_token is not None else ""
    return (
        f"{completion.model}: {usage.prompt_tokens} + {usage.completion_tokens} tokens{first},"
        f" {timings.tokens_per_second:.1f} tokens/s, {completion.finish_reason}, seed {completion.seed}"
    )
