"""Plans kept between processes: the second start on a file is that of a compiled model (docs/artifact.md).

Beside the kernels lies, for a model file, a target and a number of threads, a compiled model without the model itself: of an ONNX file
with the plan of the last first run, of a compiled model that cannot be used here as it is with plans of the same shapes. Its name is a
digest of the file's bytes, of qrt's own sources and of what `qrt tune` found, so that none of them can change unnoticed, and stands in the
file as well, in the place of a seal, so that no other file of this user's passes for it; it is trusted as far as the kernels beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qrt.artifact import CompiledModel, fits, pack_plans, plan_all, planned_shapes, read_compiled
from qrt.core.digest import digest_of, digest_of_file
from qrt.core.errors import InvalidInput, ModelError, OutputError, QrtError, UnsupportedOp
from qrt.core.files import write_whole
from qrt.core.record import record
from qrt.core.sections import Packed, check, damaged, read
from qrt.core.target import Target
from qrt.feeds import Shapes
from qrt.interface import Interface
from qrt.jit import host_target, tuned, wants_cuda
from qrt.jit.cache import cache_dir, own_digest
from qrt.runtime.team import checked_threads
from qrt.runtime.whole import Whole
from qrt.seal import is_sealed

if TYPE_CHECKING:
    from qrt.lower import Executable

__all__ = ["Kept", "kept_for", "open_compiled"]

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


@record
class _Seen:
    """A file's digest, its place on the disk, size and times when it was read, and whether a change since would have changed these."""

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
            return _Seen(digest_of_file(file.fileno()), _state(info), tells)
    except (OSError, ValueError):
        return None


def kept_for(source: object, num_threads: int | None, target: str | None) -> Kept | None:
    """Where plans of `source` are kept; None if it is no file, or none are to be kept: those for a GPU are not. Raises InvalidInput for a
    limit or a number of threads that is none."""
    threads = checked_threads(num_threads)
    if not isinstance(source, str | os.PathLike) or wants_cuda(target) or not _limit():
        return None
    path = Path(os.path.abspath(os.fsdecode(source)))
    seen = _see(path)
    return None if seen is None else Kept(path, seen, threads, host_target(target))


def open_compiled(
    path: str | os.PathLike[str], num_threads: int | None, target: str | None
) -> tuple[Interface, CompiledModel | Executable]:
    """A compiled model as a session holds it; `num_threads` None: as many as it was compiled for.

    Its plans are used if this user sealed it and it is for this target. Else they are made again from the model in it, and kept.
    Raises ModelError for a file that is damaged or none of qrt's, InvalidInput for threads and targets as `compile_model` does.
    """
    file, wanted = read(Path(path)), host_target(target)
    with damaged(file.where):
        threads = file.content["threads"]
        check(type(threads) is int and threads >= 1, "it does not say for how many threads it is")
        onnx = file[file.content["model"]]
    threads = threads if num_threads is None else checked_threads(num_threads)

    def model() -> tuple[Interface, Executable]:
        from qrt.api import open_model

        return open_model(onnx.tobytes(), num_threads=threads, target=target)

    if wants_cuda(target):
        return model()
    if fits(file, threads, wanted) and file.private and is_sealed(file.digest, file.seal):
        interface, plans = read_compiled(file, wanted)
        return interface, CompiledModel(plans, lambda: model()[1])
    place = _place(f"qrt {file.digest}", threads, wanted)  # and so never that of an ONNX file with the bytes that this digest is of
    if (kept := _open(place, threads, wanted)) is not None:
        return kept[0], CompiledModel(kept[1], lambda: model()[1])
    interface, executable = model()
    if _can_keep(place):
        # Shapes that the model does not take, or that ask for too much, for instance: runs of them will say so.
        with contextlib.suppress(MemoryError, OSError, QrtError):
            wholes = plan_all(interface, executable, planned_shapes(file, interface))
            _put(place, pack_plans(None, interface, wholes, threads, wanted))
    return interface, executable


