"""Each test runs in a process of its own, for what it tries is a change to the process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from typing import Any

import mlx.core as mx
import pytest

ON_LINUX_CPU = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)

pytestmark = pytest.mark.skipif(not ON_LINUX_CPU, reason="MLX brings its own BLAS on Linux CPUs alone")

needs_scipy_openblas = pytest.mark.skipif(
    importlib.util.find_spec("scipy_openblas32") is None, reason="scipy-openblas32 is not installed"
)

PRELUDE = """
import json
import mlx.core as mx
from mlxrpc_server.engine import blas

def libraries():
    memory = list(blas.regions())
    return {
        name: next(region.path.name for region in memory if blas.read(address) in region)
        for address, name in blas.slots_of_mlx().items()
    }
"""


def outcome(script: str) -> Any:
    """What the script left in `result`."""
    program = PRELUDE + textwrap.dedent(script) + "\nprint(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_scipy_openblas
def test_mlx_calls_openblas_after_the_installation() -> None:
    before, name, after, right = outcome("""
        before = libraries()
        name = blas.install()
        after = libraries()
        left = mx.arange(512 * 512).reshape(512, 512) % 11 - 5
        right = mx.arange(512 * 512).reshape(512, 512) % 13 - 6
        product = left.astype(mx.float32) @ right.astype(mx.float32)
        expected = sum(left[:, k, None] * right[None, k] for k in range(512))
        result = before, name, after, bool(mx.array_equal(product, expected.astype(mx.float32)))
    """)
    assert name.startswith("scipy-openblas32 0.")
    assert not any("openblas" in library for library in before.values())
    assert set(after) == {"cblas_sgemm", "cblas_dgemm", "cblas_cgemm"}
    assert set(after.values()) == {"libscipy_openblas.so"}
    assert right


@needs_scipy_openblas
def test_pointers_that_are_bound_already_are_replaced_as_well() -> None:
    before, after = outcome("""
        ones = mx.ones((8, 8))
        mx.eval(ones @ ones)
        before = libraries()
        blas.install()
        result = before, libraries()
    """)
    assert before["cblas_sgemm"].startswith("libblas")
    assert set(after.values()) == {"libscipy_openblas.so"}


def test_a_pointer_in_read_only_memory_is_replaced_and_stays_read_only() -> None:
    pointer, permissions = outcome("""
        import ctypes, mmap
        page = mmap.mmap(-1, mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ) == 0
        blas.write({address + 16: 4711})
        permissions = next(region.permissions for region in blas.regions() if address in region)
        result = blas.read(address + 16), permissions
    """)
    assert pointer == 4711
    assert permissions.startswith("r--")


def test_without_another_blas_mlx_stays_as_it_was() -> None:
    before, name, after = outcome("""
        before = [blas.read(address) for address in blas.slots_of_mlx()]
        name = blas.install(lambda: blas.opened("absent", "/nowhere/libopenblas.so"))
        result = before, name, [blas.read(address) for address in blas.slots_of_mlx()]
    """)
    assert name == "reference"
    assert after == before


def test_a_library_that_is_no_blas_is_refused() -> None:
    name, after = outcome("""
        name = blas.install(lambda: blas.opened("libc", "libc.so.6"))
        result = name, libraries()
    """)
    assert name == "reference"
    assert not any(library.startswith("libc.") for library in after.values())


def test_a_blas_with_wrong_products_is_taken_out_again() -> None:
    """getpid stands for it: it takes no arguments, and so multiplies nothing."""
    name, unchanged, right = outcome("""
        import ctypes
        getpid = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
        before = [blas.read(address) for address in blas.slots_of_mlx()]
        name = blas.install(lambda: blas.Blas("wrong", dict.fromkeys(blas.FUNCTIONS, getpid)))
        unchanged = [blas.read(address) for address in blas.slots_of_mlx()] == before
        ones = mx.ones((16, 16))
        result = name, unchanged, bool(mx.array_equal(ones @ ones, 16 * ones))
    """)
    assert name == "reference"
    assert unchanged
    assert right


@needs_scipy_openblas
def test_the_next_candidate_is_tried_where_the_first_is_absent() -> None:
    name = outcome("""
        result = blas.install(lambda: blas.opened("absent", "/nowhere/libopenblas.so"), blas.scipy_openblas)
    """)
    assert name.startswith("scipy-openblas32")
