"""`mlxrpc health`: exits with 0 when the server, or a model on it, can take requests, and with 1 when not."""

from __future__ import annotations

import argparse
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrpc._channel import SERVICE
from mlxrpc._errors import NotFound
from mlxrpc._sync import open_channel, translated
from mlxrpc.cli import connection, terminal

SERVING = health_pb2.HealthCheckResponse.SERVING
PATIENCE = 5.0  # seconds; a health check that hangs says enough
PAUSE = 0.2  # seconds


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "health",
        help="ask whether a server can take requests",
        description="Asks whether a server, or a model on it, can take requests: exit code 0 when it can, else 1.",
    )
    parser.set_defaults(run=run)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("model", nargs="?", metavar="MODEL", help="ask about this model (default: the service)")
    what.add_argument("--live", action="store_true", help="ask whether the server lives, ready or not")
    what.add_argument("--all", action="store_true", help="ask about the server, the service and every model")
    parser.add_argument("--wait", metavar="SECONDS", type=float, help="wait so long for it to be SERVING")
    connection.add(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.all and arguments.wait is not None:
        raise ValueError("--wait goes with one name, not with --all")
    with open_channel(arguments.server, connection.credentials(arguments), RECONNECT) as channel:
        health = Health(channel, arguments)
        if arguments.all:
            return _print_all(health, [("server", ""), ("service", SERVICE), *_models(arguments)])
        name = "" if arguments.live else f"{SERVICE}/{arguments.model}" if arguments.model else SERVICE
        status = health.check(name) if arguments.wait is None else health.wait(name, arguments.wait)
    print(status_name(status))
    return terminal.OK if status == SERVING else terminal.FAILED


# While waiting for a server that is being started, the next attempt comes soon.
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))


class Health:
    """The standard health service of one server."""

    def __init__(self, channel: grpc.Channel, arguments: argparse.Namespace) -> None:
        self._stub: Any = health_pb2_grpc.HealthStub(channel)  # generated code without types
        self._timeout = PATIENCE if arguments.timeout is None else arguments.timeout

    def check(self, name: str) -> int:
        request = health_pb2.HealthCheckRequest(service=name)
        try:
            with translated():
                return int(self._stub.Check(request, timeout=self._timeout).status)
        except NotFound:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    def wait(self, name: str, seconds: float) -> int:
        """The status SERVING as soon as it comes, else the last one that was heard; UNKNOWN: nobody answered."""
        deadline = time.monotonic() + seconds
        status: int = health_pb2.HealthCheckResponse.UNKNOWN
        while status != SERVING and (left := deadline - time.monotonic()) > 0:
            status = self._watch(name, left, status)
            if status != SERVING:
                # Only after a watch that broke off: a proxy without a server behind it refuses at once, again and again.
                time.sleep(min(PAUSE, max(0.0, deadline - time.monotonic())))
        return status

    def _watch(self, name: str, seconds: float, status: int) -> int:
        """Follows the status until it is SERVING, or the watch ends: by the deadline, or with the connection."""
        request = health_pb2.HealthCheckRequest(service=name)
        watch = self._stub.Watch(request, timeout=seconds, wait_for_ready=True)
        try:
            for response in watch:
                status = response.status
                if status == SERVING:
                    break
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                with translated():
                    raise
        finally:
            watch.cancel()
        return status


def _models(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    with connection.client(arguments) as client:
        return [(model.name, f"{SERVICE}/{model.name}") for model in client.models(timeout=PATIENCE)]


def _print_all(health: Health, names: list[tuple[str, str]]) -> int:
    statuses = [(label, health.check(name)) for label, name in names]
    width = max(len(label) for label, _ in statuses)
    for label, status in statuses:
        print(f"{label.ljust(width)}  {status_name(status)}")
    return terminal.OK if all(status == SERVING for _, status in statuses) else terminal.FAILED


def status_name(status: int) -> str:
    known = health_pb2.HealthCheckResponse.ServingStatus
    return known.Name(status) if status in known.values() else "UNKNOWN"
