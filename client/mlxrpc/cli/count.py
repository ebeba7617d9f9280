"""`mlxrpc count`: counts a prompt's tokens, without loading the model."""

from __future__ import annotations

import argparse
from typing import Any

from mlxrpc.cli import connection, prompt, terminal


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "count", help="count a prompt's tokens", description="Counts a prompt's tokens, without loading the model."
    )
    parser.set_defaults(run=run)
    prompt.add(parser)
    parser.add_argument("--json", action="store_true", help="print the whole response as JSON, ids and prompt included")
    connection.add(parser)


def run(arguments: argparse.Namespace) -> int:
    given = prompt.prompt_from(arguments)
    with connection.client(arguments) as client:
        response = client.count_tokens(
            given,
            model=arguments.model,
            enable_thinking=arguments.enable_thinking,
            return_token_ids=arguments.json,
            return_prompt=arguments.json,
        )
    if arguments.json:
        terminal.print_json(*terminal.as_json(response))
    else:
        print(response.token_count)
    return terminal.OK
