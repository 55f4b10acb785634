"""Logs the norm of the gradients."""

from __future__ import annotations

import math

import numpy as np

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


class GradientNorm(Callback):
    """Log the global L2 norm of the gradients, before clipping: ``grad_norm``.

    The mean and, as ``grad_norm_max``, the largest of an epoch stand in its train record; every
    ``log_every_n_steps`` steps (default: the Trainer's) there is a record "gradients" of that step,
    with ``per_variable`` also ``grad_norm/PATH`` of each trainable variable. With accumulated
    gradients the norms are those of each batch. Raises UserError for values outside their range.

    Example: ``Trainer(callbacks=[GradientNorm(per_variable=True)])``
    """

    requires = frozenset({"gradient norms"})

    def __init__(self, per_variable: bool = False, log_every_n_steps: int | None = None) -> None:
        if log_every_n_steps is not None and log_every_n_steps < 1:
            raise UserError(f"log_every_n_steps is {log_every_n_steps}; it must be at least 1.")
        self.per_variable, self.log_every_n_steps = per_variable, log_every_n_steps

    def setup(self, fit):
        self._sum, self._max, self._steps = 0.0, 0.0, 0

    def on_train_epoch_start(self, fit):
        if fit.position.step_in_epoch == 0:
            self.setup(fit)

    def on_chunk_end(self, fit):
        norms = np.asarray(fit.step_logs.gradient_norms, np.float64)
        every = self.log_every_n_steps or fit.log_every_n_steps
        first = fit.position.step - len(norms) + 1
        for step, of_variables in enumerate(norms, first):
            total = math.sqrt((of_variables**2).sum())
            self._sum, self._max = self._sum + total, max(self._max, total)
            self._steps += 1
            if every and step % every == 0:
                self._log(fit, step, total, of_variables)
        fit.logs.update(grad_norm=self._sum / self._steps, grad_norm_max=self._max)

    def _log(self, fit: SessionView, step, total, of_variables) -> None:
        values = {"grad_norm": total}
        if self.per_variable:
            paths = [v.path for v in fit.engine.model.trainable_variables]
            parts = zip(paths, of_variables.tolist(), strict=True)
            values |= {f"grad_norm/{path}": norm for path, norm in parts}
        fit.log("gradients", fit.position.epoch + 1, step, values)

    def state_dict(self):
        return {"sum": self._sum, "max": self._max, "steps": self._steps}

    def load_state_dict(self, state):
        self._sum, self._max, self._steps = state["sum"], state["max"], state["steps"]
