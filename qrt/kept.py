"""Plans of ONNX files, kept between processes: the second start on a file is that of a compiled model (docs/artifact.md).

Beside the kernels lies, for a model file, a target and a number of threads, a compiled model with the plan of the last first run, without
the model itself. Its name is a digest of the model's bytes, of qrt's own sources and of what `qrt tune` found, so that none of them can
change unnoticed; it is trusted as one from `qrt.compile`.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qrt.artifact import CompiledModel, open_plans, pack_plans, store
from qrt.core.errors import InvalidInput, ModelError, OutputError, UnsupportedOp
from qrt.core.target import Target
from qrt.feeds import Shapes
from qrt.interface import Interface
from qrt.jit import host_target, tuned, wants_cuda
from qrt.jit.cache import cache_dir, own_digest
from qrt.runtime.team import available_cpus
from qrt.runtime.whole import Whole

if TYPE_CHECKING:
    from qrt.lower import Executable

__all__ = ["Kept", "kept_for"]

LIMIT = "QRT_PLAN_CACHE_MB"
_DEFAULT_LIMIT = 1024
# Clocks of files stand still between two ticks of the system's, which are 10 ms apart at most.
_TICK = 0.02


def _limit() -> int:
    """Bytes that all kept plans may take together."""
    text = os.environ.get(LIMIT, str(_DEFAULT_LIMIT))
    if not text.isdecimal():
        raise InvalidInput(f"{LIMIT} is {text!r}: give megabytes, as in {_DEFAULT_LIMIT}, or 0 to keep no plans")
    return int(text) * 10**6


@dataclass(frozen=True)
class _Seen:
    """A file's SHA-256, its place on the disk, size and times when it was read, and whether a change since would have changed these."""

    digest: str
    state: tuple[int, ...]
    tells: bool


def _state(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _see(path: Path) -> _Seen | None:
    """None for what is no plain file, cannot be read, or is too large for its plan to be kept, which takes as much."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a named pipe would wait for a writer for ever
            return None
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if info.st_size > _limit():
                return None
            tells = time.time() - max(info.st_mtime, info.st_ctime) > _TICK
            return _Seen(hashlib.file_digest(file, "sha256").hexdigest(), _state(info), tells)
    except (OSError, ValueError):
        return None


def kept_for(source: object, num_threads: int | None, target: str | None) -> Kept | None:
    """Where plans of `source` are kept; None if it is no file, or none are to be kept: those for a GPU are not. Raises InvalidInput for a
    limit that is none."""
    if not isinstance(source, str | os.PathLike) or isinstance(num_threads, bool) or wants_cuda(target) or not _limit():
        return None
    path = Path(os.path.abspath(os.fsdecode(source)))
    seen = _see(path)
    threads = available_cpus() if num_threads is None else num_threads
    return None if seen is None else Kept(path, seen, threads, host_target(target))


class Kept:
    """The place of one model's plans."""

    def __init__(self, model: Path, seen: _Seen, threads: int, target: Target) -> None:
        self._model, self._seen, self._threads, self._target = model, seen, threads, target
        key = f"{seen.digest} {own_digest().hex()} {target.arch} {target.isa} {threads} {tuned.state(target)}"
        name = hashlib.sha256(key.encode()).hexdigest()
        self._path = cache_dir() / "plans" / f"{name}.qrt"

    def open(self) -> tuple[Interface, CompiledModel] | None:
        """What was kept, ready to run, if anything was."""
        if not self._path.exists():
            return None
        try:
            with self._model.open("rb") as file:
                # Holds the file, not its bytes: other shapes need it, when another one may have its name.
                held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = open_plans(self._path, self._threads, self._target, lambda: self._load(held))
        except (ModelError, OSError, ValueError):
            return None  # damaged: it is written again
        with contextlib.suppress(OSError):
            os.utime(self._path)  # used now: others are thrown away before it
        return found

    def _load(self, held: mmap.mmap) -> Executable:
        """What runs shapes that have no plan. Raises ModelError where the file is not what it was."""
        from qrt.api import open_model  # here, because it brings onnx, which planned models do without

        data = held[:] if held.size() == len(held) else b""  # what was cut off a file must not be touched
        if hashlib.sha256(data).hexdigest() != self._seen.digest:
            raise ModelError(f"{self._model} was written over, and a session on it needs it for inputs of new shapes: make a new session")
        return open_model(data, num_threads=self._threads, target=self._target.isa)[1]

    def keep(self, interface: Interface, shapes: Shapes, whole: Whole) -> None:
        """Keeps a plan in place of what was kept. What cannot be kept costs planning again next time, and nothing else."""
        try:
            packed = pack_plans(None, interface, {shapes: whole}, self._threads, self._target)
            if packed.nbytes <= _limit() and self._is_unchanged():
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                store(self._path, packed, 0o077)
                _trim(self._path.parent)
        except (OSError, OutputError, UnsupportedOp):
            pass

    def _is_unchanged(self) -> bool:
        """Whether the model that was loaded is the one whose digest was taken: so it is if the file is still that one."""
        if self._seen.tells:
            return _state(self._model.stat()) == self._seen.state
        now = _see(self._model)
        return now is not None and now.digest == self._seen.digest


def _trim(folder: Path) -> None:
    """Throws away what was not used for longest, until the rest is within the limit."""
    files = sorted(((info.st_mtime, info.st_size, path) for path in folder.glob("*.qrt") if (info := path.stat())), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > _limit():
            path.unlink(missing_ok=True)
