"""A real server process for tests, as an operator would start it, on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrpc.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from tests import noise_model

READINESS = "mlxrpc.v1.InferenceService"
START_SECONDS = 120.0
"""Far above what a start takes, so that only a failure meets it."""


class RunningServer:
    def __init__(self, process: subprocess.Popen[str], log_path: str) -> None:
        self.process = process
        self._log_path = log_path
        self.address = self._announced("mlxrpc is listening on ")
        self.admin_address = self._announced("mlxrpc admin is listening on ")
        self.channel = grpc.insecure_channel(self.address)
        self.admin_channel = grpc.insecure_channel(self.admin_address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.admin = admin_pb2_grpc.ModelAdminServiceStub(self.admin_channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)  # the type stubs know no methods of it

    def _announced(self, beginning: str) -> str:
        """The rest of the line that begins so; the server says its addresses on stdout."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(beginning):
            raise AssertionError(f"expected {beginning!r}, got {line!r}; the log:\n{self.log()}")
        return line.removeprefix(beginning).strip()

    def wait_ready(self, service: str = READINESS) -> None:
        self.wait_health(service, health_pb2.HealthCheckResponse.SERVING)

    def wait_health(self, service: str, status: int) -> list[int]:
        """Watches until the status comes; gives all that came before it too."""
        seen = []
        watch = self.health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=START_SECONDS)
        for response in watch:
            seen.append(response.status)
            if response.status == status:
                watch.cancel()
                return seen
        raise AssertionError(f"the watch of {service} ended; seen: {seen}")

    def check_health(self, service: str = "") -> int:
        response = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        return int(response.status)

    def info(self) -> admin_pb2.GetServerInfoResponse:
        return self.admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=30)

    def loaded(self, name: str = noise_model.NAME) -> admin_pb2.LoadedModel:
        for model in self.info().models:
            if model.name == name:
                return model
        raise AssertionError(f"{name} is not loaded")

    def log(self) -> str:
        return Path(self._log_path).read_text(encoding="utf-8")

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        self.channel.close()
        self.admin_channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def running_server(
    *arguments: str, ready: bool = True, command: Sequence[str] = (), built_in: bool = False
) -> Iterator[RunningServer]:
    """`mlxrpc serve` with an admin port, JSON logs and no lame duck, and whatever else the test asks for.

    The noise model where the test names none, unless it wants the built-in one.
    """
    if not built_in and not {"--model", "--config"} & set(arguments):
        arguments = ("--model", f"{noise_model.NAME}={noise_model.folder()}", *arguments)
    command = command or (sys.executable, "-m", "mlxrpc_server")
    defaults = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json", "--lame-duck", "0")
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen(
            [*command, *defaults, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        server = None
        try:
            server = RunningServer(process, log.name)
            if ready:
                server.wait_ready()
            yield server
        finally:
            if server is not None:
                server.close()
            elif process.poll() is None:
                process.kill()
                process.wait()


def until(condition: Any, what: str, seconds: float = 60.0) -> None:
    """For facts that nothing announces, such as a process's end: asks again and again, within a bound."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
