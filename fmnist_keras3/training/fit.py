"""All that a training is made of while it is under way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.plan import EpochPlan
from fmnist_keras3.data.stream import plan_of
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.engines.chunk import StepLogs, StepPlan
from fmnist_keras3.runs.jsonl import JSONLLogger
from fmnist_keras3.runs.keeper import Keeper
from fmnist_keras3.runs.rundir import RunDirectory
from fmnist_keras3.training.accumulation import Accumulation
from fmnist_keras3.training.averaging import Averaging
from fmnist_keras3.training.compilation import compile_programs
from fmnist_keras3.training.feeds import Feed
from fmnist_keras3.training.logger import Loggers
from fmnist_keras3.training.profiler import Profiler
from fmnist_keras3.training.schedules import Schedule
from fmnist_keras3.training.session import Session
from fmnist_keras3.training.signals import StopSignals
from fmnist_keras3.training.view import SessionView

ENDLESS = 2**31 - 1  # epochs, where something else is to end the training


@dataclass
class Position:
    """Where training stands, and the sums over the part of the epoch that is done."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps, over all epochs
    step_in_epoch: int = 0
    examples: int = 0  # in this epoch, like the following
    loss_sum: float = 0.0  # of batch mean times batch size
    penalty: float = 0.0  # of the last step
    seconds: float = 0.0  # of training proper: no compilation, validation or checkpoint
    validated: int = 0  # the step of the last validation
    ended: int = 0  # the step at which an epoch was ended last, also one cut short by `max_steps`
    statistics_of: int = -1  # the step of the weights that the averages' statistics fit
    skipped: list[int] = field(default_factory=list)  # steps left out by a rollback, from 1
    lr_scale: float = 1.0  # of the learning rate, after rollbacks

    @property
    def place(self) -> tuple[int, int, int]:
        """What tells one position from another."""
        return self.epoch, self.step, self.step_in_epoch

    def advance(self, logs: StepLogs, valid: np.ndarray, seconds: float) -> None:
        """Count the steps of one chunk."""
        self.step += len(valid)
        self.step_in_epoch += len(valid)
        self.examples += int(valid.sum())
        # One by one: sums over chunks, whose lengths follow the clock, may differ in the last bit.
        for loss, examples in zip(logs.loss.tolist(), valid.tolist(), strict=True):
            self.loss_sum += loss * examples
        self.penalty = float(logs.penalty[-1])
        self.seconds += seconds

    def skip(self) -> None:
        """Count one step as taken without taking it."""
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self) -> None:
        """Move to the first step of the next epoch."""
        self.epoch += 1
        self.step_in_epoch = self.examples = 0
        self.loss_sum = self.penalty = self.seconds = 0.0


