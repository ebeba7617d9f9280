"""Threads whose stack is deep enough for native code that recurses as deep as a caller's text is nested.

Knows nothing of what runs there. llguidance follows references and rules by recursion, without a limit: 90 kB of JSON
schema overflow the usual 8 MB, and that ends the process.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

STACK_BYTES = 512 * 1024 * 1024
"""Reserved, not used: the longest texts that are let in need about a fifth of it."""

_starting = threading.Lock()


def deep_thread(name: str) -> ThreadPoolExecutor:
    """One thread for one thing at a time, already running: the size of a stack is chosen when its thread starts."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            pool.submit(int).result()
        finally:
            threading.stack_size(usual)
    return pool
