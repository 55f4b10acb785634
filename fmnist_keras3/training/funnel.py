"""One fit from compilation to model.keras: the one way in and out for signals and exceptions."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import keras
import numpy as np

from fmnist_keras3.data.plan import evaluation_plan
from fmnist_keras3.ground.errors import Diverged, full_message
from fmnist_keras3.ground.files import write_json
from fmnist_keras3.models import macs
from fmnist_keras3.runs import checkpoints
from fmnist_keras3.runs.checkpoint import Checkpoint
from fmnist_keras3.runs.environment import environment
from fmnist_keras3.runs.history import read_history
from fmnist_keras3.runs.result import FitResult
from fmnist_keras3.training import averaging, resume, signals
from fmnist_keras3.training.compilation import compile_programs
from fmnist_keras3.training.fit import Fit, named
from fmnist_keras3.training.loop import train


def run_fit(fit: Fit, found: Checkpoint | None) -> FitResult:
    """Go through a fit inside the one funnel for signals and exceptions."""
    try:
        now = {**environment(), **_describe(fit)}
        fit.run.update(**now, status="running", reason=None)
        fit.loggers.begin(fit.run.path, _hyperparameters(fit))
        peak = fit.engine.learning_rate()  # a checkpoint brings that of its step
        if fit.schedule is not None:  # whatever happens, the next fit begins there, too
            fit.session.at_end(fit.engine.set_learning_rate, peak)
        if found is None:
            fit.jsonl.begin()
            fit.engine.reset_metrics()  # a fit before may have ended within an epoch
            fit.loggers.replay([])
        else:
            resume.restore(fit, found)
            checkpoints.point(fit.run.checkpoints, "last", found.path.name)
        resume.check_processes(fit)
        done = fit.accumulation.updates(np.array(fit.position.step))
        fit.iterations_before = fit.engine.iterations() - int(done)
        _train(fit, peak)
        fit.run.write_model(fit.model)
        status, reason = "completed", fit.stop_reason
        if fit.signals.received:  # perhaps after the last step, when the loop sees no more
            status, reason = "interrupted", fit.signals.received
        elif reason and fit.position.step != fit.max_steps:
            status = "stopped"
        fit.run.update(status=status, reason=reason)
    except BaseException as exception:
        _fail(fit, exception)
        raise
    finally:
        fit.feed.close()
    fit.loggers.finalize(status)
    if fit.signals.received == signals.CHECKPOINT and fit.engine.world.rank == 0:
        signals.requeue()
    profile = fit.profiler.results() if fit.profiles else None
    if profile is not None:
        write_json(fit.run.path / "profile.json", profile)
    return FitResult(
        status,
        reason,
        fit.run.path,
        read_history(fit.run.path, fit.run.summary),
        fit.keeper.last_model_path,
        fit.keeper.best_model_path,
        dict(fit.run.summary),
        profile,
    )


def _train(fit: Fit, peak: float) -> None:
    """Compile, run the loop, and bring the Keras model up to date, with ``peak`` for its rate."""
    if fit.position.epoch >= fit.max_epochs:
        warnings.warn(
            f"Nothing is left to train: the run has its {fit.position.epoch} epochs. To go on, "
            f"give more (now {fit.max_epochs}).",
            stacklevel=4,
        )
    else:
        compile_programs(fit)
        if fit.validation_feed is not None and fit.position.step == 0:
            _sanity_check(fit, fit.num_sanity_val_steps)
    roll_back = resume.Rollback(fit)
    with fit.signals:
        fit.notify("on_fit_start")
        fit.keeper.begin(fit)
        while True:
            try:
                train(fit)
                break
            except Diverged as failure:
                if fit.on_nonfinite == "stop":
                    raise
                roll_back(failure)
        fit.signals.agree()  # one may have come after the last step
        with fit.profiler.section("checkpoint"):
            fit.keeper.save_last(fit)  # to go on from, so before the optimizer's last word
        if not fit.signals.received:
            fit.engine.finish_optimizer()
        fit.notify("on_fit_end")
    fit.session.publish()
    if fit.schedule is not None:
        fit.engine.set_learning_rate(peak)
    if not fit.signals.received:
        averaging.finish(fit)


def _fail(fit: Fit, exception: BaseException) -> None:
    """Tell everybody of an exception, save what can be saved; raises nothing."""
    status = "failed"
    if isinstance(exception, Diverged):
        status = "diverged"
        exception.add_note(
            "A smaller learning rate, clipped gradients or on_nonfinite 'rollback' may help."
        )
    elif isinstance(exception, KeyboardInterrupt):
        status = "interrupted"
    reason = f"{type(exception).__name__}: {exception}"
    tells = {
        f"{name}.on_exception": partial(callback.on_exception, fit, exception)
        for name, callback in named(fit.callbacks)
    }
    tells["the last checkpoint"] = partial(fit.keeper.on_exception, fit, exception)
    tells["summary.json"] = partial(fit.run.update, status=status, reason=reason)
    tells["loggers"] = partial(fit.loggers.finalize, status)
    for name, tell in tells.items():
        try:
            tell()
        except Exception as another:  # must not hide the first
            if str(another) not in full_message(exception):
                exception.add_note(f"{name} failed, too: {another}")
    good = checkpoints.pointed(fit.run.checkpoints, "last")
    if good is not None and good.is_dir():
        exception.add_note(
            f"The last good checkpoint is {good}. To go on from it: --resume last --run_dir "
            f"{fit.run.path} (in Python: ckpt_path='last')."
        )


def _hyperparameters(fit: Fit) -> dict[str, Any]:
    """Return what loggers are told of a run: what it is of, and its settings."""
    names = ("backend", "device", "model", "parameters")
    known = {name: fit.run.summary[name] for name in names}
    return known | {"dataset": fit.run.summary["dataset"]["name"]} | _flat(fit.run.config)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: {"trainer": {"seed": 0}} is {"trainer/seed": 0}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}/") if inner else {prefix + name: value}
    return flat


def _sanity_check(fit: Fit, steps: int) -> None:
    """Validate on a few batches, so that a mistake there shows before the first epoch."""
    feed, size = fit.validation_feed, fit.data.batch_size
    if feed is not None and steps:
        examples = len(feed.split) if steps < 0 else min(steps * size, len(feed.split))
        fit.engine.infer(feed.chunks(evaluation_plan(examples, size)))


def _describe(fit: Fit) -> dict[str, Any]:
    data = fit.data.describe()
    promised, why = fit.engine.determinism()
    return {
        "backend": keras.backend.backend(),
        "device": fit.engine.device.name,
        "devices": fit.engine.device.count,
        "deterministic": promised,
        "deterministic_because": why,
        "precision": fit.precision,
        "pipeline": fit.feed.name,
        "dataset": data,
        "model": fit.model.name,
        "parameters": fit.model.count_params(),
        "macs": macs(fit.model),
        "seed": fit.seed,
        "batch_size": fit.data.batch_size,
        "augment": [name for name, _ in fit.data.augment],
    }
