"""What callbacks see of a training that is under way: read-only, typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.data.datamodule import DataModule
    from fmnist_keras3.engines.base import Engine
    from fmnist_keras3.engines.chunk import StepLogs
    from fmnist_keras3.runs.keeper import Keeper
    from fmnist_keras3.runs.rundir import RunDirectory
    from fmnist_keras3.training.accumulation import Accumulation
    from fmnist_keras3.training.averaging import Averaging
    from fmnist_keras3.training.fit import Fit, Position
    from fmnist_keras3.training.schedules import Schedule


class SessionView:
    """The training that is under way, ``fit``, as its callbacks see it.

    None of its attributes can be set; a callback acts on the training by `stop` and `log`, by
    ``keeper.ask`` for a checkpoint, and on the Keras model's own terms through ``engine``.

    Example: ``class Print(Callback): on_chunk_end = lambda self, fit: print(fit.position.step)``
    """

    __slots__ = ("_fit",)

    def __init__(self, fit: Fit) -> None:
        object.__setattr__(self, "_fit", fit)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"A callback can't set {name} of the training that it sees. It can call stop(reason) "
            "and log(event, ...); what the training is made of goes to the Trainer."
        )

    @property
    def model(self) -> keras.Model:
        """The Keras model: a copy, of this moment, of what the engine trains."""
        return self._fit.model

    @property
    def engine(self) -> Engine:
        """What trains: its device, its optimizer, its metrics."""
        return self._fit.engine

    @property
    def data(self) -> DataModule:
        """The data: its splits, batch size and augmentations."""
        return self._fit.data

    @property
    def validates(self) -> bool:
        """Whether there is a validation split that is measured."""
        return self._fit.validation_feed is not None

    @property
    def run(self) -> RunDirectory:
        """The run directory, with its summary."""
        return self._fit.run

    @property
    def keeper(self) -> Keeper:
        """Who writes checkpoints and decides which stay."""
        return self._fit.keeper

    @property
    def averaging(self) -> Averaging | None:
        """The average of the weights beside them, if there is one."""
        return self._fit.averaging

    @property
    def position(self) -> Position:
        """Where training stands: epoch, step and the sums over the part that is done."""
        return self._fit.position

    @property
    def logs(self) -> dict[str, float]:
        """The latest values by Keras' names: loss, accuracy, val_loss, val_accuracy, lr."""
        return self._fit.logs

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The latest record of each event ("train", "validation", ...), as metrics.jsonl has it."""
        return self._fit.records

    @property
    def step_logs(self) -> StepLogs:
        """Loss, penalty and what was asked for, of each step of the last chunk."""
        return self._fit.step_logs

    @property
    def schedule(self) -> Schedule | None:
        """The Trainer's learning-rate schedule; None where the optimizer's own rate counts."""
        return self._fit.schedule

    @property
    def accumulation(self) -> Accumulation:
        """Which batches end with an update of the weights."""
        return self._fit.accumulation

    @property
    def max_epochs(self) -> int:
        """After how many epochs training ends."""
        return self._fit.max_epochs

    @property
    def max_steps(self) -> int | None:
        """After how many steps training ends, if a number was given."""
        return self._fit.max_steps

    @property
    def endless(self) -> bool:
        """Whether no number of epochs ends the training."""
        return self._fit.endless

    @property
    def of_epochs(self) -> str:
        """What is said after the number of an epoch: "/25", if an end is known."""
        return self._fit.of_epochs

    @property
    def steps_in_epoch(self) -> int:
        """How many batches an epoch has."""
        return self._fit.steps_in_epoch

    @property
    def log_every_n_steps(self) -> int:
        """How many steps lie between two records of steps."""
        return self._fit.log_every_n_steps

    @property
    def epoch_complete(self) -> bool:
        """Whether the last step of an epoch was taken, and the next epoch not begun."""
        return self._fit.epoch_complete

    @property
    def stop_reason(self) -> str | None:
        """Why training ends, once that is decided."""
        return self._fit.stop_reason

    def learning_rates(self, steps: np.ndarray) -> np.ndarray:
        """Return the learning rates of ``steps`` (0-based, int [n]), float32 [n]."""
        return self._fit.learning_rates(steps)

    def recompile(self) -> None:
        """Go on with programs for what the model is now, as after an unfreezing; the state stays.

        Between two epochs; the weights, and their order, must be what they were.
        """
        self._fit.recompile()

    def stop(self, reason: str) -> None:
        """End the training at the next boundary, but not before ``min_epochs`` epochs."""
        self._fit.stop(reason)

    def log(self, event: str, epoch: int, step: int, values: dict[str, Any]) -> None:
        """Hand a record to every logger, as ``{"event": event, "epoch", "step", **values}``."""
        self._fit.log(event, epoch, step, values)
