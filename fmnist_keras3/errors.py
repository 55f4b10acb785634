"""The errors that a user can mend, and the exit codes of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER = 2
EXIT_DIVERGED = 3


class UserError(Exception):
    """Input that cannot be used; the message says what was given, what is allowed, what to type.

    The command line prints the message without a traceback and exits with 2.
    """


class Diverged(Exception):
    """Training met a value that is not finite; the command line exits with 3."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed word, or an empty string."""
    match = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
