"""Ends the training after a time."""

from __future__ import annotations

import time
from datetime import timedelta

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.training.arguments import seconds
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


class Timer(Callback):
    """Stop at the first boundary after ``duration`` of training, resumed parts included.

    ``duration`` is in seconds, "DD:HH:MM:SS", a timedelta or its arguments ({"hours": 1}); None
    only counts. Raises UserError for anything else.

    Example: ``Trainer(callbacks=[Timer("00:12:00:00")])``
    """

    @explained
    def __init__(self, duration: str | float | timedelta | dict[str, float] | None = None) -> None:
        self.duration = None if duration is None else seconds(duration)
        self.setup()

    def setup(self, fit=None):
        self._before, self._started = 0.0, None
        self._validation, self._validation_started = 0.0, 0.0

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds of training so far, over all resumed parts.

        With validation and checkpoints; ``stage`` "validate" is those of the validations alone.
        Raises UserError for another stage.
        """
        if stage not in ("train", "validate"):
            raise UserError(f"stage is {stage!r}; it must be 'train' or 'validate'.")
        if stage == "validate":
            return self._validation
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + running

    def time_remaining(self) -> float | None:
        """Return the seconds that are left, or None without a duration."""
        return None if self.duration is None else max(0.0, self.duration - self.time_elapsed())

    def on_fit_start(self, fit):
        self._started = time.monotonic()
        self._stop_if_due(fit)

    def on_chunk_end(self, fit):
        self._stop_if_due(fit)

    def on_validation_start(self, fit):
        self._validation_started = time.monotonic()

    def on_validation_end(self, fit):
        self._validation += time.monotonic() - self._validation_started

    def _stop_if_due(self, fit: SessionView) -> None:
        if self.duration is None:
            return
        if fit.engine.world.agree(self.time_elapsed() >= self.duration):
            fit.stop(f"max_time of {self.duration:g} s reached")

    def on_fit_end(self, fit):
        self._before, self._started = self.time_elapsed(), None

    def state_dict(self):
        return {"elapsed": self.time_elapsed(), "validation": self._validation}

    def load_state_dict(self, state):
        self._before, self._validation = state["elapsed"], state["validation"]
