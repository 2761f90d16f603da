"""Object code into memory without llvmlite, which takes 50 MB and as many milliseconds: x86-64 ELF, as the compiler writes it.

A kernel is code and constants that refer to one another, and to functions of the C library, by their distance (System V ABI, AMD64
supplement: R_X86_64_PC32 and R_X86_64_PLT32). Whatever else an object may hold is left to LLVM's linker: `link` says None.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import sys
from typing import NamedTuple

__all__ = ["link"]

_ELF64_LITTLE, _MACHINE_X86_64 = b"\x7fELF\x02\x01", 62
_PROGBITS, _SYMTAB, _RELA, _ALLOC = 1, 2, 4, 2
_UNDEFINED = 0
_PC32, _PLT32 = 2, 4
_PAGE = mmap.PAGESIZE
# jmp *[rip + 0]; the address follows: from here any function is within reach.
_JUMP = b"\xff\x25\0\0\0\0"


class _Section(NamedTuple):
    """Elf64_Shdr."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class _Symbol(NamedTuple):
    """Elf64_Sym."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


class _Foreign(Exception):
    """An object that is not of the kind read here."""


def link(code: bytes, symbol: str) -> int | None:
    """Where `symbol` of the object `code` stands in memory, for good; None if this is a job for LLVM."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith("linux"):
        return None
    try:
        image, entry = _Object(code).image(symbol)
    except (_Foreign, LookupError, StopIteration, struct.error, ValueError):
        return None
    start = _executable(image)
    return None if start is None else start + entry


class _Object:
    def __init__(self, code: bytes) -> None:
        if code[:6] != _ELF64_LITTLE or struct.unpack_from("<H", code, 18) != (_MACHINE_X86_64,):
            raise _Foreign
        self.code = code
        (table,) = struct.unpack_from("<Q", code, 40)
        size, count = struct.unpack_from("<HH", code, 58)
        self.sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", code, table + i * size)) for i in range(count)]
        symbols = next(section for section in self.sections if section.kind == _SYMTAB)
        self.symbols = [_Symbol(*row) for row in struct.iter_unpack("<IBBHQQ", self._bytes(symbols))]
        self._names = self._bytes(self.sections[symbols.link])

    def _bytes(self, section: _Section) -> bytes:
        return self.code[section.offset : section.offset + section.size]

    def _name(self, symbol: _Symbol) -> str:
        return self._names[symbol.name : self._names.index(b"\0", symbol.name)].decode()

    def image(self, entry: str) -> tuple[bytearray, int]:
        """The object as it is to stand in memory, wherever that is, and where in it `entry` is."""
        image, places = bytearray(), {}
        for index, section in enumerate(self.sections):
            if section.kind == _PROGBITS and section.flags & _ALLOC:
                if section.align > _PAGE:
                    raise _Foreign
                image += bytes(-len(image) % max(section.align, 1))
                places[index] = len(image)
                image += self._bytes(section)
        jumps: dict[str, int] = {}
        for relocations in self.sections:
            if relocations.kind != _RELA or relocations.info not in places:
                continue
            for offset, info, addend in struct.iter_unpack("<QQq", self._bytes(relocations)):
                symbol, kind = self.symbols[info >> 32], info & 0xFFFFFFFF
                if kind not in (_PC32, _PLT32):
                    raise _Foreign
                if symbol.section != _UNDEFINED:
                    target = places[symbol.section] + symbol.value
                elif kind == _PLT32:
                    target = self._jump(self._name(symbol), image, jumps)
                else:
                    raise _Foreign
                at = places[relocations.info] + offset
                struct.pack_into("<i", image, at, target + addend - at)
        start = next(s for s in self.symbols if s.section in places and self._name(s) == entry)
        return image, places[start.section] + start.value

    @staticmethod
    def _jump(name: str, image: bytearray, jumps: dict[str, int]) -> int:
        if name not in jumps:
            function = getattr(_library(), name, None)
            if function is None:
                raise _Foreign
            jumps[name] = len(image)
            image += _JUMP + struct.pack("<Q", ctypes.cast(function, ctypes.c_void_p).value)
        return jumps[name]


@functools.cache
def _library() -> ctypes.CDLL:
    """What this process has loaded, the C library included."""
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def _executable(image: bytearray) -> int | None:
    """The address of a copy that can be run and not written to. It is never unmapped: threads may be in it until the process ends."""
    library = _library()
    start = library.mmap(None, len(image), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start in (None, ctypes.c_void_p(-1).value):
        return None
    ctypes.memmove(start, bytes(image), len(image))
    if library.mprotect(start, len(image), mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        return None
    return int(start)
