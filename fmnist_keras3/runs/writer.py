"""Writes in the background: a thread, at most one job in flight, errors handed back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Runs one job at a time in a thread of its own; the loop goes on meanwhile.

    What a job raises is raised by the next call of `submit`, `check` or `wait`, once. The thread is
    a daemon: an end at once (a second signal) waits a moment only, see `abandon`.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.abandoned = False

    def submit(self, job: Callable[[], None]) -> None:
        """Start ``job`` when the one before has ended."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="fmnist-writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what a job that has ended raised."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the job in flight; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def abandon(self, seconds: float = 1.0) -> None:
        """Wait a moment for the job in flight; one that takes longer sees ``abandoned``."""
        if self._thread is not None:
            self._thread.join(seconds)
        self.abandoned = True
