"""Says when a checkpoint is written, what it is called, and which are the best."""

from __future__ import annotations

import math
import re
import string
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3.callbacks.early_stopping import check_mode, default_mode, missing
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.runs import checkpoints
from fmnist_keras3.settings import check_arguments
from fmnist_keras3.training.callback import Callback

if TYPE_CHECKING:
    from fmnist_keras3.runs.keeper import Keeper
    from fmnist_keras3.training.view import SessionView

_EXAMPLE = 'Type filename="{epoch:02d}-{val_loss:.2f}".'

_INTERVAL = re.compile(r"([1-9]\d*)(|steps?|epochs?|s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def interval(text: str | None) -> dict[str, Any]:
    """Return `--checkpoint_every` as arguments of `ModelCheckpoint`; raises UserError."""
    match = _INTERVAL.fullmatch((text or "1epoch").replace(" ", ""))
    if not match:
        raise UserError(
            f"checkpoint_every is {text!r}; it must be a number of steps, epochs or a time, at "
            "least 1. Type --checkpoint_every 500, 2epochs, 30s, 10m or 1h"
        )
    count, unit = int(match[1]), match[2]
    if unit.startswith("epoch"):
        return {"every_n_epochs": count}
    if unit in _SECONDS:
        return {"train_time_interval": count * _SECONDS[unit]}
    return {"every_n_train_steps": count}


class ModelCheckpoint(Callback):
    """Write a checkpoint at the end of every ``every_n_epochs`` epochs, and of the training.

    Besides: every ``every_n_train_steps`` steps, and ``train_time_interval`` (seconds, or a
    timedelta) after the last one, and at SIGUSR1. Kept are the last one, the one before it (should
    the disk damage the last), and the ``save_top_k`` best by ``monitor`` (default: val_accuracy,
    else val_loss; without validation there is no best), which are the smallest or largest by
    ``mode`` ("min" or "max"; default: "max" for accuracies); with -1 every one. ``save_last`` may
    be True, as it always is. There may be several, each with rules of its own: see
    `training.keeper`. The run's best is that of the first with a ``monitor``, else of the first.

    ``filename`` labels the folders: "{epoch:02d}-{val_loss:.2f}" makes
    ``step-00000469-epoch=02-val_loss=0.32``, and without ``auto_insert_metric_name``
    ``step-00000469-02-0.32``. It may name epoch (from 1), step, lr and what the model and its
    validation measure; a value that is not known at that moment is ``nan``. ``verbose`` prints
    each new best.

    ``best_model_path``, ``best_model_score`` and ``best_epoch`` (from 1) are None before there is a
    best, ``last_model_path`` before the first checkpoint. Raises UserError for values outside their
    range, for a filename that cannot be made, and for a ``monitor`` that nothing has logged.

    Example: ``ModelCheckpoint("val_loss", save_top_k=3, filename="{epoch}-{val_loss:.3f}")``
    """

    section, role = "checkpoint", "checkpoints"

    @explained
    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        every_n_epochs: int = 1,
        train_time_interval: float | timedelta | None = None,
        *,
        filename: str | None = None,
        auto_insert_metric_name: bool = True,
        save_last: bool | None = None,
        verbose: bool = False,
    ) -> None:
        if save_last not in (None, True):
            raise UserError(
                f"save_last is {save_last!r}, but the last checkpoint is always kept, to go on "
                "from: fit(..., ckpt_path='last'). Leave save_last out."
            )
        if isinstance(train_time_interval, timedelta):
            train_time_interval = train_time_interval.total_seconds()
        check_arguments(ModelCheckpoint, {"save_top_k": save_top_k})
        for name, value, least in (
            ("every_n_train_steps", every_n_train_steps, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("train_time_interval", train_time_interval, 0),
        ):
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; it must be at least {least}.")
        self.monitor, self.mode, self.save_top_k = monitor, check_mode(mode), save_top_k
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.train_time_interval = train_time_interval
        self.filename, self.auto_insert_metric_name = filename, auto_insert_metric_name
        self.verbose = verbose
        self._check_filename()
        self.setup()

    def setup(self, fit=None):
        self.best: list[list] = []  # [value, checkpoint's name, epoch], best first
        self._keeper: Keeper | None = None
        if fit is not None:
            if self.filename:
                self._check_names(fit)
            self._keeper = fit.keeper
            fit.keeper.join(self)

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best checkpoint, from 1, or None."""
        return self.best[0][2] if self.best else None

    @property
    def best_model_score(self) -> float | None:
        """The monitored value of the best checkpoint, or None."""
        return self.best[0][0] if self.best else None

    @property
    def best_model_path(self) -> Path | None:
        """The folder of the best checkpoint, or None."""
        last = self.last_model_path
        return last.parent / self.best[0][1] if self.best and last else None

    @property
    def last_model_path(self) -> Path | None:
        """The folder of the run's last checkpoint, whoever asked for it, or None."""
        return None if self._keeper is None else self._keeper.last_model_path

    def on_chunk_end(self, fit):
        steps, seconds = self.every_n_train_steps, self.train_time_interval
        due = steps is not None and fit.position.step % steps == 0
        if seconds is not None:
            passed = time.monotonic() - fit.keeper.saved_at >= seconds
            due |= bool(fit.engine.world.agree(passed))
        # At an epoch's last step the validation is still to come, and a checkpoint after it.
        if due and fit.position.step_in_epoch < fit.steps_in_epoch:
            self._ask(fit)

    def on_validation_end(self, fit):
        if not (fit.epoch_complete or fit.stop_reason):  # else the end of the epoch is to come
            self._rank_and_ask(fit, fit.position.epoch + 1)

    def on_train_epoch_end(self, fit):
        epoch = fit.records["train"]["epoch"]
        if not (fit.epoch_complete and epoch % self.every_n_epochs):
            self._rank_and_ask(fit, epoch)

    def _rank_and_ask(self, fit: SessionView, epoch: int) -> None:
        monitor = self.monitor or next(
            (key for key in ("val_accuracy", "val_loss") if key in fit.logs), None
        )
        validated = fit.position.validated == fit.position.step
        if monitor and monitor not in fit.logs and (validated or not monitor.startswith("val_")):
            raise UserError(missing(fit.logs, monitor))
        value = fit.logs.get(monitor, math.nan) if monitor else math.nan
        if not (math.isfinite(value) and self.save_top_k):
            self._ask(fit)
            return
        sign = -1 if (self.mode or default_mode(monitor or "")) == "max" else 1
        is_best = all(sign * value < sign * other for other, _, _ in self.best)
        better = {"monitor": monitor, "value": value, "epoch": epoch} if is_best else None
        name = self._ask(fit, better)
        ranked = sorted([*self.best, [value, name, epoch]], key=lambda entry: sign * entry[0])
        self.best = ranked if self.save_top_k == -1 else ranked[: self.save_top_k]
        if is_best and self.verbose:
            print(f"epoch {epoch}: {monitor} {value:.4f} is the best so far, kept as {name}")

    def _ask(self, fit: SessionView, better: dict | None = None) -> str:
        """Ask for a checkpoint of this moment, and return its name."""
        position = fit.position
        # Between epochs `position.epoch` counts the one that has just ended.
        epoch = position.epoch + (position.step_in_epoch > 0)
        label = self._label({**fit.logs, "epoch": epoch, "step": position.step})
        return fit.keeper.ask(fit, self, label[: checkpoints.LABEL], better)

    def _label(self, values: dict[str, float]) -> str:
        """Return the filename with ``values`` in it, "" without one."""
        made = ""
        for text, name, form, _ in string.Formatter().parse(self.filename or ""):
            made += text
            if name is not None:
                made += f"{name}=" * self.auto_insert_metric_name
                value = values.get(name, math.nan)
                # Not a number has no whole numbers' formats.
                made += format(value, form or "") if value == value else "nan"
        return made

    def _names(self) -> list[str]:
        found = string.Formatter().parse(self.filename or "")
        return [name for _, name, _, _ in found if name is not None]

    def _check_filename(self) -> None:
        """Raise UserError unless the filename can be made, and make the name of a folder."""
        try:
            wholes = dict.fromkeys(("epoch", "step"), 1)
            made = self._label({**dict.fromkeys(self._names(), 0.5), **wholes})
        except ValueError as error:
            raise UserError(
                f"filename is {self.filename!r}, which is no template: {error}. {_EXAMPLE}"
            ) from None
        if made and not checkpoints.is_label(made):
            raise UserError(
                f"filename is {self.filename!r}, which makes {made!r}; it may hold letters, "
                f"digits and . , = + @ % _ - and have {checkpoints.LABEL} characters. {_EXAMPLE}"
            )

    def _check_names(self, fit: SessionView) -> None:
        """Raise UserError for a name in the filename that nothing will ever have."""
        measured = ["loss", *fit.engine.metric_results()]
        known = ["epoch", "step", *measured, "penalty", "lr"]
        if fit.validates:
            known += [f"val_{name}" for name in measured]
        if fit.averaging is not None:
            known += [f"val_averaged_{name}" for name in measured]
        for name in self._names():
            if name not in known:
                raise UserError(
                    f"filename is {self.filename!r}, but nothing named {name!r} is logged."
                    f"{nearest(name, known)} There is: {', '.join(known)}."
                )

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = [list(entry) for entry in state["best"]]
