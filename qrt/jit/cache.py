"""Object code on disk: one file a kernel and target, written atomically, digest-checked, readable by its owner alone.

A file is MAGIC, the SHA-256 of its name and the object, the object. Anything that does not match is compiled again: the cache is never
trusted further than its digest and its owner, and another file of the same owner, under this name, is none.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import llvmlite

from qrt.core.errors import KernelCacheWarning, KernelError
from qrt.core.files import open_itself
from qrt.core.target import Target
from qrt.jit.kernel import Kernel

__all__ = ["cache_dir", "digest_of_sources", "fetch", "fetch_file", "key", "own_digest", "source_digest", "unwrapped", "wrapped"]

MAGIC = b"QRTOBJ02"
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_dir() -> Path:
    """The folder kernels are kept in: QRT_CACHE_DIR, else `qrt` in the user's cache folder; one that cannot be for users without a home."""
    if chosen := os.environ.get("QRT_CACHE_DIR"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrt"
    except RuntimeError:
        return Path(os.devnull) / "qrt"


# A kernel source's import from a family of kernels.
_FAMILY = re.compile(rb"^from qrt\.ops\.(\w+)[. ]", re.MULTILINE)


@functools.cache
def _digest_of(folder: str, pattern: str) -> bytes:
    """Digest of the files of a family that match, and of those of the families that they import from."""
    digest, families = hashlib.sha256(), [Path(folder)]
    for family in families:  # which grows on the way
        for path in sorted(family.glob(pattern)):
            source = path.read_bytes()
            digest.update(path.name.encode() + b"\0" + source)
            others = [family.parent / name.decode() for name in _FAMILY.findall(source)]
            families += [other for other in dict.fromkeys(others) if other not in families]
    return digest.digest()


def _file_of(module_name: str) -> Path:
    """The source of a module, found without importing the packages around it: a kernel that is on disk needs none of their code."""
    spec = None
    parts = module_name.split(".")
    for name in (".".join(parts[: n + 1]) for n in range(len(parts))):
        if name in sys.modules:
            spec = sys.modules[name].__spec__
        elif spec is not None:
            spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    spec = spec or importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        raise KernelError(f"kernel source {module_name} is not there: reinstall qrt")
    return Path(spec.origin)


@functools.cache
def source_digest(module_name: str) -> bytes:
    """Digest of everything that shapes a kernel's code: its module, that folder's other kernel sources and those of the families that they
    import from, the language, the compiler."""
    here = Path(__file__).parent
    return digest_of_sources(module_name, "cpu*.py", [*sorted((here / "lang").glob("*.py")), here / "compile.py"])


def digest_of_sources(module_name: str, others: str, tools: Sequence[Path]) -> bytes:
    """Digest of a kernel's module, of those beside it and of the families they import from that match the glob `others`, and of the files
    `tools`."""
    origin = _file_of(module_name)
    digest = hashlib.sha256(origin.read_bytes())
    digest.update(_digest_of(str(origin.parent), others))
    for path in tools:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()


def key(kernel: Kernel, target: Target) -> str:
    """The file name of a kernel's object code: changes with anything the code depends on."""
    digest = hashlib.sha256(MAGIC + source_digest(kernel.source.partition(":")[0]))
    parts = (kernel.name, kernel.source, kernel.params, kernel.record.descr, target.arch, target.cpu, target.features, llvmlite.__version__)
    digest.update(repr(parts).encode())
    return f"{kernel.name}-{digest.hexdigest()[:24]}.o"


def _read(path: Path) -> bytes | None:
    """The object in `path`, or None if there is none that is whole and ours."""
    try:
        with open_itself(path) as file:
            owner = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (owner.st_uid != os.getuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
                return None
            return unwrapped(file.read(), path.name)
    except OSError:
        return None


def wrapped(code: bytes, name: str = "") -> bytes:
    """Object code as it is kept under `name`: with a digest of both."""
    return MAGIC + _digest(code, name) + code


def unwrapped(data: bytes, name: str = "") -> bytes | None:
    """The object code in what `wrapped` gave; None if it is not whole, or another's."""
    code = data[len(MAGIC) + _DIGEST_BYTES :]
    return code if data[: len(MAGIC) + _DIGEST_BYTES] == MAGIC + _digest(code, name) else None


def _digest(code: bytes, name: str) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\0" if name else b"")
    digest.update(code)
    return digest.digest()


def _write(path: Path, code: bytes) -> None:
    import tempfile  # here: where kernels are on disk, nothing is written

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mkstemp: readable by the owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(wrapped(code, path.name))
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def fetch(kernel: Kernel, target: Target, compiler: Callable[[], bytes]) -> bytes:
    """The kernel's object code from disk, or from `compiler()` and then kept on disk.

    Two processes that compile the same kernel at once write the same bytes, and the rename lets either win. A folder that
    cannot be written costs a KernelCacheWarning and the time to compile again next time.
    """
    return fetch_file(key(kernel, target), compiler)


def fetch_file(name: str, compiler: Callable[[], bytes]) -> bytes:
    """The code kept under `name`, as `fetch` finds and keeps it."""
    path = cache_dir() / "kernels" / name
    if (code := _read(path)) is not None:
        return code
    code = compiler()
    _keep(path, code)
    return code


def _keep(path: Path, code: bytes) -> None:
    try:
        _write(path, code)
    except OSError as error:
        _warn(path.parent, error.strerror)


@functools.cache  # once a process: Python itself forgets what it has shown whenever somebody else catches warnings
def _warn(folder: Path, reason: str | None) -> None:
    warnings.warn(
        f"cannot keep compiled kernels in {folder} ({reason}): they are compiled again in every process; set QRT_CACHE_DIR to a folder "
        "that can be written",
        KernelCacheWarning,
        stacklevel=5,
    )


@functools.cache
def own_digest() -> bytes:
    """Digest of qrt's own sources and the compiler's version: what plans mean, and the code in them, may change with any of them."""
    digest = hashlib.sha256(llvmlite.__version__.encode())
    for package in ("qrt", "qrt.ops", "qrt.loaders"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in _sources(folder):
                with open(path, "rb", buffering=0) as file:  # one read: most of the time goes into opening files
                    digest.update(path[len(folder) :].encode() + b"\0" + file.read())
    return digest.digest()


def _sources(folder: str) -> Iterator[str]:
    """The paths of the modules in a folder and below, in order."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                yield entry.path
