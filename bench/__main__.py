"""`make bench`: what this machine does, in two tables. A minute at most, and nothing leaves the loopback interface."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc
import latency
import throughput
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrpc.v1 import admin_pb2, admin_pb2_grpc
from mlxrpc_server import demo

READINESS = "mlxrpc.v1.InferenceService"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, server(silent_model(Path(scratch) / "silent")) as addresses:
        print(about(addresses[1]))
        print("\nHealth checks, one after the other, while the server is busy otherwise; milliseconds")
        print(table(latency.HEADER, latency.rows(*addresses)))
        print("\nStreams of 64 tokens at once, greedy, prompts of 32 tokens")
        print(table(throughput.HEADER, throughput.rows(addresses[0])))


@contextlib.contextmanager
def server(silent: Path) -> Iterator[tuple[str, str]]:
    """A server of its own: the built-in model, and one whose load never ends. Gives its addresses."""
    models = (f"{latency.BUILT_IN}={demo.source()}", f"{latency.SILENT}={silent}")
    command = [sys.executable, "-m", "mlxrpc_server", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    for model in models:
        command += ["--model", model]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--lame-duck", "0"], stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
        )
        try:
            listen, admin = (process.stdout.readline().split()[-1] for _ in range(2))
            wait_ready(listen)
            yield listen, admin
        finally:
            process.terminate()
            process.wait()


def wait_ready(address: str) -> None:
    request = health_pb2.HealthCheckRequest(service=READINESS)
    with grpc.insecure_channel(address) as channel:
        for response in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=120, wait_for_ready=True):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return


def silent_model(folder: Path) -> Path:
    """The built-in one with a second weights file, a pipe into which nobody writes."""
    folder.mkdir()
    for file in demo.source().iterdir():
        (folder / file.name).symlink_to(file)
    os.mkfifo(folder / "model-2.safetensors")
    return folder


def about(admin: str) -> str:
    with grpc.insecure_channel(admin) as channel:
        info = admin_pb2_grpc.ModelAdminServiceStub(channel).GetServerInfo(admin_pb2.GetServerInfoRequest())
    device = info.device + (f" with {info.blas}" if info.blas else "")
    versions = {
        "mlxrpc": info.server.version,
        "mlx": info.mlx_version,
        "mlx-lm": info.mlx_lm_version,
        "grpcio": importlib.metadata.version("grpcio"),
        "Python": info.python_version,
    }
    today = dt.datetime.now(dt.UTC).date()
    return "\n".join(
        [
            f"{today}, {platform.system()} on {processor()}, {os.cpu_count()} cores shared by clients, server and worker",
            f"the built-in model on {device}; " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ]
    )


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


if __name__ == "__main__":
    main()
