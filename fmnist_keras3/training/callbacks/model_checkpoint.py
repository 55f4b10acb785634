"""Writes checkpoints, points to the last and the best, and removes those no longer needed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from fmnist_keras3.errors import Diverged
from fmnist_keras3.training import checkpoint
from fmnist_keras3.training.callbacks.base import Callback
from fmnist_keras3.training.callbacks.early_stopping import default_mode


class ModelCheckpoint(Callback):
    """Write a checkpoint at each epoch's end and every ``every_n_steps`` steps.

    Keeps the last one and the ``save_top_k`` best by ``monitor`` (default: val_accuracy, else
    val_loss; without validation there is no best). ``best_epoch`` is 1-based.
    """

    section = "checkpoint"

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        save_top_k: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        self.monitor, self.mode, self.save_top_k = monitor, mode, save_top_k
        self.every_n_steps = every_n_steps
        self.best: list[list] = []  # [value, checkpoint's name, epoch], best first
        self.last: Path | None = None

    @property
    def best_epoch(self) -> int | None:
        return self.best[0][2] if self.best else None

    @property
    def best_path(self) -> Path | None:
        return self.last.parent / self.best[0][1] if self.best and self.last else None

    def on_chunk_end(self, fit):
        every = self.every_n_steps
        if every and fit.position.step % every == 0 and not fit.epoch_complete:
            self.save(fit)

    def on_train_epoch_end(self, fit):
        folder, name = fit.run.checkpoints, f"step-{fit.position.step:08d}"
        monitor = self.monitor or next(
            (key for key in ("val_accuracy", "val_loss") if key in fit.logs), None
        )
        value = fit.logs.get(monitor, math.nan) if monitor else math.nan
        better = False
        if math.isfinite(value) and self.save_top_k:
            sign = -1 if (self.mode or default_mode(monitor or "")) == "max" else 1
            ranked = sorted(
                [*self.best, [value, name, fit.records["train"]["epoch"]]],
                key=lambda entry: sign * entry[0],
            )
            self.best = ranked[: self.save_top_k]
            better = self.best[0][1] == name
        path = self.save(fit)
        if better:
            checkpoint.point(
                folder, "best", path, monitor=monitor, value=value, epoch=self.best[0][2]
            )

    def on_fit_end(self, fit):
        # After an interrupt the position is new; after a full epoch the checkpoint is there.
        if self.last is None or self.last.name != f"step-{fit.position.step:08d}":
            self.save(fit)

    def on_exception(self, fit, exception):
        if not isinstance(exception, (Diverged, KeyboardInterrupt)) and fit.position.step:
            self.save(fit)

    def save(self, fit) -> Path:
        """Write a checkpoint of this moment, let "last" point to it, and drop the ones before."""
        folder = fit.run.checkpoints
        self.last = checkpoint.save(
            folder, fit.position.step, fit.engine.export_state(), fit.manifest()
        )
        checkpoint.point(folder, "last", self.last)
        keep = {self.last.name, *(name for _, name, _ in self.best)}
        for old in folder.glob("step-*"):
            if old.name not in keep and (old / checkpoint.MANIFEST).exists():
                shutil.rmtree(old)
        return self.last

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = state["best"]
