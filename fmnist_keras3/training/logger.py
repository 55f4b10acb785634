"""The base of all loggers, and the group of them that a fit has."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import LOGGER_HOOKS, check_hooks


class Logger:
    """Takes the records of a training elsewhere than to metrics.jsonl; override what you need.

    A record is a dict with ``event`` ("train", "validation", "step", "test" and what callbacks
    log), ``epoch`` (1-based), ``step`` (optimizer steps so far) and values, mostly numbers (see
    `scalars`). `begin`, `log_hyperparams` and `replay` open a fit, `finalize` ends it, also after
    an exception or a signal; then the logger can begin again, for another fit or for the test of
    this one. A logger that raises is left out of the rest of the fit, with a warning, and the
    training goes on; only a UserError from `begin` ends it. Raises UserError for a method that is a
    hook in Lightning alone.

    Example: ``class Print(Logger): log = lambda self, record: print(record)``
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_hooks(vars(cls), LOGGER_HOOKS)

    def begin(self, run_dir: Path) -> None:
        """Open what records are written to; forget what an earlier fit left in this object."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Take the run's settings, and ``backend``, ``device``, ``model``, ``parameters``."""

    def replay(self, records: list[dict[str, Any]]) -> None:
        """Go back to where the log held ``records``: at each begin, and after a rollback.

        There are none where a run is new. What was logged since is logged again, with the same
        values after a resume; a point that is there already must not be there twice.
        """

    def log(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def finalize(self, status: str) -> None:
        """Write what is left and close; ``status`` is that of summary.json."""


class Loggers:
    """Hands on to each logger; one that raises is left out until the next fit, with a warning."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._all, self._active = loggers, []
        self._held, self._status = False, ""
        self._params: dict[str, Any] = {}  # of the latest fit

    @property
    def names(self) -> list[str]:
        """The loggers' classes."""
        return [type(logger).__name__ for logger in self._all]

    def begin(self, run_dir: Path, params: dict[str, Any]) -> None:
        """Open every logger for a fit; UserError of one of them is raised."""
        self._active, self._params = [], params
        for logger in self._all:
            self._active.append(logger)
            self._call(logger, "begin", run_dir)
        self._each("log_hyperparams", params)

    def replay(self, records: list[dict[str, Any]]) -> None:
        self._each("replay", records)

    def log(self, record: dict[str, Any]) -> None:
        self._each("log", record)

    def append(self, run_dir: Path, record: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Log a record that came after the fit; ``records`` are all of the run.

        Loggers that the fit has closed are opened again for it, as at a resume.
        """
        if self._held:
            self.log(record)
            return
        with self.held():
            self.begin(run_dir, self._params)
            self.replay([r for r in records if r["event"] != record["event"]])
            self.log(record)

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


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by the names that services show: "train/loss".

    The epoch is one of them in "train" records.
    """
    left_out = {"event", "step"} if record["event"] == "train" else {"event", "step", "epoch"}
    return {
        f"{record['event']}/{key}": float(value)
        for key, value in record.items()
        if key not in left_out and isinstance(value, Real) and not isinstance(value, bool)
    }


def require(package: str) -> None:
    """Raise UserError unless ``package``, which is also the name of our extra, is installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder named wandb is no package
        raise UserError(
            f"The logger {package!r} needs the package {package}, which is not installed. "
            f"Type: pip install 'fmnist-keras3[{package}]'"
        )
