"""`fmnist` in a process that is about to be stopped: it notes its moments, and writes slowly.

``python victim.py MOMENTS PAUSE WORDS...`` runs ``fmnist WORDS...``. Each line of the file MOMENTS
is a time (of the clock that all processes share) and a moment that begins (+) or ends (-). Before
each step of an atomic write the process sleeps up to PAUSE seconds, so that signals fall between
any two of them.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SLOW = ("fsync", "rename", "replace")


class Moments:
    """Appends to a file what the process is at; a line is one write, which no signal splits."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, sign: str, moment: str) -> None:
        os.write(self._file, f"{time.monotonic()} {sign}{moment}\n".encode())

    @contextlib.contextmanager
    def during(self, moment: str) -> Iterator[None]:
        self.note("+", moment)
        try:
            yield
        finally:
            self.note("-", moment)

    def wrap(self, owner: Any, name: str, moment: str) -> None:
        """Note the calls of ``owner.name``."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def noted(*args: Any, **options: Any) -> Any:
            with self.during(moment):
                return function(*args, **options)

        setattr(owner, name, noted)


class SlowSystem:
    """The module `os`, whose calls that make a write durable or visible wait before they do."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause

    def __getattr__(self, name: str) -> Any:
        if name in SLOW:
            self._pause()
        return getattr(os, name)


def slow_writes(pause: Callable[[], None]) -> None:
    """Let checkpoints, pointers and summaries be half written for a while."""
    from fmnist_keras3.ground import files
    from fmnist_keras3.runs import checkpoint

    def in_halves(file: Any, content: bytes) -> None:
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            file.write(part)
            file.flush()
            pause()

    class SlowFile:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: bytes) -> None:
            in_halves(self._file, content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    @contextlib.contextmanager
    def slow_open(*args: Any) -> Iterator[Any]:
        with builtins.open(*args) as file:
            yield SlowFile(file)

    quick = pathlib.Path.write_bytes

    def write_bytes(path: pathlib.Path, content: bytes) -> int:
        if not files._TEMPORARY.fullmatch(path.name):
            return quick(path, content)
        with builtins.open(path, "wb") as file:
            in_halves(file, content)
        return len(content)

    save = checkpoint.save

    def late_save(*args: Any) -> None:
        pause()  # the training goes on: what is written must be a copy
        save(*args)

    checkpoint.save = late_save
    files.os = checkpoint.os = SlowSystem(pause)  # type: ignore[attr-defined]
    checkpoint.open = slow_open  # type: ignore[attr-defined]
    pathlib.Path.write_bytes = write_bytes  # type: ignore[method-assign, assignment]


def slow_validation(loop: Any, pause: float) -> None:
    """Let a validation take longer than the few chunks of a small split."""
    evaluate = loop.evaluate

    def slow_evaluate(*args: Any, **options: Any) -> Any:
        time.sleep(5 * pause)
        found = evaluate(*args, **options)
        time.sleep(5 * pause)
        return found

    loop.evaluate = slow_evaluate


def main(path: str, pause: float, words: list[str]) -> int:
    """Run ``fmnist`` and return its exit code."""
    moments = Moments(path)
    moments.note("+", "starting")
    from fmnist_keras3 import cli, runtime

    import_keras = runtime.import_keras_alone

    def patch_after_import() -> None:
        # Not earlier: Keras is to be imported in the command's own way.
        import_keras()
        from fmnist_keras3.runs import checkpoint, checkpoints
        from fmnist_keras3.training import loop, signals

        if pause:
            # Not from the seed of anything: how long a write takes must not decide any bit.
            dice = random.Random()
            slow_writes(lambda: time.sleep(dice.uniform(0, pause)))
            slow_validation(loop, pause)
        moments.wrap(checkpoint, "save", "writing")
        for function in ("point", "retire"):
            moments.wrap(checkpoints, function, "writing")
        moments.wrap(loop, "evaluate", "validation")
        enter, leave = signals.StopSignals.__enter__, signals.StopSignals.__exit__

        def noted_enter(self: Any) -> Any:
            entered = enter(self)
            moments.note("+", "training")
            return entered

        def noted_leave(self: Any, *exception: object) -> None:
            moments.note("-", "training")
            moments.note("+", "finishing")
            leave(self, *exception)

        signals.StopSignals.__enter__ = noted_enter  # type: ignore[method-assign]
        signals.StopSignals.__exit__ = noted_leave  # type: ignore[method-assign]

    runtime.import_keras_alone = patch_after_import
    code = cli.main(words)
    moments.note("+", "ended")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
