"""Stops when a monitored value no longer gets better."""

from __future__ import annotations

import math

from fmnist_keras3.errors import UserError
from fmnist_keras3.training.callbacks.base import Callback


class EarlyStopping(Callback):
    """Stop after ``patience`` validations in which ``monitor`` did not improve by ``min_delta``.

    Or epochs, if it is not a value of the validation.

    ``mode`` is "min" or "max" (default: "max" for accuracies, "min" otherwise). A value that is not
    finite is no improvement. Raises UserError where nothing of that name is logged.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        if patience < 1:
            raise UserError(f"patience is {patience}; early stopping needs at least 1 epoch.")
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.sign = 1 if (mode or default_mode(monitor)) == "max" else -1
        self.setup()

    def setup(self, fit=None):
        self.best, self.waited = -math.inf, 0

    def on_fit_start(self, fit):
        self._stop_if_due(fit)  # resumed after the stop, perhaps with more patience

    def on_validation_end(self, fit):
        if self.monitor.startswith("val_"):
            self._judge(fit)

    def on_train_epoch_end(self, fit):
        if fit.validation_feed is None or not self.monitor.startswith("val_"):
            self._judge(fit)

    def _judge(self, fit) -> None:
        value = self.sign * monitored(fit.logs, self.monitor)
        if value > self.best + self.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        self._stop_if_due(fit)

    def _stop_if_due(self, fit) -> None:
        if self.waited >= self.patience:
            fit.stop(
                f"early stopping: {self.monitor} did not improve on {self.sign * self.best:.4f} "
                f"for {self.waited} {'validations' if 'val_' in self.monitor else 'epochs'}"
            )

    def state_dict(self):
        best = self.best if math.isfinite(self.best) else None  # JSON knows no infinity
        return {"best": best, "waited": self.waited}

    def load_state_dict(self, state):
        self.best = -math.inf if state["best"] is None else state["best"]
        self.waited = state["waited"]


def default_mode(monitor: str) -> str:
    """Return "max" for what should rise (accuracies, AUC), "min" for what should fall."""
    return (
        "max" if any(word in monitor for word in ("acc", "auc", "precision", "recall")) else "min"
    )


def monitored(logs: dict[str, float], name: str) -> float:
    """Return the logged value ``name``; raises UserError that lists what there is."""
    if name not in logs:
        raise UserError(
            f"Nothing named {name!r} is logged, so it cannot be monitored. There is: "
            f"{', '.join(sorted(logs))}. Without validation data there are no val_ values."
        )
    return logs[name]
