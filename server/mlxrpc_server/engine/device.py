"""The device that this process computes on, as far as MLX does not tell it in the same words everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from mlxrpc_server.engine import blas

MEMORY_FACTS = Path("/proc/meminfo")
CONTAINER_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""The most that this container may take, and what it takes: cgroups in their second version, and in their first."""

PLANS = "MLX_CUDA_SDPA_CACHE_SIZE", "4096"
"""cuDNN's are dear, and MLX keeps only 256 by itself."""


def prepare() -> str:
    """Before anything is computed. Gives the name of the BLAS that MLX uses then; empty where it uses none of ours."""
    os.environ.setdefault(*PLANS)
    name = blas.install()
    if on_cpu():
        # Each compiled function costs seconds of g++ there, and saves nothing that can be measured.
        mx.disable_compile()
    return name


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def cores() -> int:
    """Of the CPU, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """All of it, whoever uses it now. The backends name it differently, and the CPU's does not know."""
    facts = mx.device_info()
    told = facts.get("memory_size") or facts.get("total_memory")
    return int(told) if told else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_cached(most: int) -> None:
    """Of what MLX keeps of memory that is not in use, so many bytes: those that were used last."""
    if mx.get_cache_memory() > most:
        before = mx.set_cache_limit(most)
        mx.eval(mx.zeros((1,)))  # MLX looks at its limit where it takes memory
        mx.set_cache_limit(before)


def free_bytes() -> int:
    """What a process on the CPU may still take: what the system has left, or this container, whichever is less."""
    left = [_read(limit) - _read(taken) for limit, taken in CONTAINER_LIMITS if _is_number(limit)]
    return max(0, min([_available(), *left]))


def _available() -> int:
    """As Linux estimates it, caches that can go included; all memory where nobody tells."""
    try:
        lines = MEMORY_FACTS.read_text().splitlines()
    except OSError:
        return memory_bytes()
    facts = dict(line.split(":", 1) for line in lines)
    return 1024 * int(facts["MemAvailable"].split()[0])


def _is_number(path: Path) -> bool:
    """A file that is absent, or says `max`, is no limit."""
    try:
        return path.read_text().strip().isdigit()
    except OSError:
        return False


def _read(path: Path) -> int:
    return int(path.read_text())