def _place(digest: str, threads: int, target: Target) -> Path:
    """Where plans of a file are kept; `digest`: what stands for its bytes."""
    key = f"{digest} {own_digest().hex()} {target.arch} {target.isa} {threads} {tuned.state(target)}"
    return cache_dir() / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()}.qrt"


def _name(place: Path) -> bytes:
    """The digest that the file is called."""
    return bytes.fromhex(place.stem)


def _open(place: Path, threads: int, target: Target) -> tuple[Interface, dict[Shapes, Whole]] | None:
    """What is kept there, if anything is that is whole and ours."""
    if not os.path.exists(place):  # unlike the path's own, no error where the folder is closed to us
        return None
    try:
        file = read(place, links=False)
        if not file.private or file.seal != _name(place) or not fits(file, threads, target):
            return None
        found = read_compiled(file, target)
    except QrtError:
        return None  # damaged: it is written again
    with contextlib.suppress(OSError):
        os.utime(place)  # used now: others are thrown away before it
    return found


def _can_keep(place: Path) -> bool:
    """Whether anything can be kept there. What cannot be kept costs planning again next time, and nothing else."""
    if not _limit():
        return False
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.path.isdir(place.parent) and os.access(place.parent, os.W_OK | os.X_OK)


def _put(place: Path, packed: Packed) -> None:
    """Keeps plans in the place of what was kept there. Raises OutputError."""
    if packed.nbytes <= _limit():
        write_whole(place, lambda part: packed.write(part, lambda digest: _name(place), 0o600))
        _trim(place.parent)


class Kept:
    """The place of one model's plans."""

    def __init__(self, model: Path, seen: _Seen, threads: int, target: Target) -> None:
        self._model, self._seen, self._threads, self._target = model, seen, threads, target
        self._path = _place(seen.digest, threads, self._target)

    def open(self) -> tuple[Interface, CompiledModel] | None:
        """What was kept, ready to run, if anything was."""
        try:
            with self._model.open("rb") as file:
                # Holds the file, not its bytes: other shapes need it, when another one may have its name.
                held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        found = _open(self._path, self._threads, self._target)
        return None if found is None else (found[0], CompiledModel(found[1], lambda: self._load(held)))

    def _load(self, held: mmap.mmap) -> Executable:
        """What runs shapes that have no plan. Raises ModelError where the file is not what it was."""
        from qrt.api import open_model  # here, because it brings onnx, which planned models do without

        data = held[:] if held.size() == len(held) else b""  # what was cut off a file must not be touched
        if digest_of([data]) != self._seen.digest:
            raise ModelError(f"{self._model} was written over, and a session on it needs it for inputs of new shapes: make a new session")
        return open_model(data, num_threads=self._threads, target=self._target.isa)[1]

    def keep(self, interface: Interface, shapes: Shapes, whole: Whole) -> None:
        """Keeps a plan in place of what was kept, if it can be."""
        with contextlib.suppress(OSError, OutputError, UnsupportedOp):
            if self._is_unchanged() and _can_keep(self._path):
                _put(self._path, pack_plans(None, interface, {shapes: whole}, self._threads, self._target))

    def _is_unchanged(self) -> bool:
        """Whether the model that was loaded is the one whose digest was taken: so it is if the file is still that one."""
        if self._seen.tells:
            return _state(self._model.stat()) == self._seen.state
        now = _see(self._model)
        return now is not None and now.digest == self._seen.digest


def _trim(folder: Path) -> None:
    """Throws away what was not used for longest, until the rest is within the limit."""
    files = []
    for path in folder.glob("*.qrt"):
        with contextlib.suppress(FileNotFoundError):  # another process threw it away, or gave it its name
            info = path.stat()
            files.append((info.st_mtime, info.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > _limit():
            path.unlink(missing_ok=True)
