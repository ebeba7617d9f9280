"""Gives MLX's build for Linux CPUs a fast BLAS.

Its wheel brings the reference BLAS, a hundred times slower than OpenBLAS at large products. MLX calls three of
its functions, through pointers that the dynamic linker fills: `install` puts OpenBLAS's functions there, checks
their products, and puts the old ones back where anything is not as expected. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlxrpc_server.engine import elf

log = logging.getLogger(__name__)

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""All that MLX 0.32 takes of a BLAS for its products; its LAPACK keeps the reference one."""

REFERENCE = "reference"

Open = Callable[[], "Blas"]


class Unusable(Exception):
    """This BLAS cannot take the reference one's place; `str()` tells why."""


@dataclass(frozen=True, slots=True)
class Blas:
    name: str
    library: ctypes.CDLL
    prefix: str = ""

    @classmethod
    def opened(cls, name: str, path: str, prefix: str = "") -> Blas:
        try:
            # Out of everybody's sight but ours: its other names must not replace any that are in use.
            library = ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_NOW)
            config_of = library[f"{prefix}openblas_get_config"]
        except (OSError, AttributeError) as error:
            raise Unusable(str(error)) from error
        config_of.restype = ctypes.c_char_p
        config = config_of().decode()
        if "USE64BITINT" in config:
            raise Unusable(f"{path} takes sizes of 64 bits, MLX passes 32")
        return cls(f"{name} {config.split()[1]}", library, prefix)

    def address(self, function: str) -> int:
        try:
            address = ctypes.cast(self.library[self.prefix + function], ctypes.c_void_p).value
        except AttributeError as error:
            raise Unusable(str(error)) from error
        assert address is not None
        return address

    def use_threads(self, count: int) -> None:
        self.library[f"{self.prefix}openblas_set_num_threads"](ctypes.c_int(count))


def scipy_openblas() -> Blas:
    """What `pip install 'mlxrpc[cpu]'` brings."""
    # Found and not imported: its import would open the library for everybody to see.
    package = importlib.util.find_spec("scipy_openblas32")
    if package is None or package.origin is None:
        raise Unusable("scipy-openblas32 is not installed")
    path = Path(package.origin).parent / "lib" / "libscipy_openblas.so"
    return Blas.opened("scipy-openblas32", str(path), "scipy_")


def system_openblas() -> Blas:
    """The distribution's."""
    return Blas.opened("system OpenBLAS", "libopenblas.so.0")


def install(*candidates: Open) -> str:
    """Puts the first BLAS that works in the reference one's place; gives the name of the one that MLX now uses.

    Call it after `import mlx.core` and before the first product, on a CPU. Where that is not Linux, MLX brings the
    system's own BLAS, and the name is empty.
    """
    if sys.platform != "linux":
        return ""
    reasons = []
    for candidate in candidates or (scipy_openblas, system_openblas):
        try:
            blas = candidate()
            _replace(blas)
        except Unusable as error:
            reasons.append(str(error))
            continue
        log.info("matrix products run on %s", blas.name)
        return blas.name
    log.warning(
        "matrix products run on MLX's reference BLAS, many times slower than OpenBLAS, which comes with "
        "`pip install 'mlxrpc[cpu]'`: %s",
        "; ".join(reasons),
    )
    return REFERENCE


def _replace(blas: Blas) -> None:
    addresses = {function: blas.address(function) for function in FUNCTIONS}
    before = {place: _pointer(place).value for places in pointers().values() for place in places}
    for function, places in pointers().items():
        for place in places:
            _write(place, addresses[function])
    if not _products_are_right():
        for place, address in before.items():
            _write(place, address or 0)
        raise Unusable(f"{blas.name} gives wrong products")
