"""The errors that a user can mend, and the exit codes of the command line."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

EXIT_USER = 2
EXIT_DIVERGED = 3


class UserError(Exception):
    """Input that cannot be used; the message says what was given, what is allowed, what to type.

    The command line prints the message without a traceback and exits with 2.
    """


class Diverged(Exception):
    """Training met a value that is not finite, at ``step``; the command line exits with 3."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(KeyboardInterrupt):
    """The work was ended at once by ``signal`` ("SIGINT", "SIGTERM").

    The command line exits as shells do for a signal, with 128 and its number.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal


def full_message(error: BaseException) -> str:
    """Return the message of ``error`` with its notes, each on lines of its own."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


TOLD = (UserError, Diverged, KeyboardInterrupt)


def told(error: BaseException) -> tuple[str, int]:
    """Return what the command line says of an error, one of `TOLD`, and its exit code."""
    if isinstance(error, UserError):
        return f"fmnist: {full_message(error)}", EXIT_USER
    if isinstance(error, Diverged):
        return f"fmnist: training diverged: {full_message(error)}", EXIT_DIVERGED
    name = getattr(error, "signal", "SIGINT")
    notes = [f"stopped at once by {name}", *getattr(error, "__notes__", [])]
    return "fmnist: " + "\n".join(notes), exit_code(name)


def exit_code(signal_name: str) -> int:
    """Return the exit code for an end by a signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signal.Signals[signal_name].value


CLOSE = 0.65  # likeness from which a word may be meant: "cvs" for "csv", not "tta" for "output"


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed word, or "" where none is close."""
    words = {_bare(word): word for word in allowed}
    match = difflib.get_close_matches(_bare(given), list(words), n=1, cutoff=CLOSE)
    return f" Did you mean {words[match[0]]!r}?" if match else ""


def _bare(word: str) -> str:
    # The dashes of two options would be likeness enough.
    return word.lstrip("-").replace("-", "_").lower()
