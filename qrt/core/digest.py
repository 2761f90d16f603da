"""The digest of large files, taken by several threads: the SHA-256 of the SHA-256s of their pieces of 1 MB, in order."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator

__all__ = ["DIGEST_BYTES", "digest_of", "digest_of_file"]

DIGEST_BYTES = hashlib.sha256().digest_size
_PIECE = 1 << 20
# Threads that read one file. Each takes a second for a gigabyte and a half, and memory gives several times that.
_MOST_THREADS = 4


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """In hex, of what `parts` are together."""
    whole = hashlib.sha256()
    for piece in _pieces(parts):
        whole.update(piece)
    return whole.hexdigest()


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The digest of each piece."""
    digest, room = hashlib.sha256(), _PIECE
    for part in parts:
        rest = memoryview(part)
        while rest:
            digest.update(rest[:room])
            taken, rest = min(room, len(rest)), rest[room:]
            room -= taken
            if not room:
                yield digest.digest()
                digest, room = hashlib.sha256(), _PIECE
    if room < _PIECE:
        yield digest.digest()


def digest_of_file(descriptor: int, start: int = 0) -> str:
    """In hex, of an open file from byte `start` on. Raises OSError."""
    count = -(-max(os.fstat(descriptor).st_size - start, 0) // _PIECE)
    found, failed = [b""] * count, list[OSError]()

    def work(first: int, threads: int) -> None:
        try:
            for index in range(first, count, threads):
                found[index] = hashlib.sha256(_read(descriptor, start + index * _PIECE)).digest()
        except OSError as error:
            failed.append(error)

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(min(cpus, count // 2, _MOST_THREADS), 1)
    others = [threading.Thread(target=work, args=(first, threads)) for first in range(1, threads)]
    for thread in others:
        thread.start()
    work(0, threads)
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
    return hashlib.sha256(b"".join(found)).hexdigest()


def _read(descriptor: int, start: int) -> bytes:
    """The piece that starts there."""
    data = os.pread(descriptor, _PIECE, start)
    while 0 < len(data) < _PIECE and (more := os.pread(descriptor, _PIECE - len(data), start + len(data))):
        data += more
    return data
