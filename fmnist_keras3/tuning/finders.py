"""Learning rate and batch size from a trial: what Lightning's Tuner finds, with its names.

Both run the trainer's own programs on its own batches, as a fit would, and put every bit of the
training state back afterwards. They write no files.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.given import as_datamodule
from fmnist_keras3.data.limits import overfitted
from fmnist_keras3.data.plan import EpochPlan
from fmnist_keras3.data.stream import plan_of
from fmnist_keras3.engines import out_of_memory
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.engines.chunk import Chunk, StepPlan
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.training.accumulation import Accumulation
from fmnist_keras3.training.feeds import Feed
from fmnist_keras3.training.pace import Pace
from fmnist_keras3.training.prepare import set_from_data
from fmnist_keras3.training.programs import Programs
from fmnist_keras3.training.session import Session
from fmnist_keras3.training.setup import make_accumulation, make_feed

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.training.trainer import Trainer

SMOOTHING = 0.98  # of the loss: the share that the average keeps at each step
TIMING_SECONDS = 0.25  # of one of the timings of a batch size
TRIAL_SECONDS = 0.5  # of all of them; the fastest counts, as other programs only slow it down
FAST_ENOUGH = 0.95  # of the highest speed, for a batch size to be suggested


@dataclass(frozen=True)
class LRFinder:
    """What `Tuner.lr_find` found.

    ``results``: "lr", "loss" (averaged as `suggestion` wants it) and "batch_loss" (as it was), one
    value a step. ``stopped`` tells why the search ended before its last step, or is None.
    """

    mode: str
    results: dict[str, list[float]]
    stopped: str | None
    title: str
    synthetic: bool = False

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the rate at which the averaged loss falls most steeply, or None.

        Leaves out the first ``skip_begin`` and last ``skip_end`` steps; None where fewer than two
        are left, or where the loss falls nowhere.
        """
        found = self._steepest(skip_begin, skip_end)
        return None if found is None else self.results["lr"][found]

    def _steepest(self, skip_begin: int = 10, skip_end: int = 1) -> int | None:
        losses = np.array(self.results["loss"])[skip_begin : len(self.results["loss"]) - skip_end]
        if len(losses) < 2:
            return None
        # A step is a factor or a difference of the rate, by mode: the slope of the curve as drawn.
        slopes = np.gradient(losses)
        return None if slopes.min() >= 0 else skip_begin + int(np.argmin(slopes))

    def plot(self, path: str | Path | None = None, suggest: bool = True) -> Any:
        """Draw loss against rate; returns ``path``, or the Matplotlib figure where none is given.

        ``suggest`` marks the `suggestion`.
        """
        from fmnist_keras3.evaluation.plots import learning_rates

        marked = self._steepest() if suggest else None
        note = self.stopped or "steps of training with a rising learning rate"
        return learning_rates(
            self.results, marked, path, self.title, note, self.mode == "exponential", self.synthetic
        )

    def __repr__(self) -> str:
        rates, found = self.results["lr"], self.suggestion()
        suggestion = "no suggestion" if found is None else f"suggestion {found:.2g}"
        span = f"{rates[0]:.2g} to {rates[-1]:.2g}" if rates else "none"
        return f"LRFinder({len(rates)} rates, {span}; {suggestion})"


@dataclass(frozen=True)
class BatchSizeFinder:
    """What `Tuner.scale_batch_size` found.

    ``results``: one dict a size that was tried, with "batch_size", "fits" and "images_per_second"
    (of training proper, without compilation; None where it does not fit). ``limit`` tells what
    bounds the largest.
    """

    results: list[dict[str, Any]]
    limit: str

    @property
    def largest(self) -> int | None:
        """The largest size that fits, of those that were tried; None where none does."""
        return max((r["batch_size"] for r in self._fitting), default=None)

    @property
    def fastest(self) -> int | None:
        """The size with the most images a second."""
        best = max(self._fitting, key=lambda r: r["images_per_second"], default=None)
        return None if best is None else best["batch_size"]

    def suggestion(self) -> int | None:
        """Return the smallest size that has nearly (95 %) the highest speed.

        Larger ones take fewer steps an epoch, for nothing.
        """
        most = max((r["images_per_second"] for r in self._fitting), default=0)
        fast = [r for r in self._fitting if r["images_per_second"] >= FAST_ENOUGH * most]
        return min((r["batch_size"] for r in fast), default=None)

    @property
    def _fitting(self) -> list[dict[str, Any]]:
        return [result for result in self.results if result["fits"]]

    def __repr__(self) -> str:
        rows = [f"{'batch size':>10}  {'images/s':>10}"]
        for r in sorted(self.results, key=lambda r: r["batch_size"]):
            speed = f"{r['images_per_second']:,.0f}" if r["fits"] else "too large"
            rows.append(f"{r['batch_size']:>10}  {speed:>10}")
        rows.append(f"largest {self.largest} ({self.limit}), fastest {self.fastest}")
        return "\n".join(rows)


