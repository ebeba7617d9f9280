"""The built-in model: where its folder is, made on first use. Knows not how it is made, nor who serves it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SCRIPT = Path(__file__).with_name("make.py")


def source() -> Path:
    """The folder of the ready model. The first call on a machine runs a process: keep it off the event loop.

    Any number of processes may call this at once: each makes its own, and the first to finish stays.
    """
    digest = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:16]
    ready = cache_folder() / f"demo-{digest}"
    if not ready.is_dir():
        make_into(ready)
    return ready


def cache_folder() -> Path:
    """The user's own cache: XDG_CACHE_HOME where it is set and absolute, else the platform's."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():
        return chosen / "mlxrpc"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mlxrpc"


def make_into(ready: Path) -> None:
    """Make the model beside its place and rename it there: a folder that can be seen is complete."""
    ready.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{ready.name}-", dir=ready.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "model"
        # A process of its own, for this one may be the server, which evaluates no array. By its path, so that
        # it runs however this package was found; -P keeps its neighbours here from hiding other modules.
        subprocess.run([sys.executable, "-P", str(SCRIPT), str(made)], stdin=subprocess.DEVNULL, check=True)
        try:
            made.rename(ready)
        except OSError:
            if not ready.is_dir():
                raise
