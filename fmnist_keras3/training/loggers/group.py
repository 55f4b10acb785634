"""All loggers of a Trainer but the one of metrics.jsonl."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist_keras3.errors import UserError
from fmnist_keras3.training.loggers.base import Logger


class Loggers:
    """Hands on to each logger; one that raises is left out until the next fit, with a warning."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._all, self._active = loggers, []
        self._held, self._status = False, ""

    @property
    def names(self) -> list[str]:
        """The loggers' classes."""
        return [type(logger).__name__ for logger in self._all]

    def begin(self, run_dir: Path, params: dict[str, Any]) -> None:
        """Open every logger for a fit; UserError of one of them is raised."""
        self._active = []
        for logger in self._all:
            self._active.append(logger)
            self._call(logger, "begin", run_dir)
        self._each("log_hyperparams", params)

    def replay(self, records: list[dict[str, Any]]) -> None:
        self._each("replay", records)

    def log(self, record: dict[str, Any]) -> None:
        self._each("log", record)

    def finalize(self, status: str) -> None:
        """Close every logger; within `held`, at its end."""
        self._status = status
        if not self._held:
            self._each("finalize", status)
            self._active = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the loggers of a fit in the block open until its end, so that more can be logged."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.finalize(self._status)

    def _each(self, hook: str, *args: Any) -> None:
        for logger in list(self._active):
            self._call(logger, hook, *args)

    def _call(self, logger: Logger, hook: str, *args: Any) -> None:
        try:
            getattr(logger, hook)(*args)
        except Exception as error:
            self._active.remove(logger)
            if hook == "begin" and isinstance(error, UserError):
                raise
            warnings.warn(
                f"{type(logger).__name__} failed and is left out from now on "
                f"({type(error).__name__}: {error}). The training goes on; metrics.jsonl is "
                "complete.",
                stacklevel=4,
            )
