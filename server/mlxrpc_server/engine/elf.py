"""Where a shared library keeps the pointers to the functions that it takes from other libraries.

Reads the file's bytes: 64-bit little-endian ELF for x86-64 and aarch64. Knows nothing of a running process.
"""

from __future__ import annotations

import mmap
import struct
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

Bytes = bytes | mmap.mmap

_MAGIC = b"\x7fELF\x02\x01"
"""64-bit, little-endian."""

_HEADER = struct.Struct("<16sHHIQQQIHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_LOAD, _DYNAMIC = 1, 2
_PLTRELSZ, _STRTAB, _SYMTAB, _RELA, _RELASZ, _STRSZ, _PLTREL, _JMPREL = 2, 5, 6, 7, 8, 10, 20, 23

_POINTERS = {62: {6, 7}, 183: {1025, 1026}}
"""By machine: the relocations GLOB_DAT and JUMP_SLOT, which both mean that a symbol's address is put there."""


class Unreadable(Exception):
    """Not a library of the kind that this module reads."""


@dataclass(frozen=True, slots=True)
class _Segment:
    type: int
    offset: int
    address: int
    size: int


def pointers(data: Bytes, names: Collection[str]) -> dict[str, list[int]]:
    """For each imported function of `names`: where its pointers lie, counted from the address of the file's first byte."""
    try:
        return _Library(data).pointers(names)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise Unreadable(f"not a library that can be read: {error}") from error


class _Library:
    def __init__(self, data: Bytes) -> None:
        self._data = data
        if data[: len(_MAGIC)] != _MAGIC:
            raise Unreadable("not a 64-bit little-endian ELF file")
        header = _HEADER.unpack_from(data)
        self._machine: int = header[2]
        if self._machine not in _POINTERS:
            raise Unreadable(f"machine {self._machine} is neither x86-64 nor aarch64")
        self._segments = list(self._read_segments(offset=header[5], size=header[9], count=header[10]))
        self._dynamic = dict(self._read_dynamic())

    def pointers(self, names: Collection[str]) -> dict[str, list[int]]:
        wanted = {name.encode() for name in names}
        found = defaultdict[str, list[int]](list)
        start = self._address_of_first_byte()
        for place, symbol in self._relocations():
            name = self._imported_name(symbol)
            if name in wanted:
                found[name.decode()].append(place - start)
        return dict(found)

    def _read_segments(self, *, offset: int, size: int, count: int) -> Iterator[_Segment]:
        for index in range(count):
            kind, _flags, at, address, _physical, length, _memory, _align = _SEGMENT.unpack_from(
                self._data, offset + index * size
            )
            yield _Segment(kind, at, address, length)

    def _read_dynamic(self) -> Iterator[tuple[int, int]]:
        (segment,) = (segment for segment in self._segments if segment.type == _DYNAMIC)
        for place in range(segment.offset, segment.offset + segment.size, _ENTRY.size):
            yield _ENTRY.unpack_from(self._data, place)

    def _address_of_first_byte(self) -> int:
        (address,) = (segment.address for segment in self._segments if segment.type == _LOAD and segment.offset == 0)
        return address

    def _relocations(self) -> Iterator[tuple[int, int]]:
        """Address and symbol number of each pointer to an imported symbol."""
        if self._dynamic.get(_PLTREL, _RELA) != _RELA:
            raise Unreadable("its relocations carry no addends")
        tables = [(_RELA, _RELASZ), (_JMPREL, _PLTRELSZ)]
        for table, size in tables:
            if table not in self._dynamic:
                continue
            start = self._in_file(self._dynamic[table])
            for place in range(start, start + self._dynamic[size], _RELOCATION.size):
                address, info, addend = _RELOCATION.unpack_from(self._data, place)
                if info & 0xFFFFFFFF in _POINTERS[self._machine] and addend == 0:
                    yield address, info >> 32

    def _imported_name(self, symbol: int) -> bytes:
        """Empty where the library defines the symbol itself."""
        place = self._in_file(self._dynamic[_SYMTAB]) + symbol * _SYMBOL.size
        name, _info, _other, section, _value, _size = _SYMBOL.unpack_from(self._data, place)
        if section:
            return b""
        names = self._in_file(self._dynamic[_STRTAB])
        end = self._data.find(b"\0", names + name, names + self._dynamic[_STRSZ])
        return self._data[names + name : end]

    def _in_file(self, address: int) -> int:
        for segment in self._segments:
            if segment.type == _LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise Unreadable(f"address {address:#x} lies outside the file")
