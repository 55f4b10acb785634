"""The training loop: one flat story from the plan of an epoch to its checkpoint.

All state that a resume needs is in the engine (weights, optimizer, seeds, metric sums), in the
position and in what callbacks and loggers keep; everything else follows from (seed, epoch).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from fmnist_keras3.data.plan import EpochPlan, evaluation_plan
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.ground.errors import Diverged
from fmnist_keras3.training import averaging
from fmnist_keras3.training.feeds import Feed
from fmnist_keras3.training.fit import Fit
from fmnist_keras3.training.pace import Pace


def train(fit: Fit) -> None:
    """Train until the last epoch or step, a callback's stop, or a signal."""
    validation_steps = fit.validation_feed.chunk_steps if fit.validation_feed is not None else 1
    pace, evaluation_pace = Pace(fit.feed.chunk_steps), Pace(validation_steps)
    while fit.position.epoch < fit.max_epochs and (not stopping(fit) or ended_by_max_steps(fit)):
        plan = fit.open_epoch()
        fit.epoch_complete = False
        fit.notify("on_train_epoch_start")
        while True:
            fit.signals.agree()
            fit.epoch_complete = fit.position.step_in_epoch == plan.steps
            if validation_due(fit, ending := stopping(fit) or fit.epoch_complete):
                validate(fit, evaluation_pace, log=not ending)
            if ending or stopping(fit):
                break
            if fit.position.step + 1 in fit.position.skipped:
                fit.feed.take(1)
                fit.position.skip()
            else:
                count = fit.engine.world.agree(pace.steps(steps_to_boundary(fit, plan)))
                train_chunk(fit, plan, count, pace)
        if not fit.signals.received:
            end_epoch(fit)


def train_chunk(fit: Fit, plan: EpochPlan, count: int, pace: Pace) -> None:
    """Take ``count`` steps on the device; the results come back when all are done."""
    position, first = fit.position, fit.position.step
    step_plan = fit.step_plan(first)
    started = time.perf_counter()
    with fit.profiler.section("data"):
        chunk = fit.feed.take(count)
    fit.sound = False  # the state moves on, the position not yet
    with fit.profiler.section("step"):
        logs = fit.engine.train(chunk, step_plan)  # waits for the device
    seconds = time.perf_counter() - started
    pace.measured(count, seconds)
    if (bad := logs.first_bad()) is not None:
        step, what = first + 1 + bad, "update" if np.isfinite(logs.loss[bad]) else "loss"
        raise Diverged(
            f"The {what} of step {step} (epoch {position.epoch + 1}) is not finite.", step
        )
    position.advance(logs, chunk.valid[:count], seconds)
    fit.sound, fit.step_logs = True, logs
    for i in range(count):
        if fit.log_every_n_steps and (first + i + 1) % fit.log_every_n_steps == 0:
            values = {"loss": float(logs.loss[i]), "lr": float(step_plan.rates[i])}
            values |= {name: float(array[i]) for name, array in logs.logged.items()}
            fit.log("step", position.epoch + 1, first + i + 1, values)
    fit.logs = {
        "loss": position.loss_sum / position.examples,
        **fit.engine.metric_results(),
        "penalty": position.penalty,
        "lr": float(step_plan.rates[count - 1]),
    }
    fit.notify("on_chunk_end")


def validation_due(fit: Fit, ending: bool) -> bool:
    """Tell whether a validation comes now, which there was none of at this step yet."""
    position = fit.position
    done = position.validated == position.step
    if fit.validation_feed is None or fit.signals.received or done:
        return False
    if (position.epoch + 1) % fit.check_val_every_n_epoch:
        return False
    every = fit.val_every_n_steps
    return ending or bool(every and position.step_in_epoch and not position.step_in_epoch % every)


def validate(fit: Fit, pace: Pace, log: bool) -> None:
    """Evaluate on the validation split; at an epoch's end the log of it comes with the epoch's.

    A signal meanwhile leaves it to the resume, as if it had come before.
    """
    position, feed = fit.position, fit.validation_feed
    assert feed is not None
    fit.notify("on_validation_start")
    with fit.profiler.section("validation"):

        def stop() -> bool:
            fit.signals.agree()
            return fit.signals.received is not None

        measure = partial(evaluate, fit.engine, feed, fit.data.batch_size, pace, stop)
        values = measure()[0]
        if fit.averaging is not None and fit.averaging.began(fit.view) and not stop():
            with averaging.applied(fit):
                values |= {f"averaged_{name}": value for name, value in measure()[0].items()}
    if fit.signals.received:
        return
    position.validated = position.step
    fit.logs.update({f"val_{name}": value for name, value in values.items()})
    if log:
        fit.log("validation", position.epoch + 1, position.step, values)
    fit.notify("on_validation_end")


def end_epoch(fit: Fit) -> None:
    """Log the epoch and move on; one that was cut short keeps its position."""
    position, epoch = fit.position, fit.position.epoch + 1
    rate = position.examples / max(position.seconds, 1e-9)
    speed = {"seconds": position.seconds, "images_per_second": rate}
    position.ended = position.step
    validation = {k[4:]: v for k, v in fit.logs.items() if k.startswith("val_")}
    values = {k: v for k, v in fit.logs.items() if not k.startswith("val_")}
    fit.log("train", epoch, position.step, {**values, **speed})
    if validation and position.validated == position.step:
        fit.log("validation", epoch, position.step, validation)
    if fit.epoch_complete:
        position.next_epoch()
        fit.engine.reset_metrics()
    fit.notify("on_train_epoch_end")


def evaluate(
    engine: Engine,
    feed: Feed,
    batch_size: int,
    pace: Pace | None = None,
    stop: Callable[[], bool] = lambda: False,
    verb: str = "validate",
) -> tuple[dict[str, float], np.ndarray]:
    """Return loss and metrics over the feed's whole split, and the outputs in its order.

    Where ``stop`` comes to be true between two chunks, what was seen until then. For the ``verb``
    "predict" only the outputs mean something.
    """
    plan = evaluation_plan(len(feed.split), batch_size)
    pace = pace or Pace(feed.chunk_steps, first=8)
    return engine.infer(feed.chunks(plan, pace, stop), verb)


def stopping(fit: Fit) -> bool:
    """Tell whether training ends here: a signal, a callback, or the last step."""
    if fit.signals.received:
        fit.stop(fit.signals.received, force=True)
    if fit.max_steps is not None and fit.position.step >= fit.max_steps:
        fit.stop(f"max_steps {fit.max_steps} reached", force=True)
    return fit.stop_reason is not None


def ended_by_max_steps(fit: Fit) -> bool:
    """Tell whether the run was stopped between its last step, of `max_steps`, and `end_epoch`."""
    position = fit.position
    last = position.step == fit.max_steps and position.step_in_epoch > 0
    return last and position.ended < position.step and not fit.signals.received


def steps_to_boundary(fit: Fit, plan: EpochPlan) -> int:
    """Return how many steps may be taken before something has to happen between two steps."""
    step, step_in_epoch = fit.position.step, fit.position.step_in_epoch
    ends = [step - step_in_epoch + fit.feed.ends_at(plan, step_in_epoch), fit.max_steps]
    ends += [skipped - 1 for skipped in fit.position.skipped if skipped > step]
    if step < fit.single_steps_until:
        ends.append(step + 1)
    if fit.val_every_n_steps:
        past = step_in_epoch % fit.val_every_n_steps
        ends.append(step + fit.val_every_n_steps - past)
    ends += [callback.next_event(fit.view, step) for callback in fit.callbacks]
    return min(end for end in ends if end is not None and end > step) - step
