"""Puts a fit together from the arguments of a Trainer."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.limits import limited
from fmnist_keras3.data.stream import stream_of
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.module import Module
from fmnist_keras3.runs.jsonl import JSONLLogger
from fmnist_keras3.runs.keeper import Keeper
from fmnist_keras3.runs.rundir import PLOTS, RunDirectory, new_run_path
from fmnist_keras3.training.accumulation import Accumulation
from fmnist_keras3.training.arguments import batches, batches_in_epoch
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.feeds import Feed, ResidentFeed, StreamFeed
from fmnist_keras3.training.fit import ENDLESS, Fit
from fmnist_keras3.training.module_hooks import ModuleHooks
from fmnist_keras3.training.passing_feed import PassingFeed
from fmnist_keras3.training.schedules import Schedule, make_schedule
from fmnist_keras3.training.session import Session
from fmnist_keras3.training.signals import StopSignals

if TYPE_CHECKING:
    from fmnist_keras3.training.trainer import Trainer

PIPELINES = {"resident": ResidentFeed, "stream": StreamFeed, "dataset": PassingFeed}
RESIDENT_BYTES = 2 * 2**30  # the largest training split that "auto" puts on the device
CHUNK_BYTES = 256 * 2**20
READ_CHUNK_BYTES = CHUNK_BYTES // 4  # of data that is not to fill the memory


def run_path(trainer: Trainer, model: keras.Model, data: DataModule) -> Path:
    """Return the folder of a run that begins, made anew unless ``run_dir`` says which."""
    if trainer.run_dir is not None:
        return Path(trainer.run_dir)
    synthetic = data.describe()["name"] == "synthetic"
    backend = keras.backend.backend()
    return new_run_path(trainer.default_root_dir, model.name, backend, synthetic)


def own_copy(run: Path | None) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """Return a folder of this process's own, and in it the place of a copy of ``run``, if any.

    Of many processes the first writes the run. The others do the same in such a folder, so that
    all take the same way.
    """
    folder = tempfile.TemporaryDirectory(prefix="fmnist-")
    path = Path(folder.name) / "run"
    if run is not None and run.exists():
        shutil.copytree(run, path, ignore=shutil.ignore_patterns(".lock", PLOTS))
    return folder, path


def make_fit(
    trainer: Trainer, session: Session, data: DataModule, engine: Engine, run: RunDirectory
) -> Fit:
    """Return the fit that a Trainer's arguments ask for; raises UserError where they cannot be."""
    model = session.model
    accumulation = make_accumulation(trainer, data)
    steps = accumulation.steps_in_epoch
    epochs = trainer.max_epochs or -(-(trainer.max_steps or 0) // steps)
    total = min(epochs * steps, trainer.max_steps or epochs * steps)
    means = accumulation.means(np.array([total - 1]))
    if means is not None and not means[0]:
        warnings.warn(
            f"Training ends at step {total}, amid an accumulation of {accumulation.batches} "
            "batches: the last ones make no update, unless the run is resumed.",
            stacklevel=4,
        )
    every = trainer.val_check_interval
    schedule = _schedule(trainer, engine, epochs, steps, total)
    saves = trainer.enable_checkpointing and not (trainer.barebones or trainer.fast_dev_run)
    validation = _validation(trainer, data)
    return Fit(
        session=session,
        engine=engine,
        data=data,
        feed=make_feed(
            trainer.pipeline, data.train, engine, data.batch_size, data.augment, training=True
        ),
        validation_feed=(
            None
            if validation is None
            else make_feed(trainer.pipeline, validation, engine, data.batch_size)
        ),
        run=run,
        keeper=Keeper(run.checkpoints, enabled=saves),
        callbacks=_callbacks(trainer, session, saves, writes=engine.world.rank == 0),
        jsonl=JSONLLogger(run.path),
        loggers=trainer.loggers,
        signals=StopSignals(engine.world),
        averaging=trainer._filling("averaging"),
        seed=trainer.seed,
        max_epochs=epochs,
        max_steps=trainer.max_steps,
        min_epochs=trainer.min_epochs,
        val_every_n_steps=None if every is None else batches(every, steps),
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        accumulation=accumulation,
        schedule=schedule,
        last_batch=trainer.last_batch,
        log_every_n_steps=trainer.log_every_n_steps,
        num_sanity_val_steps=trainer.num_sanity_val_steps,
        on_nonfinite=trainer.on_nonfinite,
        precision=trainer.precision or model.dtype_policy.name,
        profiles=trainer.profiler == "simple",
        remake_engine=partial(trainer._engine_for, session, data.train, data.batch_size),
    )


def _schedule(
    trainer: Trainer, engine: Engine, epochs: int, steps: int, total: int
) -> Schedule | None:
    """Return the schedule over ``total`` steps, ``steps`` an epoch; None: the optimizer's rate."""
    if trainer.schedule not in (None, "constant") and epochs == ENDLESS:
        raise UserError(
            f"The schedule {trainer.schedule} goes by the length of the training, and max_epochs "
            "is -1. Give a number of epochs or max_steps, or schedule='constant'."
        )
    name = trainer.schedule or getattr(engine.model, "schedule", None)
    if name is None:
        return None
    if len(engine.step.phases) > 1:
        raise UserError(
            f"The schedule {name} is for one optimizer, and {engine.model.name} has several. Give "
            "each a keras.optimizers.schedules.LearningRateSchedule as its learning_rate."
        )
    if not engine.sets_learning_rate:
        raise UserError(
            "The optimizer has a learning-rate schedule of its own. Compile the model with "
            "a number as learning_rate, or leave out the Trainer's schedule."
        )
    warmup = round(min(trainer.warmup, 0.2 * epochs) * steps)
    return make_schedule(name, engine.learning_rate(), total, warmup)


def _callbacks(trainer: Trainer, session: Session, saves: bool, writes: bool) -> list[Callback]:
    """Return the given callbacks and those that the Trainer brings, in the order of hooks."""
    callbacks = [leaf("summary")(), *trainer.callbacks]
    if isinstance(session.model, Module):
        callbacks.append(ModuleHooks(session.model, trainer, session))
    if trainer.profiler == "trace":
        callbacks.append(leaf("trace")())
    if trainer.max_time is not None:
        callbacks.append(leaf("timer")(trainer.max_time))
    wanted = {
        "checkpoints": saves,
        "progress bar": trainer.enable_progress_bar and writes,
        "model summary": trainer.enable_model_summary and writes and screen.on_screen(),
    }
    for role, wants in wanted.items():
        if wants and trainer._filling(role) is None:
            callbacks.append(leaf(role)())
    return sorted(callbacks, key=lambda callback: callback.order)


def _validation(trainer: Trainer, data: DataModule) -> Split | None:
    if data.validation is None or trainer.limit_val_batches == 0:
        return None
    total = -(-len(data.validation) // data.batch_size)
    count = batches(trainer.limit_val_batches, total)
    return limited(data.validation, count, data.batch_size)


def make_feed(
    pipeline: str,
    split: Split,
    engine: Engine,
    batch_size: int,
    augment: Any = (),
    *,
    training: bool = False,
) -> Feed:
    """Return what gives the batches of ``split``, through a `Trainer`'s ``pipeline``."""
    if stream_of(split) is not None:
        if pipeline == "resident":
            raise UserError(
                "pipeline is 'resident', for a dataset that is streamed, as it does not fit into "
                "memory or never ends. Leave pipeline out."
            )
        pipeline = "dataset"
    elif pipeline == "auto":
        small = split.in_memory and split.nbytes <= RESIDENT_BYTES
        pipeline = "resident" if small else "stream"
    # Within a fit the examples of another verb may come in larger batches.
    steps = min(engine.chunk_steps, steps_in_memory(split, batch_size))
    return PIPELINES[pipeline](split, engine, augment, chunk_steps=steps, training=training)


def make_accumulation(trainer: Trainer, data: DataModule) -> Accumulation:
    """Return when the optimizer makes its updates in a training on ``data``."""
    steps = batches_in_epoch(len(data.train), data.batch_size, trainer.last_batch)
    return Accumulation(
        trainer.accumulate_grad_batches, batches(trainer.limit_train_batches, steps)
    )


def steps_in_memory(split: Split, batch_size: int) -> int:
    """Return how many batches of ``split`` a chunk may have for its bytes, at least one."""
    most = CHUNK_BYTES if split.in_memory else READ_CHUNK_BYTES
    return max(1, most // max(1, batch_size * split.nbytes // len(split)))
