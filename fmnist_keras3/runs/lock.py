"""One process a run directory: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import write_errors

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; raises UserError that names the process that has it already.

    Where the file system knows no locks, a warning says so.
    """
    path = folder / NAME
    with write_errors(path):
        folder.stat()  # filelock would make it anew
    # Not 0 seconds: a holder that ends just now removes the file. Without flock there is no soft
    # lock instead: one of another machine would outlive its holder.
    lock = FileLock(path, timeout=0.1, thread_local=False, fallback_to_soft=False)
    holder = "another process"
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError):
            holder = path.read_text(errors="replace") or holder
        raise UserError(
            f"{folder} is being written by {holder}. Wait until it ends or stop it "
            "(Ctrl-C there, or kill and its number), or give another --run_dir."
        ) from None
    except OSError as error:
        if error.filename is not None:  # the file cannot be opened
            with write_errors(path):
                raise
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}); see to it that no other "
            "process writes it.",
            stacklevel=3,
        )
    try:
        with contextlib.suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is let go: afterwards it may be another's
        lock.release()
