"""Ends the training after a time."""

from __future__ import annotations

import time

from fmnist_keras3.training.callbacks.base import Callback


class Timer(Callback):
    """Stop at the first boundary after ``duration`` seconds of training, resumed parts included.

    ``time_elapsed()`` gives the seconds so far. With ``duration`` None it only counts.
    """

    def __init__(self, duration: float | None = None) -> None:
        self.duration = duration
        self.setup()

    def setup(self, fit=None):
        self._before, self._started = 0.0, None

    def time_elapsed(self) -> float:
        """Return the seconds of training so far, over all resumed parts."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + running

    def on_fit_start(self, fit):
        self._started = time.monotonic()
        self._stop_if_due(fit)

    def on_chunk_end(self, fit):
        self._stop_if_due(fit)

    def _stop_if_due(self, fit) -> None:
        if self.duration is not None and self.time_elapsed() >= self.duration:
            fit.stop(f"max_time of {self.duration:g} s reached")

    def on_fit_end(self, fit):
        self._before, self._started = self.time_elapsed(), None

    def state_dict(self):
        return {"elapsed": self.time_elapsed()}

    def load_state_dict(self, state):
        self._before = state["elapsed"]
