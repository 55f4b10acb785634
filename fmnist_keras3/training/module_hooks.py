"""The hooks of a Module, called as those of a callback."""

from __future__ import annotations

from typing import Any

from fmnist_keras3.module import Module
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.session import Session
from fmnist_keras3.training.view import SessionView


class ModuleHooks(Callback):
    """Calls the hooks of ``module``, which meanwhile knows ``trainer`` and where it stands."""

    order = -1  # what it logs, the callbacks of the user see

    def __init__(self, module: Module, trainer: Any, session: Session) -> None:
        self.module, self.session = module, session
        session.set(module, "_trainer", trainer)

    def setup(self, fit):
        self.session.set(self.module, "_fit", fit)

    def on_fit_start(self, fit):
        self._call(fit, "on_fit_start")

    def on_fit_end(self, fit):
        self._call(fit, "on_fit_end")

    def on_train_epoch_start(self, fit):
        self._call(fit, "on_train_epoch_start")

    def on_train_epoch_end(self, fit):
        self._call(fit, "on_train_epoch_end")

    def on_validation_start(self, fit):
        self._call(fit, "on_validation_epoch_start")

    def on_validation_end(self, fit):
        self._call(fit, "on_validation_epoch_end")

    def on_save_checkpoint(self, fit, manifest):
        self._call(fit, "on_save_checkpoint", manifest)

    def on_load_checkpoint(self, fit, manifest):
        self._call(fit, "on_load_checkpoint", manifest)

    def _call(self, fit: SessionView, hook: str, *args: Any) -> None:
        """Call a hook that the module has; variables it assigns are those that the steps read."""
        if getattr(type(self.module), hook) is getattr(Module, hook):
            return  # to bring the model up to date takes time
        self.session.publish()
        getattr(self.module, hook)(*args)
        fit.engine.read_model()
