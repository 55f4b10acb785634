"""The training loop: one flat story from the plan of an epoch to its checkpoint.

All state that a resume needs is in the engine (weights, optimizer, seeds, metric sums) and in the
position; everything else follows from (seed, epoch).
"""

from __future__ import annotations

import time

import numpy as np

from fmnist_keras3.data.feeds import Feed
from fmnist_keras3.data.plan import EpochPlan, evaluation_plan
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.errors import Diverged
from fmnist_keras3.training.fit import Fit

CHUNK_SECONDS = 1.0  # how much work goes to the device at once; a stop waits for it


def train(fit: Fit) -> None:
    """Train until the last epoch or step, a callback's stop, or a signal."""
    pace = Pace(fit.engine.chunk_steps)
    while fit.position.epoch < fit.max_epochs and not stopping(fit):
        plan = fit.open_epoch()
        fit.epoch_complete = False
        fit.notify("on_train_epoch_start")
        while fit.position.step_in_epoch < plan.steps and not stopping(fit):
            train_chunk(fit, plan, pace.steps(steps_to_boundary(fit, plan)), pace)
        fit.epoch_complete = fit.position.step_in_epoch == plan.steps
        if fit.epoch_complete or not fit.signals.received:
            end_epoch(fit)


def train_chunk(fit: Fit, plan: EpochPlan, count: int, pace: Pace) -> None:
    """Take ``count`` steps on the device; the results come back when all are done."""
    position, first = fit.position, fit.position.step
    rates = fit.learning_rates(np.arange(first, first + fit.engine.chunk_steps))
    started = time.perf_counter()
    with fit.profiler.section("data"):
        chunk = fit.feed.take(count)
    with fit.profiler.section("step"):
        logs = fit.engine.train(chunk, rates)  # waits for the device
    seconds = time.perf_counter() - started
    pace.measured(count, seconds)
    if not np.isfinite(logs.loss).all():
        bad = first + 1 + int(np.argmin(np.isfinite(logs.loss)))
        raise Diverged(f"The loss of step {bad} (epoch {position.epoch + 1}) is not finite.")
    position.advance(logs, chunk.valid[:count], seconds)
    for i in range(count):
        if fit.log_every_n_steps and (first + i + 1) % fit.log_every_n_steps == 0:
            values = {"loss": float(logs.loss[i]), "lr": float(rates[i])}
            fit.log("step", position.epoch + 1, first + i + 1, values)
    fit.logs = {
        "loss": position.loss_sum / position.examples,
        **fit.engine.metric_results(),
        "penalty": position.penalty,
        "lr": float(rates[count - 1]),
    }
    fit.notify("on_chunk_end")


def end_epoch(fit: Fit) -> None:
    """Validate, log, and move on; an epoch cut short by `max_steps` keeps its position."""
    position, epoch = fit.position, fit.position.epoch + 1
    rate = position.examples / max(position.seconds, 1e-9)
    speed = {"seconds": position.seconds, "images_per_second": rate}
    fit.log("train", epoch, position.step, {**fit.logs, **speed})
    if fit.validation_feed is not None:
        with fit.profiler.section("validation"):
            values = evaluate(fit.engine, fit.validation_feed, fit.data.batch_size)[0]
        fit.logs.update({f"val_{name}": value for name, value in values.items()})
        fit.log("validation", epoch, position.step, values)
    if fit.epoch_complete:
        position.next_epoch()
        fit.engine.reset_metrics()
    fit.notify("on_train_epoch_end")


def evaluate(engine: Engine, feed: Feed, batch_size: int) -> tuple[dict[str, float], np.ndarray]:
    """Return loss and metrics over the feed's whole split, and the outputs in its order."""
    return engine.infer(feed.chunks(evaluation_plan(len(feed.split), batch_size)))


def stopping(fit: Fit) -> bool:
    """Tell whether training ends here: a signal, a callback, or the last step."""
    if fit.signals.received:
        fit.stop(fit.signals.received)
    if fit.max_steps is not None and fit.position.step >= fit.max_steps:
        fit.stop(f"max_steps {fit.max_steps} reached")
    return fit.stop_reason is not None


def steps_to_boundary(fit: Fit, plan: EpochPlan) -> int:
    """Return how many steps may be taken before something has to happen between two steps."""
    step, left = fit.position.step, plan.steps - fit.position.step_in_epoch
    if fit.max_steps is not None:
        left = min(left, fit.max_steps - step)
    for callback in fit.callbacks:
        if every := getattr(callback, "every_n_steps", None):
            left = min(left, every - step % every)
    return left


class Pace:
    """Chooses chunk lengths so that each takes about `CHUNK_SECONDS`; bits do not depend on it."""

    def __init__(self, most: int) -> None:
        self.most, self.rate = most, 0.0

    def steps(self, left: int) -> int:
        """Return the next chunk's length, at most ``left``; the very first is one step."""
        return max(1, min(left, self.most, round(self.rate * CHUNK_SECONDS)))

    def measured(self, count: int, seconds: float) -> None:
        """Learn from a chunk; a short one says little, so the rate at most quadruples."""
        rate = count / max(seconds, 1e-9)
        self.rate = min(rate, 4 * self.rate) if self.rate else rate
