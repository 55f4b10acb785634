"""Writes checkpoints, points to the last and the best, and removes those no longer needed."""

from __future__ import annotations

import contextlib
import math
import time
from datetime import timedelta
from pathlib import Path

from fmnist_keras3.errors import Diverged, UserError
from fmnist_keras3.training import checkpoint
from fmnist_keras3.training.callbacks.base import Callback
from fmnist_keras3.training.callbacks.early_stopping import default_mode
from fmnist_keras3.training.writer import Writer


class ModelCheckpoint(Callback):
    """Write a checkpoint at the end of every ``every_n_epochs`` epochs, and of the training.

    Besides: every ``every_n_train_steps`` steps, and ``train_time_interval`` (seconds, or a
    timedelta) after the last one, and at SIGUSR1. Keeps the last one, the one before it (should the
    disk damage the last), and the ``save_top_k`` best by ``monitor`` (default: val_accuracy, else
    val_loss; without validation there is no best). ``best_epoch`` is 1-based. The state is copied
    at once and written in the background; what goes wrong there is raised at the next boundary.
    Raises UserError for values outside their range.
    """

    section = "checkpoint"

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        every_n_epochs: int = 1,
        train_time_interval: float | timedelta | None = None,
    ) -> None:
        if isinstance(train_time_interval, timedelta):
            train_time_interval = train_time_interval.total_seconds()
        for name, value, least in (
            ("save_top_k", save_top_k, 0),
            ("every_n_train_steps", every_n_train_steps, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("train_time_interval", train_time_interval, 0),
        ):
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; it must be at least {least}.")
        self.monitor, self.mode, self.save_top_k = monitor, mode, save_top_k
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.train_time_interval = train_time_interval
        self.setup()

    def setup(self, fit=None):
        self.best: list[list] = []  # [value, checkpoint's name, epoch], best first
        self.last: Path | None = None
        self._before: str | None = None  # the name of the last but one
        self._saved: tuple[int, int, int] | None = None  # the position that `last` holds
        self._saved_at = time.monotonic()
        self._writer = Writer()

    @property
    def best_epoch(self) -> int | None:
        return self.best[0][2] if self.best else None

    @property
    def best_path(self) -> Path | None:
        return self.last.parent / self.best[0][1] if self.best and self.last else None

    def on_fit_start(self, fit):
        self._saved_at = time.monotonic()
        if self.best:  # a process that was killed may have left another one there, or none
            fit.run.update(best_epoch=self.best_epoch)
        if fit.on_nonfinite == "rollback" and self.last is None:
            self.save(fit)  # something to go back to

    def on_chunk_end(self, fit):
        self._writer.check()
        steps, seconds = self.every_n_train_steps, self.train_time_interval
        due = steps is not None and fit.position.step % steps == 0
        due |= fit.signals.checkpoint_asked
        due |= seconds is not None and time.monotonic() - self._saved_at >= seconds
        # At an epoch's last step the validation is still to come, and a checkpoint after it.
        if due and fit.position.step_in_epoch < fit.steps_in_epoch:
            self.save(fit)

    def on_validation_end(self, fit):
        if not (fit.epoch_complete or fit.stop_reason):  # else the end of the epoch is to come
            self._rank_and_save(fit, fit.position.epoch + 1)

    def on_train_epoch_end(self, fit):
        epoch = fit.records["train"]["epoch"]
        if not (fit.epoch_complete and epoch % self.every_n_epochs):
            self._rank_and_save(fit, epoch)

    def _rank_and_save(self, fit, epoch: int) -> None:
        monitor = self.monitor or next(
            (key for key in ("val_accuracy", "val_loss") if key in fit.logs), None
        )
        value = fit.logs.get(monitor, math.nan) if monitor else math.nan
        if not (math.isfinite(value) and self.save_top_k):
            self.save(fit)
            return
        name = checkpoint.new_path(fit.run.checkpoints, fit.position.step).name
        sign = -1 if (self.mode or default_mode(monitor or "")) == "max" else 1
        ranked = sorted([*self.best, [value, name, epoch]], key=lambda entry: sign * entry[0])
        self.best = ranked[: self.save_top_k]
        better = {"monitor": monitor, "value": value, "epoch": epoch}
        best = self.best[0][1] == name
        self.save(fit, better if best else None)
        if best:
            fit.run.update(best_epoch=epoch)

    def on_fit_end(self, fit):
        if self._saved != fit.position.place:
            self.save(fit)
        self._writer.wait()

    def on_exception(self, fit, exception):
        if isinstance(exception, KeyboardInterrupt):
            self._writer.abandon()
            return
        with contextlib.suppress(UserError):
            self._writer.wait()
        if self.last is not None and not self.last.exists():
            self._saved = None  # it was not written; perhaps now it can be
        sound = fit.sound and fit.position.step > 0 and not isinstance(exception, Diverged)
        if sound and self._saved != fit.position.place:
            fit.run.path.mkdir(parents=True, exist_ok=True)  # where it vanished
            self.save(fit)
            self._writer.wait()

    def save(self, fit, better: dict | None = None) -> Path:
        """Write a checkpoint of this moment, let "last" point to it, and drop the ones before.

        With ``better``, "best" points to it, too, with these values. Returns its path, which is
        there when the background writer has ended. Raises Diverged for a state that is not finite,
        and what the writing before this one raised.
        """
        self._writer.wait()
        folder, step = fit.run.checkpoints, fit.position.step
        state = fit.engine.export_state()
        checkpoint.check_finite(state, step)
        path = checkpoint.new_path(folder, step)
        if self.last is not None:
            self._before = self.last.name
        self.last, self._saved, self._saved_at = path, fit.position.place, time.monotonic()
        fit.signals.checkpoint_asked = False
        keep = {path.name, self._before or "", *(name for _, name, _ in self.best)}
        writer, manifest = self._writer, fit.manifest()

        def write() -> None:
            checkpoint.save(path, state, manifest)
            if writer.abandoned:  # the run is no longer ours
                return
            # "last" comes last: whoever goes on from there does not point to "best" again.
            if better is not None:
                checkpoint.point(folder, "best", path.name, **better)
            checkpoint.point(folder, "last", path.name)
            best = checkpoint.pointed(folder, "best")  # of a killed process, it may be unknown here
            checkpoint.retire(folder, keep if best is None else keep | {best.name})

        writer.submit(write)
        return path

    def restored(self, path: Path, place: tuple[int, int, int]) -> None:
        """Count ``path``, from which the training goes on, as the last checkpoint."""
        self.last, self._saved, self._before = path, place, None

    def wait(self) -> None:
        """Wait for the checkpoint in flight; raises what its writing raised."""
        self._writer.wait()

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = [list(entry) for entry in state["best"]]
