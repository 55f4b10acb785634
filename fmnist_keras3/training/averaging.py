"""An average of the weights beside those that are trained: how a fit measures and keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fmnist_keras3.runs.rundir import RAW_MODEL

if TYPE_CHECKING:
    from fmnist_keras3.training.fit import Fit
    from fmnist_keras3.training.view import SessionView

STATISTICS_BATCHES = 100  # of the epoch, from which BatchNormalization's statistics are taken


class Averaging(Protocol):
    """Which share of the weights goes into the average at each step, and back.

    All of it follows from the steps alone, or a resume would not be exact.
    """

    def shares(self, fit: SessionView, steps: np.ndarray) -> np.ndarray: ...

    def pulls(self, fit: SessionView, steps: np.ndarray) -> np.ndarray | None: ...

    def learning_rates(
        self, fit: SessionView, steps: np.ndarray, rates: np.ndarray
    ) -> np.ndarray: ...

    def began(self, fit: SessionView) -> bool: ...


@contextlib.contextmanager
def applied(fit: Fit) -> Iterator[None]:
    """Let the engine hold the averaged weights for a while."""
    _take_statistics(fit)
    fit.sound = False  # no checkpoint of exchanged weights, whatever happens
    fit.engine.swap_averages()
    try:
        yield
    finally:
        fit.engine.swap_averages()
    fit.sound = True


def finish(fit: Fit) -> None:
    """Leave the average in the model, and the weights themselves in model_raw.keras."""
    if fit.averaging is not None and fit.averaging.began(fit.view):
        fit.run.write_model(fit.model, RAW_MODEL)
        _take_statistics(fit)
        fit.engine.swap_averages()


def _take_statistics(fit: Fit) -> None:
    """Take BatchNormalization's statistics anew for the average, once a step."""
    position = fit.position
    if position.statistics_of != position.step:
        plan = fit.plan(limit=STATISTICS_BATCHES)
        fit.engine.update_statistics(fit.feed.chunks(plan))
        position.statistics_of = position.step
        if 0 < position.step_in_epoch < fit.steps_in_epoch:
            fit.open_epoch()  # the feed goes on where it was
