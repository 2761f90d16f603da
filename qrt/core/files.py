"""Files on disk: written whole or not at all, and read only from where they seem to lie."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from qrt.core.errors import OutputError

__all__ = ["check_writable", "open_itself", "write_together", "write_whole"]


def open_itself(path: Path) -> BinaryIO:
    """Opens a file to read it; raises OSError for a link, whose maker may not be who wrote the file. A named pipe is not waited for."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra))


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
    part = path.with_name(f".{os.urandom(8).hex()}.part{path.suffix[-16:]}")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose a folder that exists and can be written") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_together(path: Path, companion: str, write: Callable[[Path], object]) -> None:
    """As `write_whole`, for a file with another beside it, which it names. Both take their places once both are whole.

    `companion`: the other one's name. `write` gets a path in a folder of its own, and writes both there under their final names.
    """
    import shutil  # here, as it brings every format of archives, which a start from a compiled model can do without

    path = path.absolute()
    beside = path.with_name(companion)
    for place in (path, beside):
        _check_replaceable(place)
    folder = path.with_name(f".{os.urandom(8).hex()}.part")
    try:
        folder.mkdir(mode=0o700)
        write(folder / path.name)
        os.replace(folder / companion, beside)
        os.replace(folder / path.name, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose a folder that exists and can be written") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
