"""Runs any `keras.callbacks.Callback` that can do with the ends of epochs and validations."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView

_REFUSED = {
    "BackupAndRestore": "each run writes checkpoints that resume exactly; give ckpt_path='last'",
    "OrbaxCheckpoint": "each run writes checkpoints; see fmnist_keras3.ModelCheckpoint",
    "ProgbarLogger": "the Trainer shows a bar of its own (enable_progress_bar)",
    "TerminateOnNaN": "the loop looks for values that are not finite (on_nonfinite)",
}
_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)


class KerasCallback(Callback):
    """Calls a Keras callback at the beginning and end of training, epochs and validations.

    The model is brought up to date before each call, and what the callback changed in it is taken
    over: weights, the optimizer, the learning rate, ``stop_training``. Raises UserError, with the
    reason, for a callback that wants to be called between steps, of which the loop runs many as one
    program, or that does what the Trainer does.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        name = type(callback).__name__
        if name in _REFUSED and type(callback).__module__.startswith("keras."):
            raise UserError(f"keras.callbacks.{name} is not needed here: {_REFUSED[name]}.")
        if hooks := _batch_hooks(callback):
            raise UserError(
                f"The callback {name} has {', '.join(hooks)}, for between steps; here many "
                "steps run as one program. Use on_epoch_end, a fmnist_keras3.Callback with "
                "on_chunk_end, or model.fit."
            )
        self.callback = callback

    @property
    def given(self):
        return self.callback

    def setup(self, fit):
        sets_rate = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if not isinstance(self.callback, sets_rate):
            return
        if fit.schedule is not None or not fit.engine.sets_learning_rate:
            whose = "optimizer" if fit.schedule is None else "Trainer"
            raise UserError(
                f"{type(self.callback).__name__} and the {whose}'s schedule both set the learning "
                "rate. Leave one of them out."
            )

    def on_fit_start(self, fit):
        if fit.position.step and isinstance(self.callback, _WITH_MEMORY):
            warnings.warn(
                f"keras.callbacks.{type(self.callback).__name__} begins anew: Keras' callbacks "
                "leave nothing in a checkpoint.",
                stacklevel=2,
            )
        steps = fit.steps_in_epoch
        self.callback.set_params({"verbose": 0, "epochs": fit.max_epochs, "steps": steps})
        self.callback.set_model(fit.model)
        fit.model.stop_training = False
        self._call(fit, "on_train_begin")

    def on_train_epoch_start(self, fit):
        if fit.position.step_in_epoch == 0:
            self._call(fit, "on_epoch_begin", fit.position.epoch)

    def on_validation_start(self, fit):
        self._call(fit, "on_test_begin")

    def on_validation_end(self, fit):
        values = {k[4:]: v for k, v in fit.logs.items() if k.startswith("val_")}
        self._call(fit, "on_test_end", logs=values)

    def on_train_epoch_end(self, fit):
        if fit.epoch_complete:
            logs = {"learning_rate" if k == "lr" else k: v for k, v in fit.logs.items()}
            self._call(fit, "on_epoch_end", fit.position.epoch - 1, logs=logs)

    def on_fit_end(self, fit):
        self._call(fit, "on_train_end")

    def _call(
        self, fit: SessionView, hook: str, *arguments: Any, logs: dict[str, float] | None = None
    ) -> None:
        fit.engine.sync_model()
        getattr(self.callback, hook)(*arguments, logs or {})
        fit.engine.read_model()
        if fit.model.stop_training:
            fit.stop(f"keras.callbacks.{type(self.callback).__name__} set stop_training")


def as_callbacks(given: Any) -> list[Callback]:
    """Return one callback or several, ours and Keras', as a list; UserError for what is none."""
    several = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    made: list[Any] = [
        KerasCallback(c) if isinstance(c, keras.callbacks.Callback) else c for c in several
    ]
    for callback in made:
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks has {callback!r}, which is no fmnist_keras3.Callback and no "
                "keras.callbacks.Callback. Type callbacks=[EarlyStopping()]"
            )
    return made


_WITH_MEMORY = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)


def _batch_hooks(callback: keras.callbacks.Callback) -> list[str]:
    """Return the hooks between steps that ``callback`` has and needs."""
    if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq == "epoch":
        return []
    if isinstance(callback, keras.callbacks.TensorBoard) and callback.update_freq == "epoch":
        return []
    base = keras.callbacks.Callback
    return [
        hook
        for hook in _BATCH_HOOKS
        if hook in vars(callback) or getattr(type(callback), hook) is not getattr(base, hook)
    ]
