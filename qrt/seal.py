"""Seals: what only those who have this user's key can put on a file. What a sealed file holds is trusted as the user's own code is.

A seal is the HMAC-SHA256 (RFC 2104), under the key, of two digests: the file's, and that of qrt's own sources and the compiler's version,
with which it ends.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import stat
from pathlib import Path

from qrt.core.errors import OutputError
from qrt.jit.cache import own_digest

__all__ = ["is_sealed", "key_file", "require_key", "seal"]

_KEY_BYTES = 32


def key_file() -> Path:
    """The file of the key: QRT_KEY_FILE, else `qrt/key` in the user's folder of settings."""
    if chosen := os.environ.get("QRT_KEY_FILE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qrt" / "key"


def _read(path: Path) -> bytes | None:
    """The key in `path`, or None if there is none that only the user, root and a group that they let read can know."""
    try:
        # Asked of the open file, as the name may stand for another one by the time it is read; a named pipe is not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            info = os.fstat(file.fileno())
            theirs = hasattr(os, "getuid") and (info.st_uid not in (os.getuid(), 0) or info.st_mode & (stat.S_IWGRP | stat.S_IRWXO))
            key = file.read(_KEY_BYTES + 1) if stat.S_ISREG(info.st_mode) and not theirs else b""
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None


def _make(path: Path) -> None:
    """A new key, unless another process has made one meanwhile: then that one stays. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(_KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def require_key() -> bytes:
    """The user's key, made at first use. Raises OutputError where it cannot be made or is not the user's alone."""
    try:
        path = key_file()
        if not path.exists():
            _make(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot make the key that compiled models are sealed with ({reason}); set QRT_KEY_FILE to where it may lie"
        ) from error
    if (key := _read(path)) is None:
        raise OutputError(
            f"{path} is no key to seal compiled models with: that is a file of {_KEY_BYTES} bytes, of this user or root, which its group "
            "cannot write and others cannot read; mend its rights, remove it, or set QRT_KEY_FILE to another"
        )
    return key


def seal(digest: str) -> bytes:
    """The seal of the file of this digest (hex). Raises OutputError as `require_key` does."""
    return _seal(require_key(), digest)


def is_sealed(digest: str, given: bytes) -> bool:
    """Whether `given` is the seal of the file of this digest (hex), under this user's key, by this very code."""
    try:
        key = _read(key_file())
    except RuntimeError:
        return False
    return key is not None and hmac.compare_digest(_seal(key, digest), given)


def _seal(key: bytes, digest: str) -> bytes:
    return hmac.digest(key, own_digest() + bytes.fromhex(digest), "sha256")
