"""Plans of ONNX files, kept between processes: the second start on a file is that of a compiled model (docs/artifact.md).

Beside the kernels lies, for a model file, a target and a number of threads, a compiled model with the plan of the last first run. Its name
is a digest of the model's bytes, of qrt's own sources and of what `qrt tune` found, so that none of them can change unnoticed; it is
trusted as one from `qrt.compile`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from qrt.artifact import CompiledModel, open_compiled, pack_plans, store
from qrt.core.errors import InvalidInput, ModelError, OutputError, UnsupportedOp
from qrt.core.sections import Stored
from qrt.core.target import Target
from qrt.feeds import Shapes
from qrt.interface import Interface
from qrt.jit import host_target, tuned, wants_cuda
from qrt.jit.cache import cache_dir, own_digest
from qrt.runtime.team import available_cpus
from qrt.runtime.whole import Whole

__all__ = ["Kept", "kept_for"]

LIMIT = "QRT_PLAN_CACHE_MB"
_DEFAULT_LIMIT = 1024


def _limit() -> int:
    """Bytes that all kept plans may take together."""
    text = os.environ.get(LIMIT, str(_DEFAULT_LIMIT))
    if not text.isdecimal():
        raise InvalidInput(f"{LIMIT} is {text!r}: give megabytes, as in {_DEFAULT_LIMIT}, or 0 to keep no plans")
    return int(text) * 10**6


def _digest(path: Path) -> str | None:
    """The SHA-256 of a plain file; None for what is none, cannot be read, or is too large to be kept: twice, as it is and packed."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or 2 * info.st_size > _limit():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def kept_for(source: object, num_threads: int | None, target: str | None) -> Kept | None:
    """Where plans of `source` are kept; None if it is no file, or none are to be kept: those for a GPU are not. Raises InvalidInput for a
    limit that is none."""
    if not isinstance(source, str | os.PathLike) or isinstance(num_threads, bool) or wants_cuda(target) or not _limit():
        return None
    path = Path(os.path.abspath(os.fsdecode(source)))
    digest = _digest(path)
    threads = available_cpus() if num_threads is None else num_threads
    return None if digest is None else Kept(path, digest, threads, host_target(target))


class Kept:
    """The place of one model's plans."""

    def __init__(self, model: Path, digest: str, threads: int, target: Target) -> None:
        self._model, self._digest, self._threads, self._target = model, digest, threads, target
        key = f"{digest} {own_digest().hex()} {target.arch} {target.isa} {threads} {tuned.state(target)}"
        name = hashlib.sha256(key.encode()).hexdigest()
        self._path = cache_dir() / "plans" / f"{name}.qrt"

    def open(self) -> tuple[Interface, CompiledModel] | None:
        """What was kept, ready to run, if anything was."""
        if not self._path.exists():
            return None
        try:
            interface, model = open_compiled(self._path, self._threads, self._target.isa)
        except ModelError:
            return None  # damaged: it is written again
        if not isinstance(model, CompiledModel):
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path)  # used now: others are thrown away before it
        return interface, model

    def keep(self, interface: Interface, shapes: Shapes, whole: Whole) -> None:
        """Keeps a plan in place of what was kept. What cannot be kept costs planning again next time, and nothing else."""
        try:
            onnx = Stored(self._model, self._model.stat().st_size, self._digest)
            packed = pack_plans(onnx, interface, {shapes: whole}, self._threads, self._target)
            if packed.nbytes <= _limit():
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                store(self._path, packed, 0o077)
                _trim(self._path.parent)
        except (OSError, OutputError, UnsupportedOp):
            pass


def _trim(folder: Path) -> None:
    """Throws away what was not used for longest, until the rest is within the limit."""
    files = sorted(((info.st_mtime, info.st_size, path) for path in folder.glob("*.qrt") if (info := path.stat())), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > _limit():
            path.unlink(missing_ok=True)
