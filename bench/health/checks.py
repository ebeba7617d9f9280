"""How long a health check takes while the server does something else. The load comes from processes of its own."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrpc.v1 import admin_pb2, admin_pb2_grpc
from mlxrpc_server import demo
from serving import machine
from serving.table import table

READINESS = "mlxrpc.v1.InferenceService"

BUILT_IN, SILENT = "built-in", "silent"
CHECKS = 500
SECONDS = 4.0
"""For one row of the table, whichever comes first."""

HEADER = ("while", "", "p50 ms", "p99", "worst", "p50 against idle", "checks")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, server(silent_model(Path(scratch) / "silent")) as addresses:
        print("\n".join(f"- {line}" for line in machine.about(None)[:3]))
        print("\nHealth checks, one after the other\n")
        print(table(HEADER, rows(*addresses)))


@contextlib.contextmanager
def server(silent: Path) -> Iterator[tuple[str, str]]:
    """A server of its own: the built-in model, and one whose load never ends. Gives its addresses."""
    models = (f"{BUILT_IN}={demo.source()}", f"{SILENT}={silent}")
    command = [sys.executable, "-m", "mlxrpc_server", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    for model in models:
        command += ["--model", model]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--lame-duck", "0"], stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
        )
        try:
            lines = iter(process.stdout or ())
            listen, admin = (next(lines).split()[-1] for _ in range(2))
            wait_ready(listen)
            yield listen, admin
        finally:
            process.terminate()
            process.wait()


def wait_ready(address: str) -> None:
    request = health_pb2.HealthCheckRequest(service=READINESS)
    with grpc.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # the type stubs know no methods of it
        for response in health.Watch(request, timeout=120, wait_for_ready=True):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return


def silent_model(folder: Path) -> Path:
    """The built-in one with a second weights file, a pipe into which nobody writes."""
    folder.mkdir()
    for file in demo.source().iterdir():
        (folder / file.name).symlink_to(file)
    os.mkfifo(folder / "model-2.safetensors")
    return folder


def rows(address: str, admin: str) -> Iterator[tuple[str, ...]]:
    whiles: dict[str, AbstractContextManager[None]] = {
        "idle": contextlib.nullcontext(),
        "a model is being loaded, and the load hangs": pending_load(admin),
        "prompts of 100,000 characters are tokenized": load("prompts", address),
        "32 streams run": load("streams", address),
    }
    idle = None
    for name, busy in whiles.items():
        with busy:
            times = probe(address)
        median = statistics.median(times)
        idle = idle or median
        worst = quantile(times, 0.99), times[-1]
        yield (
            name,
            "",
            *(f"{1000 * seconds:.2f}" for seconds in (median, *worst)),
            f"{median / idle:.1f}",
            str(len(times)),
        )


def probe(address: str) -> list[float]:
    """Sorted; the first few, which connect and warm up, are left out."""
    times: list[float] = []
    with grpc.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        end = time.perf_counter() + SECONDS
        while len(times) < CHECKS + 5 and time.perf_counter() < end:
            begun = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            times.append(time.perf_counter() - begun)
    return sorted(times[5:])


def quantile(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(part * len(times)))]


@contextlib.contextmanager
def pending_load(admin: str) -> Iterator[None]:
    """Of the model whose weights never come; given up in the end."""
    with grpc.insecure_channel(admin) as channel:
        stub = admin_pb2_grpc.ModelAdminServiceStub(channel)
        loading = stub.LoadModel(admin_pb2.LoadModelRequest(model=SILENT))
        next(event for event in loading if event.progress.phase == admin_pb2.LOAD_PHASE_WEIGHTS)
        try:
            yield
        finally:
            loading.cancel()
            stub.UnloadModel(admin_pb2.UnloadModelRequest(model=SILENT, force=True))


@contextlib.contextmanager
def load(kind: str, address: str) -> Iterator[None]:
    command = [sys.executable, str(Path(__file__).with_name("busy.py")), kind, address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        next(iter(process.stdout or ()))
        yield
    finally:
        process.kill()
        process.communicate()
