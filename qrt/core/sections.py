"""A file of binary sections behind a JSON header: memory-mapped, and nothing in it believed before it is checked.

8 bytes   the magic, which says the version
32 bytes  digest of everything after the seal (qrt/core/digest.py)
32 bytes  the seal, by which the file's maker is known, or zeros
8 bytes   length of the header, little-endian
header    JSON in UTF-8: {"sections": [[offset, nbytes], …], "content": …}, offsets counted from the first multiple of 64 after it
sections  each at a multiple of 64, with at least 64 bytes of zeros after it
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrt.core.digest import DIGEST_BYTES, digest_of, digest_of_file
from qrt.core.errors import ModelError
from qrt.core.files import open_itself

__all__ = ["Packed", "Piece", "Sections", "check", "damaged", "pack", "read"]

MAGIC = b"QRTMDL04"
SEAL_BYTES = 32
_SEAL = len(MAGIC) + DIGEST_BYTES
_PREFIX = _SEAL + SEAL_BYTES
_HEAD = _PREFIX + 8
_ALIGNMENT = 64
_SLACK = 64
_MAX_HEADER = 64 << 20

Bytes = npt.NDArray[np.uint8]


def check(sound: bool, what: str) -> None:
    """Raises ValueError, which `damaged` turns into a ModelError that names the file."""
    if not sound:
        raise ValueError(what)


@contextmanager
def damaged(where: str) -> Iterator[None]:
    """Around code that reads what a file says: whatever does not fit is a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is damaged ({error}); compile the model again") from error


def _up(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


Piece = bytes | memoryview


class Packed:
    """A file before it is written: what follows its digest in pieces, which may be gigabytes that need no copy."""

    def __init__(self, body: Sequence[Piece]) -> None:
        self._body = body

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return _PREFIX + sum(map(len, self._body))

    @cached_property
    def digest(self) -> str:
        """In hex."""
        return digest_of(self._body)

    def write(self, path: Path, seal: Callable[[str], bytes] = lambda digest: bytes(SEAL_BYTES), mode: int = 0o644) -> None:
        """`seal`: gives the seal for a digest. `mode`: the rights of a new file, at most and from the first byte on: nobody who may not
        write it later has it open for that. Raises OSError, and what `seal` does."""
        hashing = threading.Thread(target=lambda: self.digest)  # beside the system's work, of which there is as much
        hashing.start()
        try:
            with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(MAGIC + bytes(DIGEST_BYTES + SEAL_BYTES))
                file.writelines(self._body)
                hashing.join()
                file.seek(len(MAGIC))
                file.write(bytes.fromhex(self.digest) + seal(self.digest))
        finally:
            hashing.join()


def pack(content: dict[str, Any], sections: Sequence[Piece]) -> Packed:
    """The file of `content` (plain JSON data) and `sections`. The same arguments give the same bytes."""
    table, end = [], 0
    for data in sections:
        table.append([end, len(data)])
        end = _up(end + len(data) + _SLACK)
    header = json.dumps({"sections": table, "content": content}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    base = _up(_HEAD + len(header))
    body: list[Piece] = [len(header).to_bytes(8, "little"), header, bytes(base - _HEAD - len(header))]
    for data in sections:
        body += [data, bytes(_up(len(data) + _SLACK) - len(data))]
    return Packed(body)


class Sections:
    """A file that was read: its `content` (not checked, and only to be touched within `damaged`), its sections, its `digest` in hex.

    `digest`: of `data`, as hex. `seal`: what it was sealed with. `private`: only its owner, who is the user or root, can have written it.
    """

    def __init__(self, where: str, data: Bytes, digest: str, private: bool) -> None:
        self.where, self.digest, self.private = where, digest, private
        with damaged(where):
            check(data.size >= _HEAD, "it is cut off")
            check(data[: len(MAGIC)].tobytes() == MAGIC, "it is no compiled model, or one of another version of qrt")
            check(data[len(MAGIC) : _SEAL].tobytes().hex() == self.digest, "its digest does not match")
            self.seal = data[_SEAL:_PREFIX].tobytes()
            length = int.from_bytes(data[_PREFIX:_HEAD].tobytes(), "little")
            check(length <= min(_MAX_HEADER, data.size - _HEAD), "its header is longer than the file")
            header = json.loads(data[_HEAD : _HEAD + length].tobytes().decode())
            base = _up(_HEAD + length)
            for offset, nbytes in header["sections"]:
                check(type(offset) is int and type(nbytes) is int and offset >= 0 and nbytes >= 0, "a section has no place")
                check(offset % _ALIGNMENT == 0 and base + offset + nbytes + _SLACK <= data.size, "a section lies outside of it")
            self._table: list[tuple[int, int]] = [(base + offset, nbytes) for offset, nbytes in header["sections"]]
            self.content: dict[str, Any] = header["content"]
        self._data = data

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Bytes:
        """The bytes of a section, read-only, where they lie in the file."""
        check(type(index) is int and 0 <= index < len(self._table), "a section is missing")
        start, nbytes = self._table[index]
        return self._data[start : start + nbytes]

    def words(self, index: int, columns: int) -> npt.NDArray[np.int64]:
        """A section of int64, as rows of `columns`."""
        data = self[index]
        check(data.size % (8 * columns) == 0, "a table has a broken row")
        return data.view("<i8").astype(np.int64).reshape(-1, columns)


def read(path: Path, links: bool = True) -> Sections:
    """The file at `path`, mapped into memory. Raises ModelError for anything but a whole, sound one; `links`: whether it may be a link."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a named pipe would wait for a writer for ever
            raise ModelError(f"{path} is not a file; give the path of a compiled model")
        with path.open("rb") if links else open_itself(path) as file:
            info = os.fstat(file.fileno())
            private = not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (not hasattr(os, "getuid") or info.st_uid in (os.getuid(), 0))
            data = np.asarray(np.memmap(file, np.uint8, "r")) if info.st_size else np.zeros(0, np.uint8)
            # Read for this and not mapped: what nobody uses of the file is to take no memory.
            digest = digest_of_file(file.fileno(), _PREFIX)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; give the path of a compiled model") from error
    return Sections(str(path), data, digest, private)
