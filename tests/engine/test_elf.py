"""A small library, made here byte by byte, so that every kind of damage is cheap to try."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server.engine import elf

X86_64, AARCH64 = 62, 183
JUMP_SLOT = {X86_64: 7, AARCH64: 1026}
GLOB_DAT = {X86_64: 6, AARCH64: 1025}
FIRST_ADDRESS = 0x10000


def library(machine: int = X86_64) -> bytes:
    """It imports `taken` with two pointers, `other` with one, and defines `own`, to which it has a pointer as well."""
    names = b"\0taken\0own\0other\0"
    symbols = [(0, 0), (names.index(b"taken"), 0), (names.index(b"own"), 9), (names.index(b"other"), 0)]
    bound_at_once = [(0x500, GLOB_DAT[machine], 1)]
    lazy = [(0x600, JUMP_SLOT[machine], 1), (0x608, JUMP_SLOT[machine], 2), (0x610, JUMP_SLOT[machine], 3)]
    tables = {
        5: names,
        6: b"".join(struct.pack("<IBBHQQ", name, 0x12, 0, section, 0, 0) for name, section in symbols),
        7: b"".join(_relocation(*entry) for entry in bound_at_once),
        23: b"".join(_relocation(*entry) for entry in lazy),
    }
    sizes = {10: len(names), 8: len(tables[7]), 2: len(tables[23]), 20: 7}
    dynamic_at = 64 + 2 * 56
    end = dynamic_at + 16 * (len(tables) + len(sizes) + 1)
    addresses = {}
    for tag, table in tables.items():
        addresses[tag] = FIRST_ADDRESS + end
        end += len(table)
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in [*addresses.items(), *sizes.items(), (0, 0)])
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    segments = _segment(1, 0, end) + _segment(2, dynamic_at, len(dynamic))
    return header + segments + dynamic + b"".join(tables.values())


def _segment(kind: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 4, offset, FIRST_ADDRESS + offset, 0, size, size, 8)


def _relocation(place: int, kind: int, symbol: int) -> bytes:
    return struct.pack("<QQq", FIRST_ADDRESS + place, symbol << 32 | kind, 0)


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
def test_every_pointer_to_an_imported_function_is_found(machine: int) -> None:
    assert elf.pointers(library(machine), ["taken", "absent"]) == {"taken": [0x500, 0x600]}


def test_a_function_of_its_own_is_not_an_import() -> None:
    assert elf.pointers(library(), ["own"]) == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "64-bit"),
        (b"\xcf\xfa\xed\xfe" + bytes(200), "64-bit"),
        (b"\x7fELF\x01\x01" + bytes(200), "64-bit"),
        (library()[:18] + struct.pack("<H", 243) + library()[20:], "machine 243"),
    ],
)
def test_another_format_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(elf.Unreadable, match=reason):
        elf.pointers(data, ["taken"])


@given(st.dictionaries(st.integers(0, len(library()) - 8), st.binary(min_size=1, max_size=8), max_size=4), st.data())
def test_damage_is_survived(damage: dict[int, bytes], data: st.DataObject) -> None:
    damaged = bytearray(library())
    for place, new in damage.items():
        damaged[place : place + len(new)] = new
    kept = data.draw(st.integers(0, len(damaged)))
    try:
        found = elf.pointers(bytes(damaged[:kept]), ["taken", "own", "other"])
    except elf.Unreadable:
        return
    assert set(found) <= {"taken", "own", "other"}