class Tuner:
    """Finds a learning rate or a batch size for a ``trainer`` before it trains.

    Model, optimizer, metrics and seeds are as before afterwards, to the bit, also after an
    exception; no files are written.

    Example: ``Tuner(Trainer()).lr_find(model, FashionMNIST()).suggestion()``
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @explained
    def lr_find(
        self,
        model: keras.Model,
        data: Any,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = False,
    ) -> LRFinder:
        """Train ``num_training`` steps while the rate rises from ``min_lr`` to ``max_lr``.

        ``mode`` is "exponential" or "linear". The search ends early where the loss is not finite,
        or its average more than ``early_stop_threshold`` times the lowest (None: never).
        ``update_attr`` sets the optimizer's learning rate to the suggestion. Smith (2015), Cyclical
        Learning Rates. Raises UserError for values out of range and an optimizer's own schedule.
        """
        _check_mode(mode, ("exponential", "linear"))
        _check_least(num_training=(num_training, 2))
        if not 0 < min_lr < max_lr < np.inf:
            raise UserError(
                f"The rates are min_lr {min_lr} and max_lr {max_lr}; they must be above 0, and "
                "min_lr the smaller one."
            )
        if early_stop_threshold is not None and not early_stop_threshold > 1:
            raise UserError(f"early_stop_threshold is {early_stop_threshold}; it must be above 1.")
        trainer, data = self.trainer, self._module_of(data, model)
        if trainer.overfit_batches:
            data = overfitted(data, trainer.overfit_batches)
        space = np.geomspace if mode == "exponential" else np.linspace
        rates = space(min_lr, max_lr, num_training).astype(np.float32)
        search = _Search(early_stop_threshold)
        with Session(model, "lr_find") as session:
            engine = trainer._engine_for(session, data.train, data.batch_size)
            if not engine.sets_learning_rate or len(engine.step.phases) > 1:
                raise UserError(
                    "The search needs one optimizer, with a number as its learning_rate, and no "
                    "schedule of its own."
                )
            accumulation = make_accumulation(trainer, data)
            size, augment = data.batch_size, data.augment
            feed = make_feed(trainer.pipeline, data.train, engine, size, augment, training=True)
            plan_at = partial(plan_of, data, trainer.seed, limit=accumulation.steps_in_epoch)
            with _restored(engine, feed):
                set_from_data(engine, data.train.x)
                for chunk in _chunks(feed, num_training, plan_at):
                    first = len(search.losses)
                    logs = engine.train(chunk, _step_plan(engine, accumulation, first, rates))
                    if not search.add(logs.loss):
                        break
        taken = len(search.losses)
        if search.stopped:
            search.stopped += f" at step {taken + 1}, learning rate {rates[taken]:.2g}"
        found = LRFinder(
            mode,
            {
                "lr": [float(rate) for rate in rates[:taken]],
                "loss": search.averages,
                "batch_loss": search.losses,
            },
            search.stopped,
            f"Learning rates of {model.name}, batch {data.batch_size}",
            data.describe()["name"] == "synthetic",
        )
        if update_attr and (rate := found.suggestion()) is not None:
            engine.set_learning_rate(rate)
        return found

    @explained
    def scale_batch_size(
        self,
        model: keras.Model,
        data: Any,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        max_val: int = 4096,
    ) -> BatchSizeFinder:
        """Try batch sizes from ``init_val`` on, and time ``steps_per_trial`` steps or more of each.

        Doubles the size until one does not fit into memory, up to ``max_val`` and the training
        split's length, in at most ``max_trials`` trials. ``mode`` "binsearch" then closes in on the
        limit by halves; "power" does not. The optimizer keeps its learning rate; a much larger
        batch wants another one. Raises UserError for values outside their range.
        """
        _check_mode(mode, ("power", "binsearch"))
        _check_least(
            steps_per_trial=(steps_per_trial, 1),
            init_val=(init_val, 1),
            max_trials=(max_trials, 1),
            max_val=(max_val, init_val),
        )
        data = self._module_of(data, model)
        most = min(max_val, len(data.train))
        limit = f"max_val {max_val}"
        if most < max_val:
            limit = f"the training split has {most} examples"
        results: list[dict[str, Any]] = []
        size, fitting, failing = min(init_val, most), 0, most + 1
        with (
            Session(model, "scale_batch_size") as session,
            _restored(self.trainer._engine_for(session, data.train, data.batch_size)),
        ):
            while len(results) < max_trials:
                speed = self._speed(session, data, size, steps_per_trial)
                fits = speed is not None
                results.append({"batch_size": size, "fits": fits, "images_per_second": speed})
                if fits:
                    fitting = size
                else:
                    failing, limit = size, f"{size} is out of memory"
                doubling = all(result["fits"] for result in results)
                if doubling and 2 * size < failing:
                    size *= 2
                elif mode == "power" or failing - fitting <= 1:
                    break
                else:  # without a failure the limit itself comes first: it is likely to fit
                    size = most if doubling else (fitting + failing) // 2
            else:
                limit = f"max_trials {max_trials}"
        return BatchSizeFinder(results, limit)

    def _module_of(self, data: Any, model: keras.Model) -> DataModule:
        return as_datamodule(data, model=model, steps=self.trainer.limit_train_batches)

    def _speed(self, session, data, size: int, steps: int) -> float | None:
        """Return the images a second in batches of ``size``, or None where memory is too small."""
        # With an engine of its own, which takes its programs with it when it goes.
        trainer, data = copy.copy(self.trainer), copy.copy(data)
        trainer.programs, data.batch_size = Programs(), size
        try:
            engine = trainer._engine_for(session, data.train, size)
            pipeline, augment = trainer.pipeline, data.augment
            feed = make_feed(pipeline, data.train, engine, size, augment, training=True)
            try:
                plan = plan_of(data, trainer.seed, 0, engine.chunk_steps)
                rates = np.full(engine.chunk_steps, engine.learning_rate(), np.float32)
                step_plan = _step_plan(engine, make_accumulation(trainer, data), 0, rates)

                def run(steps: int) -> float:
                    images, started = 0, time.perf_counter()
                    for chunk in _chunks(feed, steps, lambda _: plan):
                        engine.train(chunk, step_plan)
                        images += int(chunk.valid[: chunk.count].sum())
                    return images / (time.perf_counter() - started)

                run(1)  # compiles
                speed, started = run(steps), time.perf_counter()
                more = max(steps, min(engine.chunk_steps, round(TIMING_SECONDS * speed / size)))
                while time.perf_counter() - started < TRIAL_SECONDS:
                    speed = max(speed, run(more))
                return speed
            finally:
                feed.close()
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            session.engine = None  # its state is of the trial


class _Search:
    """The losses of a search, averaged with `SMOOTHING`, until they diverge."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold, self.average = threshold, 0.0
        self.losses: list[float] = []
        self.averages: list[float] = []
        self.stopped: str | None = None

    def add(self, losses: np.ndarray) -> bool:
        """Take the losses of some steps; tells whether to go on."""
        for loss in losses.tolist():
            if not np.isfinite(loss):
                self.stopped = "the loss is not finite"
                return False
            self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
            # The average began at 0; this takes its share out, as in Adam.
            smooth = self.average / (1 - SMOOTHING ** (len(self.losses) + 1))
            lowest = min(self.averages, default=0.0)
            if self.threshold and 0 < self.threshold * lowest < smooth:
                self.stopped = f"the loss is more than {self.threshold:g} times its lowest"
                return False
            self.losses.append(loss)
            self.averages.append(smooth)
        return True


