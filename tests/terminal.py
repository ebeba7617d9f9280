"""A terminal with a command in front of it, as a person has one: what they type, and what they see."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator

PATIENCE = 30.0
"""Seconds; far above what any answer takes, so that only a failure meets it."""

# Takes the terminal as its own, so that Ctrl-C reaches it, and becomes the command.
TAKE_THE_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "mlxrpc", *sys.argv[1:]])
"""

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self._end = end
        self._unseen = b""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def until(self, text: str) -> str:
        """All that appears up to that text, and the text."""
        wanted, deadline = text.encode(), time.monotonic() + PATIENCE
        while wanted not in self._unseen:
            readable, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise AssertionError(f"no {text!r} within {PATIENCE} s, but {self._unseen!r}")
            self._unseen = (self._unseen + os.read(self._end, 65536)).replace(b"\r\n", b"\n")
        seen, _, self._unseen = self._unseen.partition(wanted)
        return (seen + wanted).decode()

    def left(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """`mlxrpc` with these arguments at a terminal of its own, without colours of the line editor."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"):
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE_THE_TERMINAL, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "utf-8", **environment},
        )
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            process.wait()
