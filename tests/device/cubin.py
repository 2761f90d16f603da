"""What a cubin says of its kernel to the driver: an ELF file with a section of attributes for each, "EIATTR" in NVIDIA's tools."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_PARAMETER_BYTES, _PARAMETER, _MAX_THREADS, _REGISTERS = 0x19, 0x17, 0x05, 0x2F
_LONG = 4  # the form of an attribute whose bytes follow; else there are two, in its header


@dataclass
class Described:
    """`parameters`: offset and bytes of each, by its number; `nbytes`: of all; `threads`: of a block, at most; `registers`: of a thread."""

    parameters: dict[int, tuple[int, int]] = field(default_factory=dict)
    nbytes: int = 0
    threads: tuple[int, int, int] = (0, 0, 0)
    registers: int = 0


def described(code: bytes, symbol: str) -> Described:
    """The kernel `symbol` of the cubin `code`."""
    found, sections = Described(), _sections(code)
    for kind, value in _attributes(sections[f".nv.info.{symbol}"]):
        if kind == _PARAMETER:
            _, number, offset, packed = struct.unpack("<IHHI", value)
            found.parameters[number] = offset, packed >> 18
        elif kind == _PARAMETER_BYTES:
            found.nbytes = int.from_bytes(value, "little")
        elif kind == _MAX_THREADS:
            found.threads = struct.unpack("<3I", value)
    found.registers = max(struct.unpack("<II", value)[1] for kind, value in _attributes(sections[".nv.info"]) if kind == _REGISTERS)
    return found


def _sections(code: bytes) -> dict[str, bytes]:
    """Sections that hold something, by name."""
    (start,), (count, names) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<HH", code, 60)
    headers = [struct.unpack_from("<IIQQQQ", code, start + 64 * index) for index in range(count)]
    texts = headers[names][4]
    return {code[texts + name : code.index(b"\0", texts + name)].decode(): code[at : at + size] for name, _, _, _, at, size in headers}


def _attributes(section: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(section):
        form, kind, size = struct.unpack_from("<BBH", section, at)
        data = section[at + 4 : at + 4 + size] if form == _LONG else struct.pack("<H", size)
        found.append((kind, data))
        at += 4 + (size if form == _LONG else 0)
    return found
