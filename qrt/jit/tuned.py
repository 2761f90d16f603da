"""What `qrt tune` found on this machine: for the shapes that it met, which of the kernels that could compute them is fastest.

Choices lie beside the kernels (`tuned` in the kernel cache), a JSON file for each target and family of kernels: {"format": 1, "choices":
{shape: way}}. Its name holds a digest of all that decides how fast kernels are: target, processor, kernel sources, compiler. When one of
them changes, the file is found no more. No choice changes a result: choosers take one only if it is among the ways they know to be right.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

import llvmlite

from qrt.core.errors import KernelCacheWarning, OutputError
from qrt.core.files import write_whole
from qrt.core.target import Target
from qrt.jit.cache import cache_dir, source_digest
from qrt.jit.host import processor

__all__ = ["Ask", "asking", "choices", "choose", "state", "store"]

FORMAT = 1
MAX_BYTES = 1 << 20

# Answers a chooser in the place of the file: gets the node, the shape, the ways to compute it and the usual one.
Ask = Callable[[str, str, Sequence[str], str], str]
_ask: ContextVar[Ask | None] = ContextVar("qrt_tuned_ask", default=None)


def choose(family: str, target: Target, node: str, shape: str, ways: Sequence[str], usual: str) -> str:
    """Which of `ways` computes `shape`: what was measured, else `usual`. `family`: the module of the kernels."""
    ask = _ask.get()
    if ask is not None:
        return ask(node, shape, ways, usual)
    way = choices(family, target).get(shape, usual)
    return way if way in ways else usual


@contextlib.contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """Within it, and in this thread alone, choosers are answered by `ask`: for who measures."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def choices(family: str, target: Target) -> Mapping[str, str]:
    """What was measured: shape → way. Read once a process."""
    return _read_once(_folder(), family, target)


def store(family: str, target: Target, found: Mapping[str, str]) -> Path:
    """Keeps choices beside those for other shapes. Gives the file. Raises OutputError."""
    path = _path(_folder(), family, target)
    data = {"format": FORMAT, "choices": dict(sorted({**_read(path), **found}.items()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; set QRT_CACHE_DIR to a folder that can be written") from error
    write_whole(path, lambda part: _write(part, json.dumps(data, indent=1) + "\n"))
    _read_once.cache_clear()
    return path


def state(target: Target) -> str:
    """Changes with anything that was measured for `target`: plans are made from it. Empty where nothing was."""
    digest = hashlib.sha256()
    folder = _folder()
    paths = sorted(folder.glob(f"{target.isa}-*.json")) if os.path.isdir(folder) else []
    for path in paths:
        with contextlib.suppress(OSError):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest() if paths else ""


def _folder() -> Path:
    return cache_dir() / "tuned"


def _path(folder: Path, family: str, target: Target) -> Path:
    parts = (family, target.arch, target.isa, target.cpu, target.features, processor(), llvmlite.__version__, source_digest(family).hex())
    return folder / f"{target.isa}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.json"


@functools.cache
def _read_once(folder: Path, family: str, target: Target) -> dict[str, str]:
    return _read(_path(folder, family, target)) if os.path.isdir(folder) else {}


def _read(path: Path) -> dict[str, str]:
    """The choices in a file, if there is one, it is this user's alone to write, and it is as `store` writes it."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
                return _ignored(path, "others can write to it")
            text = file.read(MAX_BYTES + 1)
    except OSError:
        return {}
    if len(text) > MAX_BYTES:
        return _ignored(path, f"it has more than {MAX_BYTES:,} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return _ignored(path, "it is no JSON")
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("choices"), dict):
        return _ignored(path, "it has another format")
    found: dict[str, str] = data["choices"]
    if not all(isinstance(way, str) for way in found.values()):
        return _ignored(path, "a choice is none")
    return found


def _ignored(path: Path, reason: str) -> dict[str, str]:
    warnings.warn(f"{path} is ignored, as {reason}: run `qrt tune` again, or delete it", KernelCacheWarning, stacklevel=2)
    return {}


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
