"""Signals: the first asks for a stop at the next boundary, a second one ends the work at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground.errors import Interrupted

if TYPE_CHECKING:
    from fmnist_keras3.engines.world import World

STOPS = ("SIGINT", "SIGTERM")
CHECKPOINT = "SIGUSR1"  # what SLURM sends before a time limit: sbatch --signal=SIGUSR1@90
ORDER = (None, CHECKPOINT, *STOPS)  # of many processes the one that heard the last of these decides


class StopSignals:
    """A context in which signals set ``received`` ("SIGINT", "SIGTERM") and nothing else.

    An exception raised by a handler could fall between a step's dispatch and the assignment of its
    result, when the old state is gone already; so the loop looks at the flag between chunks. A
    second signal raises Interrupted all the same, after which nothing is saved; a third one ends
    the process. SIGUSR1 sets ``checkpoint_asked``; in a SLURM job it is a stop, too, see `requeue`.
    Handlers are installed in the main thread only, and put back afterwards. Of many processes of a
    ``world`` each may get a signal, which holds for all from the next `agree` on.
    """

    def __init__(self, world: World | None = None) -> None:
        self.received: str | None = None
        self.checkpoint_asked = False
        self._world = world if world is not None and world.size > 1 else None
        self._heard: str | None = None  # here; by one of many processes, not yet agreed upon
        self._checkpoint_heard = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in (*STOPS, CHECKPOINT):
                if number := getattr(signal, name, None):  # Windows has no SIGUSR1
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == CHECKPOINT:
            self._checkpoint_heard = True
            if "SLURM_JOB_ID" in os.environ:
                self._heard = self._heard or name
        elif self._heard in STOPS:
            signal.signal(number, signal.SIG_DFL)
            raise Interrupted(name)
        else:
            self._heard = name
        if self._world is None:
            self._take(ORDER.index(self._heard), self._checkpoint_heard)

    def agree(self) -> None:
        """Let what one of many processes heard hold for all; called by all, between two chunks."""
        if self._world is not None:
            heard = ORDER.index(self._heard), int(self._checkpoint_heard)
            stop, asked = self._world.highest(*heard)
            self._take(stop, bool(asked))

    def _take(self, stop: int, checkpoint_asked: bool) -> None:
        self.received = ORDER[stop] if self.received is None or stop else self.received
        if checkpoint_asked:
            self.checkpoint_asked, self._checkpoint_heard = True, False


def requeue() -> None:
    """Put this SLURM job back into the queue; warns where SLURM refuses."""
    job = os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(
            ["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        warnings.warn(f"SLURM job {job} was not requeued: {reason}", stacklevel=2)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise Interrupted, so that files are closed, and be sure of it.

    Python drops what is raised while it calls a finalizer or a callback of the garbage collector,
    such as jaxlib's; then the signal is raised once more, a moment later. A compiled module that is
    being imported makes an ImportError of it, which becomes the interrupt again. Does nothing
    outside the main thread, and where somebody handles SIGTERM already.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not dropped.__code__:
            frame = frame.f_back
        if frame is None:
            raise Interrupted(signal.Signals(number).name)
        raise_later(number)  # what is raised in there is dropped, too

    def dropped(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted) and hasattr(signal, "setitimer"):
            raise_later(signal.Signals[unraisable.exc_value.signal])
        else:
            hook(unraisable)

    def raise_later(number: int) -> None:
        # A timer of the system, not a thread: whatever lock was held where this comes from.
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in numbers}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
    finally:
        sys.unraisablehook = hook
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
