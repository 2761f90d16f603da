"""Results on disk: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from qrt.core.errors import OutputError

__all__ = ["check_writable", "write_whole"]


def check_writable(path: Path) -> None:
    """Raises OutputError if a file `path` could not be written: better before the long work than after it."""
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {path}: there is no folder {folder}; make it first")
    _check_replaceable(path)
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder may not be written to; choose another")


def _check_replaceable(path: Path) -> None:
    """Raises OutputError unless `path` names a file or nothing: a device or a pipe that a file replaces is gone for all."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another name") from error
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is a {'folder' if stat.S_ISDIR(mode) else 'device or a pipe'}; give the name of a file")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` write to a file beside `path`, which takes its place once it is whole. Raises OutputError."""
    path = path.absolute()
    _check_replaceable(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix[-16:]}")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose a folder that exists and can be written") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
