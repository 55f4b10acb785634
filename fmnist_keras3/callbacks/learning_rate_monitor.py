"""Records the learning rate of every step or epoch, with momentum and weight decay."""

from __future__ import annotations

import warnings

import numpy as np

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


class LearningRateMonitor(Callback):
    """Log a record ``{"event": "lr", "epoch", "step", "lr"}`` for each step or epoch.

    The loop's own records have the rate of every ``log_every_n_steps``-th step and of each epoch's
    last one; this adds those of all steps, whatever the chunks, and what rules them besides.
    ``logging_interval`` is "step", "epoch" (the rate of its first step), or None: "step" where a
    schedule changes the rate, else "epoch". ``log_momentum`` adds ``momentum``, the optimizer's
    ``momentum`` or ``beta_1``, ``log_weight_decay`` adds ``weight_decay``. Raises UserError for
    another interval.

    Example: ``Trainer(callbacks=[LearningRateMonitor("step", log_momentum=True)])``
    """

    section = "logging"

    def __init__(
        self,
        logging_interval: str | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise UserError(
                f"logging_interval is {logging_interval!r}; it must be 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum, self.log_weight_decay = log_momentum, log_weight_decay

    def setup(self, fit):
        self._every_step = self.logging_interval == "step" or (
            self.logging_interval is None and fit.schedule is not None
        )
        if self.log_momentum and _momentum(fit) is None:
            warnings.warn(
                f"log_momentum: {type(fit.engine.optimizer).__name__} has no momentum.",
                stacklevel=2,
            )

    def on_train_epoch_start(self, fit):
        self._done = fit.position.step  # also where a checkpoint was restored

    def on_chunk_end(self, fit):
        position = fit.position
        steps = np.arange(self._done, position.step)  # from 0
        self._done = position.step
        if not self._every_step:
            steps = steps[steps == position.step - position.step_in_epoch]
        more = self._more(fit)
        for step, rate in zip(steps.tolist(), fit.learning_rates(steps).tolist(), strict=True):
            if step + 1 not in position.skipped:
                fit.log("lr", position.epoch + 1, step + 1, {"lr": rate, **more})

    def _more(self, fit: SessionView) -> dict[str, float]:
        values = {}
        if self.log_momentum and (momentum := _momentum(fit)) is not None:
            values["momentum"] = momentum
        if self.log_weight_decay:
            optimizer = inner_optimizer(fit.engine.optimizer)
            values["weight_decay"] = float(optimizer.weight_decay or 0.0)
        return values


def _momentum(fit: SessionView) -> float | None:
    optimizer = inner_optimizer(fit.engine.optimizer)
    for name in ("momentum", "beta_1"):
        if (value := getattr(optimizer, name, None)) is not None:
            return float(value)
    return None
