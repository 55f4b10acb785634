"""Files that appear whole or not at all; what the file system refuses becomes one clear message."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.[^.]*)?")
_CURES = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Make it writable",
    errno.EPERM: "Make it writable",
    errno.ENOENT: "Its folder is gone: was it moved or deleted",
    errno.ENOTDIR: "A file is where a folder should be: move it away",
    errno.EEXIST: "A file is where a folder should be: move it away",
    errno.EISDIR: "A folder is where the file should be: move it away",
    errno.ENOTEMPTY: "A folder is where the file should be: move it away",
}


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that says what cannot be written, and why."""
    try:
        yield
    except OSError as error:
        cure = _CURES.get(error.errno or 0)
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}." + f" {cure}." * bool(cure)
        ) from error


def temporary(path: Path) -> Path:
    """Return a new name beside ``path`` that keeps the suffix, by which libraries choose a format.

    Not of `tempfile`: its files are readable by their owner only, and caches are shared.
    """
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and is removed on failure.

    Raises UserError where the file system refuses.
    """
    beside = temporary(path)
    try:
        with write_errors(path):
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file atomically; raises UserError where the file system refuses."""
    with atomic(path) as beside:
        beside.write_bytes(content)


def save(path: Path, content: bytes) -> None:
    """Write a file atomically, and make its folder if need be."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically; floats keep every bit."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the JSON value in ``path``, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def release(mapping: mmap.mmap | None) -> None:
    """Let go of what was read of a mapped file; it is read again when it is needed."""
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def sync_directory(path: Path) -> None:
    """Make the names in the folder ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed left half written in ``folder``."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, as far as the file system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
