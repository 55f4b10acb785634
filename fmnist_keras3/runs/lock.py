"""One process a run directory: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import storing

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; raises UserError that names the process that has it already.

    Where the file system knows no locks, a warning says so.
    """
    path = folder / NAME
    file = _acquire(path)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is let go: whoever waits for this file tries again
        os.close(file)


def _acquire(path: Path) -> int:
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    while True:
        with storing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            os.close(file)
            raise UserError(
                f"{path.parent} is being written by {holder}. Wait until it ends or stop it "
                "(Ctrl-C there, or kill and its number), or give another --run_dir."
            ) from None
        except OSError as error:
            warnings.warn(
                f"{path.parent} cannot be locked ({error.strerror}); see to it that no other "
                "process writes it.",
                stacklevel=2,
            )
            return file
        # Its last holder may have removed the file between our opening and locking it.
        try:
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except OSError:
            pass
        os.close(file)
