"""The device that this process computes on, as far as MLX does not tell it in the same words everywhere."""

from __future__ import annotations

import os

import mlx.core as mx


def memory_bytes() -> int:
    """All of it, whoever uses it now. The backends name it differently, and the CPU's does not know."""
    facts = mx.device_info()
    told = facts.get("memory_size") or facts.get("total_memory")
    return int(told) if told else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
