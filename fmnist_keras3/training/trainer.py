"""The Trainer: Lightning's four verbs over a compiled Keras model."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmnist_keras3.data.datamodule import DataModule, as_datamodule, limited, overfitted
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.feeds import Feed, ResidentFeed, StreamFeed
from fmnist_keras3.data.plan import evaluation_plan
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.errors import Diverged, UserError, told
from fmnist_keras3.files import write_json
from fmnist_keras3.models import macs
from fmnist_keras3.training import checkpoint, resume, rundir, signals
from fmnist_keras3.training.arguments import (
    Amount,
    batches,
    check,
    check_precision,
    seconds,
)
from fmnist_keras3.training.callbacks import (
    Callback,
    ModelCheckpoint,
    Progress,
    Summary,
    Timer,
    Trace,
)
from fmnist_keras3.training.callbacks.keras_callback import KerasCallback
from fmnist_keras3.training.checkpoint import Checkpoint
from fmnist_keras3.training.fit import Fit, named
from fmnist_keras3.training.loggers import JSONLLogger, Logger, Loggers, make_loggers
from fmnist_keras3.training.loop import evaluate, train
from fmnist_keras3.training.prepare import set_accumulation, set_clipping, set_precision
from fmnist_keras3.training.schedules import make_schedule
from fmnist_keras3.training.signals import StopSignals

PIPELINES = {"resident": ResidentFeed, "stream": StreamFeed}
RESIDENT_BYTES = 2 * 2**30  # the largest training split that "auto" puts on the device
CHUNK_STEPS = {"cpu": 128}  # longest chunk; elsewhere a whole epoch may be one
CHUNK_BYTES = 256 * 2**20
PREDICT_BATCH = 128


@dataclass(frozen=True)
class FitResult:
    """What `Trainer.fit` returns.

    ``status``: "completed", "stopped" (by a callback) or "interrupted" (by a signal, named in
    ``reason``). ``history``: the records of metrics.jsonl. ``best_checkpoint``: None without
    validation. ``summary``: the content of summary.json. ``profile``: see `Profiler.results`, None
    without ``profiler="simple"``.
    """

    status: str
    reason: str | None
    run_dir: Path | None
    history: list[dict[str, Any]]
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    summary: dict[str, Any]
    profile: list[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        values = {
            k: f"{self.summary[k]:.4f}"
            for k in ("validation_loss", "validation_accuracy")
            if self.summary.get(k) is not None
        }
        shown = ", ".join(f"{k}={v}" for k, v in values.items())
        return f"FitResult({self.status}, epochs={self.summary.get('epochs')}, {shown})"


class Trainer:
    """Trains any compiled Keras model; argument names follow Lightning where they exist.

    ``max_epochs``, ``max_steps`` and ``max_time`` ("00:10:00", seconds, a timedelta) end the
    training, whichever comes first; before ``min_epochs`` neither a time nor a callback does.
    ``accumulate_grad_batches`` batches make one update of their mean gradient.
    ``gradient_clip_val`` limits the global norm of the gradients ("norm") or each number ("value",
    ``gradient_clip_algorithm``). ``precision`` is "32", "bf16-mixed" or "16-mixed" (with loss
    scaling; None: as the model is). ``schedule``
    ("cosine", see `schedules.SCHEDULES`) rules the learning rate, with the optimizer's as its peak
    and a linear rise over the first ``warmup`` epochs (at most a fifth of ``max_epochs``); None
    leaves the rate to the optimizer. ``label_smoothing`` is a rate in 0..1.
    ``limit_train_batches``, ``limit_val_batches`` and ``limit_test_batches`` are numbers of batches
    or fractions (0.1).
    ``overfit_batches`` trains and validates on the same few batches. ``fast_dev_run`` takes one
    batch, or so many, of everything and leaves no files. ``num_sanity_val_steps`` batches are
    validated before the first epoch. ``val_check_interval`` (steps, or a fraction of an epoch) adds
    validations within an epoch, ``check_val_every_n_epoch`` leaves out those of the others.
    ``barebones`` trains without checkpoints, records, bar and files, to measure what they cost.
    ``pipeline`` is "auto", "resident" or
    "stream". ``on_nonfinite`` says what follows a loss or weight that is not finite: "stop" raises
    Diverged; "rollback" goes back to the last good checkpoint and leaves the failed step out, and
    if that does not help, halves the learning rate, too (see `resume.Rollback`). ``logger`` is
    what takes the records besides metrics.jsonl: True (csv), a name ("csv", "tensorboard",
    "mlflow", "wandb", "trackio"), a `Logger`, or a list of them; one that fails is left out.
    ``profiler`` is "simple" (seconds and share of each part, in ``FitResult.profile`` and
    profile.json) or "trace" (the backend's own profiler over one chunk, into ``profile/``).
    ``run_dir`` is a new folder (default: one below ``default_root_dir``).
    Raises UserError for values outside their range.

    Example: ``Trainer(max_epochs=5).fit(build_model("lenet"), FashionMNIST(batch_size=128))``
    """

    def __init__(
        self,
        max_epochs: int = 10,
        *,
        min_epochs: int = 0,
        max_steps: int | None = None,
        max_time: str | float | timedelta | dict[str, float] | None = None,
        schedule: str | None = None,
        warmup: float = 0.0,
        label_smoothing: float = 0.0,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        precision: str | int | None = None,
        limit_train_batches: Amount | None = None,
        limit_val_batches: Amount | None = None,
        limit_test_batches: Amount | None = None,
        overfit_batches: Amount = 0,
        fast_dev_run: bool | int = False,
        num_sanity_val_steps: int = 2,
        val_check_interval: Amount | None = None,
        check_val_every_n_epoch: int = 1,
        barebones: bool = False,
        pipeline: str = "auto",
        on_nonfinite: str = "stop",
        seed: int = 0,
        callbacks: list[Callback | keras.callbacks.Callback] | None = None,
        logger: bool | str | Logger | list[str | Logger] | None = None,
        profiler: str | None = None,
        log_every_n_steps: int = 50,
        enable_progress_bar: bool = True,
        run_dir: str | Path | None = None,
        default_root_dir: str | Path = "runs",
    ) -> None:
        check({name: value for name, value in locals().items() if name != "self"})
        if fast_dev_run:
            max_epochs, min_epochs, max_steps = 1, 0, int(fast_dev_run)
            limit_train_batches = limit_val_batches = limit_test_batches = int(fast_dev_run)
            num_sanity_val_steps = 0
        if barebones:
            num_sanity_val_steps, log_every_n_steps, enable_progress_bar = 0, 0, False
        self.fast_dev_run, self.barebones = fast_dev_run, barebones
        self.max_epochs, self.min_epochs, self.max_steps = max_epochs, min_epochs, max_steps
        self.max_time = None if max_time is None else seconds(max_time)
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.precision = check_precision(precision)
        self.limit_test_batches, self.overfit_batches = limit_test_batches, overfit_batches
        self.num_sanity_val_steps = num_sanity_val_steps
        self.val_check_interval = val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.schedule, self.warmup, self.label_smoothing = schedule, warmup, label_smoothing
        self.limit_train_batches, self.limit_val_batches = limit_train_batches, limit_val_batches
        self.pipeline, self.on_nonfinite, self.seed = pipeline, on_nonfinite, seed
        self.callbacks = [
            KerasCallback(c) if isinstance(c, keras.callbacks.Callback) else c
            for c in callbacks or []
        ]
        made = make_loggers(logger)
        self.loggers = Loggers([] if fast_dev_run else made)
        self.profiler = profiler
        self.log_every_n_steps = log_every_n_steps
        self.enable_progress_bar = enable_progress_bar
        self.run_dir, self.default_root_dir = run_dir, Path(default_root_dir)
        self._engine: Engine | None = None

    def fit(
        self,
        model: keras.Model,
        data: DataModule | tuple[np.ndarray, np.ndarray] | Any,
        *,
        ckpt_path: str | Path | None = None,
        config: dict[str, Any] | None = None,
    ) -> FitResult:
        """Train ``model`` on ``data`` and leave a run directory.

        ``ckpt_path`` is "last" or "best" (of ``run_dir``), or a run's or checkpoint's folder:
        training goes on from its step, in its run directory, to the same bits as if it had never
        stopped; "auto" is "last", or the beginning where no checkpoint was written yet. Optimizer,
        epochs and logging may change on the way; model, data, batch size and seed may not.
        ``config`` is what config.yaml holds (default: the Trainer's arguments). The model
        holds the trained weights afterwards. Raises UserError for input that cannot be used and
        Diverged when the loss or a weight is not finite.
        """
        data = as_datamodule(data)
        if self.overfit_batches:
            data = overfitted(data, self.overfit_batches)
        engine = self._engine_for(model, data)
        if self.fast_dev_run or self.barebones:
            with tempfile.TemporaryDirectory() as folder:
                result = self._fit(model, data, engine, Path(folder) / "run", None, config)
            return dataclasses.replace(
                result, run_dir=None, last_checkpoint=None, best_checkpoint=None
            )
        return self._fit(model, data, engine, self._run_path(model, data), ckpt_path, config)

    def _fit(self, model, data, engine, path, ckpt_path, config) -> FitResult:
        which = None
        if ckpt_path is not None:
            path, which = rundir.locate(ckpt_path, self.run_dir)
        config = self._config(model, data) if config is None else config
        resumed = which is not None or (ckpt_path == "auto" and rundir.has_run(path))
        with rundir.RunDirectory(path, config, resumed=resumed) as run:
            found = None if which is None else resume.find(path, which, engine)
            fit = self._make_fit(model, data, engine, run)
            fit.notify("setup")
            if found is not None:
                resume.check_data(fit, found)
            run.begin()
            return self._run(fit, found)

    def _run(self, fit: Fit, found: Checkpoint | None) -> FitResult:
        """Go through a fit inside the one funnel for signals and exceptions."""
        try:
            now = {**rundir.environment(), **self._describe(fit)}
            fit.run.update(**now, status="running", reason=None)
            fit.loggers.begin(fit.run.path, _hyperparameters(fit))
            peak = fit.engine.learning_rate()  # a checkpoint brings that of its step
            if found is None:
                fit.jsonl.begin()
                fit.loggers.replay([])
            else:
                resume.restore(fit, found)
                checkpoint.point(fit.run.checkpoints, "last", found.path.name)
            self._train(fit, peak)
            fit.run.write_model(fit.model)
            status, reason = "completed", fit.stop_reason
            if fit.signals.received:  # perhaps after the last step, when the loop sees no more
                status, reason = "interrupted", fit.signals.received
            elif reason and fit.position.step != fit.max_steps:
                status = "stopped"
            fit.run.update(status=status, reason=reason)
        except BaseException as exception:
            self._fail(fit, exception)
            raise
        finally:
            fit.feed.close()
        fit.loggers.finalize(status)
        if fit.signals.received == signals.CHECKPOINT:
            signals.requeue()
        profile = fit.profiler.results() if self.profiler == "simple" else None
        if profile is not None:
            write_json(fit.run.path / "profile.json", profile)
        saver = resume.saver(fit)
        return FitResult(
            status,
            reason,
            fit.run.path,
            rundir.read_metrics(fit.run.path / rundir.METRICS),
            saver.last,
            saver.best_path,
            dict(fit.run.summary),
            profile,
        )

    def _train(self, fit: Fit, peak: float) -> None:
        """Compile, run the loop, and bring the Keras model up to date.

        With a schedule its learning rate is ``peak`` in the end: the next fit begins there, too.
        """
        if fit.position.epoch >= fit.max_epochs:
            warnings.warn(
                f"Nothing is left to train: the run has its {fit.position.epoch} epochs. To go on, "
                f"give more (now {fit.max_epochs}).",
                stacklevel=4,
            )
        else:
            fit.run.update(compile_seconds=round(_compile(fit), 3))
            if fit.validation_feed is not None and fit.position.step == 0:
                _sanity_check(fit, self.num_sanity_val_steps)
        roll_back = resume.Rollback(fit)
        with fit.signals:
            fit.notify("on_fit_start")
            while True:
                try:
                    train(fit)
                    break
                except Diverged as failure:
                    if self.on_nonfinite == "stop":
                        raise
                    roll_back(failure)
            fit.notify("on_fit_end")
        fit.engine.sync_model()
        if fit.schedule is not None:
            fit.engine.set_learning_rate(peak)

    def _fail(self, fit: Fit, exception: BaseException) -> None:
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
        tells["summary.json"] = partial(fit.run.update, status=status, reason=reason)
        tells["loggers"] = partial(fit.loggers.finalize, status)
        for name, tell in tells.items():
            try:
                tell()
            except Exception as another:  # must not hide the first
                if str(another) not in told(exception):
                    exception.add_note(f"{name} failed, too: {another}")
        good = checkpoint.pointed(fit.run.checkpoints, "last")
        if good is not None and good.is_dir():
            exception.add_note(
                f"The last good checkpoint is {good}. To go on from it: --resume last --run_dir "
                f"{fit.run.path} (in Python: ckpt_path='last')."
            )

    def validate(self, model: keras.Model, data: Any) -> dict[str, float]:
        """Return loss and metrics on the validation split of ``data``."""
        data = as_datamodule(data)
        if data.validation is None:
            raise UserError("There is no validation split. Give the data module validation=0.1.")
        return self._evaluate(model, data, self._validation(data))[0]

    def test(self, model: keras.Model, data: Any) -> dict[str, float]:
        """Return loss and metrics on the test split of ``data``."""
        return self.test_outputs(model, data)[0]

    def test_outputs(self, model: keras.Model, data: Any) -> tuple[dict[str, float], np.ndarray]:
        """Return loss and metrics on the test split, and the model's outputs ``[N, ...]``."""
        data = as_datamodule(data)
        if data.test is None:
            raise UserError("There is no test split in this data.")
        count = batches(self.limit_test_batches, -(-len(data.test) // data.batch_size))
        return self._evaluate(model, data, limited(data.test, count, data.batch_size))

    def predict(self, model: keras.Model, images: np.ndarray) -> np.ndarray:
        """Return the outputs (logits) ``[N, ...]`` for ``images [N, H, W, C]``, raw pixels."""
        images = np.asarray(images)
        shape = tuple(model.input_shape[1:])
        if images.shape[1:] != shape or not len(images):
            raise UserError(
                f"The images have the shape {images.shape}; the model takes [N, "
                f"{', '.join(map(str, shape))}] with at least one image."
            )
        engine = self._engine_for(model, None)
        labels = engine.placeholder_labels(len(images))
        feed = ResidentFeed(Split(images, labels), engine)
        return evaluate(engine, feed, min(PREDICT_BATCH, len(images)))[1]

    def _evaluate(self, model, data, split) -> tuple[dict[str, float], np.ndarray]:
        engine = self._engine_for(model, data)
        feed = self._feed(split, engine)
        try:
            return evaluate(engine, feed, data.batch_size)
        finally:
            feed.close()

    def _engine_for(self, model: keras.Model, data: DataModule | None) -> Engine:
        """Return the engine of ``model``, the same one as long as the model is the same."""
        if self._engine is None or self._engine.model is not model:
            self._prepare(model)
            labels = None if data is None else data.train.y[:1]
            self._engine = make_engine(model, label_smoothing=self.label_smoothing, labels=labels)
        engine = self._engine
        if self.precision not in (None, "32") and engine.platform == "cpu":
            warnings.warn(
                f"On a CPU the precision {self.precision} is slower than 32.",
                stacklevel=3,
            )
        engine.read_model()
        if data is not None:
            batch_bytes = data.batch_size * data.train.x[:1].nbytes
            steps = -(-len(data.train) // data.batch_size)
            most = min(CHUNK_STEPS.get(engine.platform, steps), CHUNK_BYTES // batch_bytes, steps)
            engine.chunk_steps = max(1, most)
        return engine

    def _prepare(self, model: keras.Model) -> None:
        """Give a compiled model what the arguments ask for, before its engine is made."""
        if getattr(model, "optimizer", None) is None:
            return  # the engine says what is missing
        if self.precision is not None:
            set_precision(model, self.precision)
        if self.accumulate_grad_batches > 1:
            set_accumulation(model, self.accumulate_grad_batches)
        if self.gradient_clip_val is not None:
            set_clipping(model, self.gradient_clip_val, self.gradient_clip_algorithm)

    def _validation(self, data: DataModule) -> Split | None:
        if data.validation is None or self.limit_val_batches == 0:
            return None
        total = -(-len(data.validation) // data.batch_size)
        count = batches(self.limit_val_batches, total)
        return limited(data.validation, count, data.batch_size)

    def _feed(self, split: Split, engine: Engine, augment: Any = ()) -> Feed:
        name = self.pipeline
        if name == "auto":
            name = "resident" if split.x.nbytes <= RESIDENT_BYTES else "stream"
        return PIPELINES[name](split, engine, augment)

    def _run_path(self, model, data) -> Path:
        if self.run_dir is not None:
            return Path(self.run_dir)
        synthetic = data.describe()["name"] == "synthetic"
        backend = keras.backend.backend()
        return rundir.new_run_path(self.default_root_dir, model.name, backend, synthetic)

    def _config(self, model, data) -> dict[str, Any]:
        names = ("max_epochs", "min_epochs", "max_steps", "max_time", "schedule", "warmup")
        names += ("label_smoothing", "accumulate_grad_batches", "gradient_clip_val", "precision")
        names += ("limit_train_batches", "limit_val_batches", "val_check_interval", "pipeline")
        config = {"model": model.name, "seed": self.seed, "batch_size": data.batch_size}
        return config | {name: getattr(self, name) for name in names}

    def _make_fit(self, model, data, engine, run) -> Fit:
        steps = batches(self.limit_train_batches, -(-len(data.train) // data.batch_size))
        every = self.val_check_interval
        schedule = None
        if self.schedule is not None:
            if not engine.sets_learning_rate:
                raise UserError(
                    "The optimizer has a learning-rate schedule of its own. Compile the model with "
                    "a number as learning_rate, or leave out the Trainer's schedule."
                )
            peak = engine.learning_rate()
            total = min(self.max_epochs * steps, self.max_steps or self.max_epochs * steps)
            warmup = round(min(self.warmup, 0.2 * self.max_epochs) * steps)
            schedule = make_schedule(self.schedule, peak, total, warmup)
        callbacks: list[Callback] = [Summary(), *self.callbacks]
        if self.profiler == "trace":
            callbacks.append(Trace())
        if self.max_time is not None:
            callbacks.append(Timer(self.max_time))
        saves = not (self.barebones or self.fast_dev_run)
        if saves and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            callbacks.append(ModelCheckpoint())
        # The checkpoint comes last: it must hold what the other callbacks made of the epoch.
        callbacks.sort(key=lambda c: isinstance(c, ModelCheckpoint))
        if self.enable_progress_bar and not any(isinstance(c, Progress) for c in callbacks):
            callbacks.insert(0, Progress())
        validation = self._validation(data)
        return Fit(
            model=model,
            engine=engine,
            data=data,
            feed=self._feed(data.train, engine, data.augment),
            validation_feed=self._feed(validation, engine) if validation is not None else None,
            run=run,
            callbacks=callbacks,
            jsonl=JSONLLogger(run.path),
            loggers=self.loggers,
            signals=StopSignals(),
            seed=self.seed,
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            min_epochs=self.min_epochs,
            val_every_n_steps=None if every is None else batches(every, steps),
            check_val_every_n_epoch=self.check_val_every_n_epoch,
            steps_in_epoch=steps,
            schedule=schedule,
            log_every_n_steps=self.log_every_n_steps,
            on_nonfinite=self.on_nonfinite,
        )

    def _describe(self, fit: Fit) -> dict[str, Any]:
        data = fit.data.describe()
        return {
            "backend": keras.backend.backend(),
            "device": fit.engine.device,
            "precision": self.precision or fit.model.dtype_policy.name,
            "pipeline": next(n for n, f in PIPELINES.items() if isinstance(fit.feed, f)),
            "dataset": data,
            "model": fit.model.name,
            "parameters": fit.model.count_params(),
            "macs": macs(fit.model),
            "seed": self.seed,
            "batch_size": fit.data.batch_size,
            "augment": [name for name, _ in fit.data.augment],
        }


def _hyperparameters(fit: Fit) -> dict[str, Any]:
    """Return what loggers are told of a run: what it is of, and its settings."""
    names = ("backend", "device", "model", "parameters")
    known = {name: fit.run.summary[name] for name in names}
    return known | {"dataset": fit.run.summary["dataset"]["name"]} | fit.run.config


def _sanity_check(fit: Fit, steps: int) -> None:
    """Validate on a few batches, so that a mistake there shows before the first epoch."""
    feed, size = fit.validation_feed, fit.data.batch_size
    if feed is not None and steps:
        fit.engine.infer(feed.chunks(evaluation_plan(min(steps * size, len(feed.split)), size)))


def _compile(fit: Fit) -> float:
    """Compile the programs by running chunks of no steps, and return the seconds it took."""
    fit.open_epoch(0)  # at the position there may be no step left
    with fit.profiler.section("compile"):
        rates = fit.learning_rates(np.arange(fit.engine.chunk_steps))
        fit.engine.train(dataclasses.replace(fit.feed.take(1), count=0), rates)
        if (feed := fit.validation_feed) is not None:
            feed.open(evaluation_plan(len(feed.split), fit.data.batch_size))
            fit.engine.infer([dataclasses.replace(feed.take(1), count=0)])
    return fit.profiler.sections["compile"].seconds
