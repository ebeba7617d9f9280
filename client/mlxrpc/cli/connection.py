"""The arguments that say which server, and the client for them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import grpc

from mlxrpc._channel import DEFAULT_TARGET
from mlxrpc._sync import Client


def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument(
        "-s",
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("MLXRPC_SERVER") or DEFAULT_TARGET,
        help="the server (default: $MLXRPC_SERVER, else %(default)s)",
    )
    group.add_argument("--timeout", metavar="SECONDS", type=float, help="give up after so long (default: never)")
    group.add_argument("--tls", action="store_true", help="encrypt the connection")
    group.add_argument("--ca", metavar="FILE", type=Path, help="the certificates to trust, in PEM (implies --tls)")
    group.add_argument("--token", default=os.environ.get("MLXRPC_TOKEN"), help="default: $MLXRPC_TOKEN")


def client(arguments: argparse.Namespace) -> Client:
    return Client(
        arguments.server,
        credentials=credentials(arguments),
        token=arguments.token,
        timeout=arguments.timeout,
    )


def credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if arguments.ca:
        return grpc.ssl_channel_credentials(arguments.ca.read_bytes())
    return grpc.ssl_channel_credentials() if arguments.tls else None
