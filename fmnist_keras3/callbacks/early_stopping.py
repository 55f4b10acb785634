"""Stops when a monitored value no longer gets better."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.settings import check_arguments
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


@dataclass(eq=False, repr=False)
class EarlyStopping(Callback):
    """Stop after ``patience`` validations in which ``monitor`` did not improve by ``min_delta``.

    Or epochs, if it is not a value of the validation. ``mode`` is "min" or "max" (default: "max"
    for accuracies, "min" otherwise).

    Training ends at once where the value is better than ``stopping_threshold``, worse than
    ``divergence_threshold`` or, with ``check_finite``, not finite; without it such a value is no
    improvement. ``check_on_train_epoch_end`` looks at the ends of epochs (True; those without a
    validation do not count for a value of it) or after each validation (False). Without ``strict``
    a value that is not logged is warned of, once, and otherwise passed over. ``verbose`` prints
    each improvement.

    ``best_score`` is the best value so far (infinite before the first), ``wait_count`` the checks
    since, ``stopped_epoch`` the epoch that was the last, from 1, or 0. Raises UserError for values
    outside their range and, with ``strict``, where nothing of that name is logged.

    Example: ``Trainer(callbacks=[EarlyStopping("val_accuracy", stopping_threshold=0.93)])``
    """

    monitor: str = "val_loss"
    patience: int = 3
    min_delta: float = 0.0
    mode: str | None = None
    _: KW_ONLY
    verbose: bool = False
    strict: bool = True
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_on_train_epoch_end: bool | None = None

    def __post_init__(self) -> None:
        check_arguments(EarlyStopping, {"patience": self.patience})
        self.mode = check_mode(self.mode) or default_mode(self.monitor)
        self.setup()

    def setup(self, fit=None):
        self.best_score = -math.inf if self.mode == "max" else math.inf
        self.wait_count = self.stopped_epoch = 0
        self._value: float | None = None  # at the latest check
        self._warned = False

    def on_fit_start(self, fit):
        # Resumed after the stop, perhaps with more patience.
        self._stop_if_due(fit, self.stopped_epoch)

    def on_validation_end(self, fit):
        if not self._at_epoch_end(fit):
            self._check(fit, fit.position.epoch + 1)

    def on_train_epoch_end(self, fit):
        if not self._at_epoch_end(fit):
            return
        validated = not fit.validates or fit.position.validated == fit.position.step
        if validated or not self.monitor.startswith("val_"):
            self._check(fit, fit.records["train"]["epoch"])

    def _at_epoch_end(self, fit: SessionView) -> bool:
        if self.check_on_train_epoch_end is None or not fit.validates:
            return not fit.validates or not self.monitor.startswith("val_")
        return self.check_on_train_epoch_end

    def _check(self, fit: SessionView, epoch: int) -> None:
        if self.monitor not in fit.logs:
            text = missing(fit.logs, self.monitor)
            if self.strict:
                raise UserError(text)
            if not self._warned:
                warnings.warn(f"{text} It is passed over.", stacklevel=2)
            self._warned = True
            return
        value = self._value = fit.logs[self.monitor]
        gain = self._gain(value, self.best_score)
        if math.isfinite(value) and gain > self.min_delta:
            if self.verbose:
                by = f" by {gain:.4f}" if math.isfinite(gain) else ""
                print(f"epoch {epoch}: {self.monitor} improved{by} to {value:.4f}")
            self.best_score, self.wait_count = value, 0
        else:
            self.wait_count += 1
        self._stop_if_due(fit, epoch)

    def _gain(self, value: float, other: float) -> float:
        """Return by how much ``value`` is better than ``other``."""
        return value - other if self.mode == "max" else other - value

    def _stop_if_due(self, fit: SessionView, epoch: int) -> None:
        if reason := self._reason():
            fit.stop(f"early stopping: {reason}")
        self.stopped_epoch = epoch if reason and fit.stop_reason else 0

    def _reason(self) -> str | None:
        name, value = self.monitor, self._value
        if value is None:
            return None
        if self.check_finite and not math.isfinite(value):
            return f"{name} is {value}, which is not finite"
        limit = self.stopping_threshold
        if limit is not None and self._gain(value, limit) > 0:
            return f"{name} {value:.4f} is better than the stopping_threshold {limit:g}"
        limit = self.divergence_threshold
        if limit is not None and self._gain(value, limit) < 0:
            return f"{name} {value:.4f} is worse than the divergence_threshold {limit:g}"
        if self.wait_count >= max(self.patience, 1):  # 0: the first without an improvement
            checks = "validations" if "val_" in name else "epochs"
            return f"{name} did not improve on {self.best_score:.4f} for {self.wait_count} {checks}"
        return None

    def state_dict(self):
        return {
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "value": None if self._value is None else str(self._value),  # JSON knows no infinity
        }

    def load_state_dict(self, state):
        self.setup()
        if state["best_score"] is not None:
            self.best_score = state["best_score"]
        self.wait_count, self.stopped_epoch = state["wait_count"], state["stopped_epoch"]
        self._value = None if state["value"] is None else float(state["value"])


def check_mode(mode: str | None) -> str | None:
    """Return ``mode``; raises UserError unless it is "min", "max" or None."""
    if mode not in (None, "min", "max"):
        raise UserError(f"mode is {mode!r}; it must be 'min' or 'max'.")
    return mode


def default_mode(monitor: str) -> str:
    """Return "max" for what should rise (accuracies, AUC), "min" for what should fall."""
    rising = any(word in monitor for word in ("acc", "auc", "precision", "recall"))
    return "max" if rising else "min"


def missing(logs: dict[str, float], name: str) -> str:
    """Say that ``name`` is not among ``logs``, and what is."""
    return (
        f"Nothing named {name!r} is logged, so it cannot be monitored.{nearest(name, logs)} "
        f"There is: {', '.join(sorted(logs))}. Without validation data there are no val_ values."
    )
