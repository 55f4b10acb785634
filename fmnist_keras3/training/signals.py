"""Signals: the first SIGINT or SIGTERM asks for a stop, a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


class StopSignals:
    """A context in which signals set ``received`` ("SIGINT", "SIGTERM") and nothing else.

    An exception raised by a handler could fall between a step's dispatch and the assignment of its
    result, when the old state is gone already; so the loop looks at the flag between chunks.
    Handlers are installed in the main thread only, and put back afterwards.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
