"""Results on disk: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from qrt.core.errors import OutputError

__all__ = ["check_writable", "write_whole"]


def check_writable(path: Path) -> None:
    """Raises OutputError if a file `path` could not be written: better before the long work than after it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}; make it first")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder may not be written to; choose another")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` write to a file beside `path`, which takes its place once it is whole. Raises OutputError."""
    path = path.absolute()
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose a folder that exists and can be written") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
