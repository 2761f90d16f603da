"""The digest of large files: the same in pieces, from files and by any number of threads."""

from __future__ import annotations

import hashlib
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qrt.core.digest import digest_of, digest_of_file

PIECE = 1 << 20
RNG = np.random.default_rng(0)


def wanted(data: bytes) -> str:
    """As docs/artifact.md has it."""
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()


@pytest.mark.parametrize("nbytes", [0, 1, 100, PIECE - 1, PIECE, PIECE + 1, 4 * PIECE, 5 * PIECE + 77])
def test_what_it_is_and_that_it_is_the_same_everywhere(nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RNG.bytes(nbytes)
    assert digest_of([data]) == wanted(data)
    cuts = [0, *sorted(int(at) for at in RNG.integers(0, nbytes + 1, 20)), nbytes]
    assert digest_of([data[a:b] if a % 2 else memoryview(data)[a:b] for a, b in pairwise(cuts)]) == wanted(data)
    (tmp_path / "file").write_bytes(b"head" + data)
    for cpus in (1, 2, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
        with open(tmp_path / "file", "rb") as file:
            assert digest_of_file(file.fileno(), 4) == wanted(data)


def test_reads_that_give_less_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, pread = RNG.bytes(2 * PIECE + 5), os.pread
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 300_000), at))
    with open(tmp_path / "file", "rb") as file:
        assert digest_of_file(file.fileno()) == wanted(data)


@pytest.mark.parametrize("bad", [0, 3])
def test_a_piece_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    def pread(fd: int, n: int, at: int) -> bytes:
        if at == bad * PIECE:
            raise OSError(5, "Input/output error")
        return b"x" * n

    (tmp_path / "file").write_bytes(bytes(4 * PIECE))
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    running = threading.active_count()
    with open(tmp_path / "file", "rb") as file, pytest.raises(OSError, match="Input/output error"):
        digest_of_file(file.fileno())
    assert threading.active_count() == running