@contextmanager
def _restored(engine: Engine, feed: Feed | None = None) -> Iterator[None]:
    """Put back the engine's whole state, and that of its model, in the end."""
    state = engine.export_state()
    try:
        yield
    finally:
        engine.import_state(state)
        if feed is not None:
            feed.close()


def _chunks(feed: Feed, steps: int, plan_at: Callable[[int], EpochPlan]) -> Iterator[Chunk]:
    """Yield ``steps`` batches, over as many epochs as it takes."""
    for epoch in count():
        for chunk in feed.chunks(plan_at(epoch), Pace(feed.chunk_steps, first=steps)):
            yield dataclasses.replace(chunk, count=min(chunk.count, steps))
            steps -= chunk.count
            if steps <= 0:
                return


def _step_plan(
    engine: Engine, accumulation: Accumulation, first: int, rates: np.ndarray
) -> StepPlan:
    """Return what a chunk's steps from ``first`` on take; past the last, its rate again."""
    steps = np.arange(first, first + engine.chunk_steps)
    rates = rates[np.minimum(steps, len(rates) - 1)]
    return StepPlan(rates, accumulated=accumulation.means(steps))


def _check_mode(mode: str, allowed: tuple[str, ...]) -> None:
    if mode not in allowed:
        raise UserError(
            f"mode is {mode!r}.{nearest(str(mode), allowed)} It must be {' or '.join(allowed)}."
        )


def _check_least(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}.")