@dataclass
class Fit:
    """One training, as the loop has it; callbacks get its `view`."""

    session: Session
    engine: Engine
    data: DataModule
    feed: Feed
    validation_feed: Feed | None
    run: RunDirectory
    keeper: Keeper
    callbacks: list[Any]
    jsonl: JSONLLogger  # whose place checkpoints keep
    loggers: Loggers  # besides
    signals: StopSignals
    averaging: Averaging | None
    seed: int
    max_epochs: int
    max_steps: int | None
    min_epochs: int
    val_every_n_steps: int | None  # within an epoch, besides at its end
    check_val_every_n_epoch: int
    accumulation: Accumulation
    schedule: Schedule | None = None  # None: the optimizer's own learning rate
    iterations_before: int = 0  # of the optimizer, more than updates: those of earlier fits
    last_batch: str = "keep"
    log_every_n_steps: int = 50
    num_sanity_val_steps: int = 0
    on_nonfinite: str = "stop"
    precision: str = "32"  # as it is reported
    profiles: bool = False  # the profiler's results are wanted
    single_steps_until: int = 0  # chunks of one step up to this step, to find one exactly
    position: Position = field(default_factory=Position)
    profiler: Profiler = field(default_factory=Profiler)
    logs: dict[str, float] = field(default_factory=dict)  # latest values, by Keras' names
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # latest, by event
    step_logs: Any = None  # `StepLogs` of the last chunk
    stop_reason: str | None = None
    epoch_complete: bool = False
    remake_engine: Callable[[], Engine] | None = None  # for what the session's model is now
    sound: bool = True  # the engine's state is that of the position

    @cached_property
    def view(self) -> SessionView:
        """What callbacks get of this."""
        return SessionView(self)

    @property
    def model(self) -> Any:
        """The Keras model, brought up to date."""
        self.session.publish()
        return self.session.model

    @property
    def steps_in_epoch(self) -> int:
        """How many batches an epoch has."""
        return self.accumulation.steps_in_epoch

    @property
    def endless(self) -> bool:
        """Whether no number of epochs ends the training."""
        return self.max_epochs == ENDLESS

    @property
    def of_epochs(self) -> str:
        """What is said after the number of an epoch: "/25", if an end is known."""
        return "" if self.endless else f"/{self.max_epochs}"

    def recompile(self) -> None:
        """Make the engine anew, for what the model is now; the state stays."""
        assert self.remake_engine is not None
        state = self.engine.export_state()
        self.engine = self.remake_engine()
        self.engine.import_state(state)
        for feed in (self.feed, self.validation_feed):
            if feed is not None:
                feed.engine = self.engine
        if not self.position.step_in_epoch and self.position.epoch < self.max_epochs:
            compile_programs(self)

    def stop(self, reason: str, *, force: bool = False) -> None:
        """Ask the loop to end at the next boundary; the first reason is kept.

        Before ``min_epochs`` epochs nobody is heard but signals and `max_steps` (``force``).
        """
        ended = self.epoch_complete and self.position.step_in_epoch > 0
        if force or self.position.epoch + ended >= self.min_epochs:
            self.stop_reason = self.stop_reason or reason

    def notify(self, hook: str, *args: Any) -> None:
        """Call ``hook`` of every callback, in order."""
        for callback in self.callbacks:
            with self.profiler.section(callback.section):
                getattr(callback, hook)(self.view, *args)
        with self.profiler.section("checkpoint"):
            self.keeper.after_hook(self, hook)

    def plan(self, limit: int | None = None) -> EpochPlan:
        """Return the plan of the epoch at the position, or of its first ``limit`` steps."""
        limit = min(self.steps_in_epoch, limit or self.steps_in_epoch)
        return plan_of(self.data, self.seed, self.position.epoch, limit)

    def open_epoch(self, start: int | None = None) -> EpochPlan:
        """Return the plan of the epoch at the position, and let the feed begin there.

        Or at its step ``start``.
        """
        with self.profiler.section("data"):
            plan = self.plan()
            self.feed.open(plan, self.position.step_in_epoch if start is None else start)
        return plan

    def learning_rates(self, steps: np.ndarray) -> np.ndarray:
        """Return the learning rates of ``steps``, float32, by the schedule or the optimizer's."""
        if self.schedule is not None:
            return self.schedule(steps) * np.float32(self.position.lr_scale)
        if not self.engine.sets_learning_rate:
            updates = self.accumulation.updates(steps)
            return self.engine.scheduled_rates(updates + self.iterations_before)
        return np.full(len(steps), self.engine.learning_rate(), np.float32)

    def step_plan(self, first: int) -> StepPlan:
        """Return what the steps of a chunk take, from step ``first`` on."""
        steps = np.arange(first, first + self.feed.chunk_steps)
        rates = self.learning_rates(steps)
        numbers, shares, pulls = steps.astype(np.int32), None, None
        accumulated = self.accumulation.means(steps, self.position.skipped)
        if (averaging := self.averaging) is not None:
            rates = averaging.learning_rates(self.view, steps, rates)
            shares, pulls = averaging.shares(self.view, steps), averaging.pulls(self.view, steps)
        return StepPlan(rates, numbers, shares, pulls, accumulated)

    def log(self, event: str, epoch: int, step: int, values: dict[str, Any]) -> None:
        """Hand a record to every logger."""
        record = {"event": event, "epoch": epoch, "step": step, **values}
        self.records[event] = record
        with self.profiler.section("logging"):
            self.jsonl.log(record)
            self.loggers.log(record)

    def manifest(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the arrays, as JSON values, copied.

        Callbacks may hand out lists of their own, and go on while the checkpoint is written.
        """
        manifest = {
            "step": self.position.step,
            "epoch": self.position.epoch,
            "backend": self.run.summary.get("backend"),
            "seed": self.seed,
            "data": self.data_identity(),
            "position": asdict(self.position),
            "logs": {k: v if math.isfinite(v) else None for k, v in self.logs.items()},
            "callbacks": {k: state for k, c in named(self.callbacks) if (state := c.state_dict())},
            "metrics": self.jsonl.state_dict(),
            "config": self.run.config,
            "versions": self.run.summary.get("versions"),
        }
        self.notify("on_save_checkpoint", manifest)
        return deepcopy(manifest)

    def data_identity(self) -> dict[str, Any]:
        """Return what must be the same on a resume, for the batches to be the same."""
        return {
            "sha256": self.data.source.sha256,
            "training examples": len(self.data.train),
            "batch_size": self.data.batch_size,
            "augment": [repr(augmentation) for _, augmentation in self.data.augment],
            "steps in an epoch": self.steps_in_epoch,
            **({"class_weight": self.data.class_weight} if self.data.class_weight else {}),
            **({"last_batch": self.last_batch} if self.last_batch == "fill" else {}),
            **({"sampling": "balanced"} if self.data.sampling == "balanced" else {}),
            **({"views": self.data.train.views} if self.data.train.views > 1 else {}),
        }


def named(callbacks: list[Any]) -> list[tuple[str, Any]]:
    """Name callbacks by their class, and the second of a class "Class-2"."""
    seen: Counter[str] = Counter()
    names = []
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        names.append((name if seen[name] == 1 else f"{name}-{seen[name]}", callback))
    return names
