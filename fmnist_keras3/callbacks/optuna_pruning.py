"""Ends the trials of an Optuna study that are not worth their time."""

from __future__ import annotations

from typing import Any

from fmnist_keras3.callbacks.early_stopping import missing
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.training.callback import Callback


class OptunaPruning(Callback):
    """Report ``monitor`` of each epoch to an Optuna ``trial``, and stop where its pruner says so.

    For an objective of your own: `Trainer.fit` then raises `optuna.TrialPruned`, as Optuna wants
    it, when the last checkpoint is written. Without ``raises`` it ends as after any stop, and
    ``pruned`` tells. Epochs are counted from ``first_step`` on. An epoch that the trial knows
    already, of a run that goes on, is not reported again. Raises UserError where nothing named
    ``monitor`` is logged.

    Example: ``Trainer(max_epochs=10, callbacks=[OptunaPruning(trial, "val_loss")])``
    """

    def __init__(
        self,
        trial: Any,
        monitor: str = "val_accuracy",
        *,
        raises: bool = True,
        first_step: int = 0,
    ) -> None:
        self.trial, self.monitor = trial, monitor
        self.raises, self.first_step = raises, first_step
        self.pruned = False

    def setup(self, fit):
        self.pruned = False

    def on_train_epoch_end(self, fit):
        of_validation = fit.validates and self.monitor.startswith("val_")
        if of_validation and fit.position.validated != fit.position.step:
            return
        if self.monitor not in fit.logs:
            raise UserError(missing(fit.logs, self.monitor))
        step = self.first_step + fit.records["train"]["epoch"]
        if step not in self._known():
            self.trial.report(fit.logs[self.monitor], step)
        if fit.position.epoch < fit.max_epochs and self.trial.should_prune():
            fit.stop(reason := f"pruned by Optuna after epoch {fit.records['train']['epoch']}")
            self.pruned = fit.stop_reason == reason

    def on_fit_end(self, fit):
        if self.pruned and self.raises:
            from optuna import TrialPruned

            raise TrialPruned(fit.stop_reason)

    def _known(self) -> dict[int, float]:
        """Return what was reported of the trial, by steps."""
        return self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
