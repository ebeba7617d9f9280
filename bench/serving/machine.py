"""What a run ran on and with: lines for the head of its report."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from serving.contenders.smg import Smg

PACKAGES = ("mlx", "mlx-lm", "grpcio", "uvloop", "protobuf", "msgspec", "transformers", "tokenizers")


def about(smg: Smg | None) -> list[str]:
    lines = [
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC, mlxrpc at {commit()}",
        f"{platform.system()} on {processor()}, {os.cpu_count()} cores shared by clients and servers; {gpu()}",
        f"Python {platform.python_version()}, " + ", ".join(version(package) for package in PACKAGES),
        "one server up at a time, in turns; the same prompts, arrivals and parameters for all: temperature 0.7, top-p 0.9, end-of-sequence out of reach",
    ]
    return [*lines, f"smg-grpc-servicer in an environment of its own: {smg_versions(smg)}"] if smg else lines


def version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"{package} (unknown)"


def smg_versions(smg: Smg) -> str:
    program = (
        "import importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in "
        "('smg-grpc-servicer', 'mlx-lm', 'mlx', 'grpcio', 'transformers')))"
    )
    environment = {**os.environ, **smg.environment()}
    return output([smg.python, "-c", program], environment) or "versions unknown"


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def gpu() -> str:
    if (tool := shutil.which("nvidia-smi")) is None:
        return "no NVIDIA GPU"
    return output([tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]).replace("\n", "; ")


def commit() -> str:
    """With a plus where files that git knows have changed since."""
    if (tool := shutil.which("git")) is None:
        return "an unknown commit"
    name = output([tool, "rev-parse", "--short=9", "HEAD"])
    changed = output([tool, "status", "--porcelain", "--untracked-files=no"])
    return (name or "an unknown commit") + ("+" if changed else "")


def output(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Empty where the command does not work."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout.strip() if done.returncode == 0 else ""
