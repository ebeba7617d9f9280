"""Gives MLX's build for Linux CPUs a fast BLAS.

Its wheel brings the reference BLAS, tens of times slower than OpenBLAS. MLX calls three of its functions, each
through a pointer that the dynamic linker filled: `install` puts OpenBLAS's functions there and checks their
products. Anything unexpected leaves MLX as it was. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlxrpc_server.engine import elf

log = logging.getLogger(__name__)

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""All that MLX takes of a BLAS itself. Its LAPACK, which no language model needs, keeps the reference one."""

REFERENCE = "reference"

THREADS = 1
"""OpenBLAS's threads wait for each other without sleeping: the second of two halves the largest products on an idle
machine, and makes small ones up to twenty times slower once anything else, such as another model, wants its core.
"""


class Unusable(Exception):
    """A BLAS cannot take the reference one's place; `str()` tells why."""


@dataclass(frozen=True, slots=True)
class Blas:
    name: str
    """With its version, and the kind of core whose kernels it chose."""
    addresses: Mapping[str, int]
    """Of the functions. Their library stays open: ctypes closes none."""


def install(*candidates: Callable[[], Blas]) -> str:
    """Puts the first BLAS that works in the reference one's place; gives the name of the one that MLX now uses.

    Right after `import mlx.core`, before another thread can use MLX. The name is empty where there is nothing to do:
    the process computes on a GPU, or the system is not Linux, where MLX takes the system's own BLAS.
    """
    if sys.platform != "linux" or mx.default_device() != mx.Device(mx.cpu):
        return ""
    try:
        blas = _installed(candidates or (scipy_openblas, system_openblas))
    except Unusable as error:
        log.warning(
            "matrix products run on MLX's reference BLAS, tens of times slower than OpenBLAS, which "
            "`pip install 'mlxrpc[cpu]'` brings: %s",
            error,
        )
        return REFERENCE
    log.info("matrix products run on %s", blas.name)
    return blas.name


def _installed(candidates: Sequence[Callable[[], Blas]]) -> Blas:
    slots = slots_of_mlx()
    reasons = []
    for candidate in candidates:
        try:
            blas = candidate()
            _replace(slots, blas)
        except Unusable as error:
            reasons.append(str(error))
        else:
            return blas
    raise Unusable("; ".join(reasons))


def scipy_openblas() -> Blas:
    """The one that our `cpu` extra brings: first, for it is the one that we test."""
    # Found and not imported: its import would let everybody see the library's names.
    package = importlib.util.find_spec("scipy_openblas32")
    if package is None or package.origin is None:
        raise Unusable("scipy-openblas32 is not installed")
    library = Path(package.origin).parent / "lib" / "libscipy_openblas.so"
    return opened("scipy-openblas32", str(library), "scipy_")


def system_openblas() -> Blas:
    return opened("system OpenBLAS", "libopenblas.so.0")


def opened(name: str, path: str, prefix: str = "") -> Blas:
    """The OpenBLAS at `path`, whose names all begin with `prefix`."""
    try:
        # Local: it has more names than those three, and must not take the place of anybody's.
        library = ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_NOW)
        get_config = library[f"{prefix}openblas_get_config"]
        get_corename = library[f"{prefix}openblas_get_corename"]
        set_num_threads = library[f"{prefix}openblas_set_num_threads"]
        addresses = {name: _address(library[prefix + name]) for name in FUNCTIONS}
    except (OSError, AttributeError) as error:
        raise Unusable(str(error)) from error
    get_config.restype = get_corename.restype = ctypes.c_char_p
    config = get_config().decode()
    if "USE64BITINT" in config:
        raise Unusable(f"{path} takes sizes of 64 bits, where MLX passes 32")
    set_num_threads(ctypes.c_int(THREADS))
    version = config.removeprefix("OpenBLAS").split()[0]
    return Blas(f"{name} {version} {get_corename().decode()}", addresses)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def slots_of_mlx() -> dict[int, str]:
    """Where in this process MLX's pointers to the functions lie: address -> function."""
    libmlx = Path(mx.__file__).resolve().parent / "lib" / "libmlx.so"
    mapped = [region for region in regions() if region.path == libmlx]
    starts = [region.start for region in mapped if region.offset == 0]
    if not starts:
        raise Unusable(f"{libmlx} is not in this process")
    slots = {min(starts) + distance: name for name, distances in _imports(libmlx).items() for distance in distances}
    if set(slots.values()) != set(FUNCTIONS):
        raise Unusable(f"this build of MLX takes {sorted(set(slots.values()))} from a BLAS, not {sorted(FUNCTIONS)}")
    _check(slots, mapped)
    return slots


def _imports(library: Path) -> dict[str, list[int]]:
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return elf.pointers(data, FUNCTIONS)
    except (OSError, elf.Unreadable) as error:
        raise Unusable(str(error)) from error


def _check(slots: Mapping[int, str], mapped: Sequence[Region]) -> None:
    """Each lies in MLX's memory and points to code, bound or not; a place wrongly found would hardly do both."""
    code = [region for region in regions() if "x" in region.permissions]
    for address, name in slots.items():
        if not any(address in region for region in mapped):
            raise Unusable(f"MLX's pointer to {name} is not in its own memory")
        if not any(read(address) in region for region in code):
            raise Unusable(f"MLX's pointer to {name} points to no code")


def _replace(slots: Mapping[int, str], blas: Blas) -> None:
    before = {address: read(address) for address in slots}
    write({address: blas.addresses[name] for address, name in slots.items()})
    if not _products_are_right():
        write(before)
        raise Unusable(f"{blas.name} gives wrong products")


def read(address: int) -> int:
    """The pointer that lies there."""
    return ctypes.c_void_p.from_address(address).value or 0


def write(pointers: Mapping[int, int]) -> None:
    """Puts each pointer at its address, in read-only memory too."""
    memory = list(regions())
    for address, pointer in pointers.items():
        (region,) = (region for region in memory if address in region)
        if "w" not in region.permissions:
            _protect(address, mmap.PROT_READ | mmap.PROT_WRITE)
        ctypes.c_void_p.from_address(address).value = pointer
        if "w" not in region.permissions:
            _protect(address, mmap.PROT_READ)


def _protect(address: int, protection: int) -> None:
    """For a library whose pointers the dynamic linker binds all at once, and then makes read-only."""
    page = address - address % mmap.PAGESIZE
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    if mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(protection)) != 0:
        raise Unusable(f"mprotect: {os.strerror(ctypes.get_errno())}")


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of this process's memory."""

    start: int
    end: int
    permissions: str
    offset: int
    path: Path

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


def regions() -> Iterator[Region]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions, offset, _device, _inode, *path = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        yield Region(start, end, permissions, int(offset, 16), Path(*path))


def _products_are_right() -> bool:
    """In small whole numbers, whose sums are exact in any order."""
    left = mx.arange(64 * 48).reshape(64, 48) % 7 - 3
    right = mx.arange(48 * 80).reshape(48, 80) % 5 - 2
    expected = (left[:, :, None] * right[None]).sum(axis=1)
    return all(
        bool(mx.array_equal(left.astype(dtype) @ right.astype(dtype), expected.astype(dtype)))
        for dtype in (mx.float32, mx.float64, mx.complex64)
    )
