"""The Trainer: Lightning's four verbs over a compiled Keras model."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import keras
import numpy as np

from fmnist_keras3.data.datamodule import (
    DataModule,
    as_array,
    as_datamodule,
    limited,
    overfitted,
)
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.runs import checkpoint, rundir
from fmnist_keras3.runs.jsonl import JSONLLogger
from fmnist_keras3.runs.keeper import Keeper
from fmnist_keras3.runs.result import FitResult
from fmnist_keras3.training import resume
from fmnist_keras3.training.accumulation import Accumulation
from fmnist_keras3.training.arguments import (
    Amount,
    batches,
    batches_in_epoch,
    check,
    check_precision,
    seconds,
)
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.check_data import check_inputs, check_split, not_finite
from fmnist_keras3.training.feeds import Feed, ResidentFeed, StreamFeed
from fmnist_keras3.training.fit import ENDLESS, Fit
from fmnist_keras3.training.funnel import run_fit
from fmnist_keras3.training.hparams import check_hparams, describe
from fmnist_keras3.training.logger import Logger, Loggers
from fmnist_keras3.training.loop import evaluate
from fmnist_keras3.training.prepare import set_clipping, set_from_data, set_precision
from fmnist_keras3.training.schedules import make_schedule
from fmnist_keras3.training.session import Session, owner
from fmnist_keras3.training.signals import StopSignals
from fmnist_keras3.training.tta import TTA, parse_tta, scores

PIPELINES = {"resident": ResidentFeed, "stream": StreamFeed}
RESIDENT_BYTES = 2 * 2**30  # the largest training split that "auto" puts on the device
CHUNK_STEPS = {"cpu": 128}  # longest chunk; elsewhere a whole epoch may be one
CHUNK_BYTES = 256 * 2**20
PREDICT_BATCH = 128
MAX_EPOCHS = 10
_VERBS = {"validation": "validate", "test": "test"}
T = TypeVar("T")
OneOrMore = T | Sequence[T]


class Trainer:
    """Trains any compiled Keras model; argument names follow Lightning where they exist.

    ``max_epochs`` (10, or what ``max_steps`` takes), ``max_steps`` and ``max_time`` ("00:10:00",
    seconds, a timedelta) end the training, whichever comes first; -1 epochs or steps are no limit.
    Before ``min_epochs`` neither a time nor a callback does.
    ``accumulate_grad_batches`` batches make one update of their mean gradient; those left over at
    an epoch's end make one, too.
    ``gradient_clip_val`` limits the global norm of the gradients ("norm") or each number ("value",
    ``gradient_clip_algorithm``). ``precision`` is "32", "bf16-mixed" or "16-mixed" (with loss
    scaling; None: as the model is). ``schedule``
    ("cosine", see `schedules.SCHEDULES`) rules the learning rate, with the optimizer's as its peak
    and a linear rise over the first ``warmup`` epochs (at most a fifth of ``max_epochs``); None
    leaves the rate to the optimizer. ``label_smoothing`` is a rate in 0..1.
    ``limit_train_batches``, ``limit_val_batches`` and ``limit_test_batches`` are numbers of batches
    or fractions (0.1).
    ``last_batch`` is what becomes of an epoch's last batch of training, if it is short: "keep"
    trains on it at its true size, "drop" leaves it out, and "fill" fills it up by repeats that
    count in BatchNormalization's statistics and nowhere else, which saves the second program.
    ``overfit_batches`` trains and validates on the same few batches. ``fast_dev_run`` takes one
    batch, or so many, of everything and leaves no files. ``num_sanity_val_steps`` batches are
    validated before the first epoch (-1: all). ``val_check_interval`` (steps, or a fraction of an
    epoch) adds validations within an epoch, ``check_val_every_n_epoch`` leaves out those of the
    others.
    ``enable_checkpointing`` False writes none, so nothing can be resumed.
    ``barebones`` trains without checkpoints, records, bar and files, to measure what they cost.
    ``pipeline`` is "auto", "resident" or
    "stream". ``seed`` decides the order of the examples and their augmentation. ``callbacks`` are
    ours, your own and Keras', one or a list. ``deterministic`` asks for programs that give the same
    bits in every equal run, on a GPU too, and refuses (or with "warn" warns) where there are none;
    with TensorFlow it holds for the whole process.
    ``on_nonfinite`` says what follows a loss or weight that is not finite: "stop" raises
    Diverged; "rollback" goes back to the last good checkpoint and leaves the failed step out, and
    if that does not help, halves the learning rate, too (see `resume.Rollback`). ``logger`` is
    what takes the records besides metrics.jsonl: True (csv), a name ("csv", "tensorboard",
    "mlflow", "wandb", "trackio"), a `Logger`, or a list of them; one that fails is left out.
    ``log_every_n_steps`` makes a record "step" of each such step (0: none).
    ``profiler`` is "simple" (seconds and share of each part, in ``FitResult.profile`` and
    profile.json) or "trace" (the backend's own profiler over one chunk, into ``profile/``).
    ``enable_progress_bar`` prints each epoch, with a bar on a terminal and in a notebook; there
    ``enable_model_summary`` prints the layers first. ``run_dir`` is a new folder (default: one
    below ``default_root_dir``).
    Raises UserError for values outside their range.

    Example: ``Trainer(max_epochs=5).fit(build_model("lenet"), FashionMNIST(batch_size=128))``
    """

    @explained
    def __init__(
        self,
        max_epochs: int | None = None,
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
        last_batch: str = "keep",
        overfit_batches: Amount = 0,
        fast_dev_run: bool | int = False,
        num_sanity_val_steps: int = 2,
        val_check_interval: Amount | None = None,
        check_val_every_n_epoch: int = 1,
        barebones: bool = False,
        enable_checkpointing: bool = True,
        pipeline: str = "auto",
        deterministic: bool | str | None = None,
        on_nonfinite: str = "stop",
        seed: int = 0,
        callbacks: OneOrMore[Callback | keras.callbacks.Callback] | None = None,
        logger: bool | OneOrMore[str | Logger] | None = None,
        profiler: str | None = None,
        log_every_n_steps: int = 50,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = True,
        run_dir: str | Path | None = None,
        default_root_dir: str | Path = "runs",
    ) -> None:
        callbacks = cast("list[Callback]", leaf("Keras' callbacks")(callbacks))
        max_steps = None if max_steps == -1 else max_steps  # as Lightning has it
        self._given = {name: value for name, value in locals().items() if name != "self"}
        if max_epochs is None and max_steps is None:
            max_epochs = MAX_EPOCHS
        if max_epochs == -1:  # as Lightning has it: as many as it takes
            max_epochs = ENDLESS if max_steps is None else None
        check(self._given | {"max_epochs": max_epochs})
        if fast_dev_run:
            max_epochs, min_epochs, max_steps = 1, 0, int(fast_dev_run)
            limit_train_batches = limit_val_batches = limit_test_batches = int(fast_dev_run)
            num_sanity_val_steps = 0
        if barebones:
            num_sanity_val_steps, log_every_n_steps = 0, 0
            enable_progress_bar = enable_model_summary = False
        self.fast_dev_run, self.barebones = fast_dev_run, barebones
        self.enable_checkpointing = enable_checkpointing
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
        self.last_batch = last_batch
        self.deterministic = deterministic
        self.callbacks = callbacks
        if sum(callback.role == "averaging" for callback in self.callbacks) > 1:
            raise UserError("There are two callbacks that average the weights. Give one.")
        if not enable_checkpointing and (saver := self._filling("checkpoints")) is not None:
            raise UserError(
                f"enable_checkpointing is False, but there is a {type(saver).__name__}."
            )
        made = leaf("loggers")(logger)
        self.loggers = Loggers([] if fast_dev_run else made)
        self.profiler = profiler
        self.log_every_n_steps = log_every_n_steps
        self.enable_progress_bar = enable_progress_bar
        self.enable_model_summary = enable_model_summary
        self.run_dir, self.default_root_dir = run_dir, Path(default_root_dir)
        self._engine: Engine | None = None
        self._last_run: str | Path | None = run_dir
        self._made_with: dict[str, Any] = {}  # the engine's options

    def __repr__(self) -> str:
        defaults = inspect.signature(Trainer).parameters
        given = {k: v for k, v in self._given.items() if v != defaults[k].default}
        if callbacks := given.pop("callbacks", None):
            given["callbacks"] = [type(callback).__name__ for callback in callbacks]
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"

    @explained
    def fit(
        self,
        model: keras.Model,
        data: DataModule | tuple[Any, ...] | Any,
        validation_data: tuple[Any, ...] | Any = None,
        *,
        ckpt_path: str | Path | None = None,
        config: dict[str, Any] | None = None,
        hparams: dict[str, Any] | None = None,
    ) -> FitResult:
        """Train ``model`` on ``data`` and leave a run directory.

        ``data`` is a DataModule, arrays ``(x, y)`` or ``(x, y, sample_weight)`` with ``N`` examples
        each, or a finite `tf.data.Dataset` of such; of arrays and datasets a tenth is held out for
        validation, unless ``validation_data``, of the same kinds, is given.
        ``ckpt_path`` is "last" or "best" (of ``run_dir``), or a run's or checkpoint's folder:
        training goes on from its step, in its run directory, to the same bits as if it had never
        stopped; "auto" is "last", or the beginning where no checkpoint was written yet. Optimizer,
        epochs and logging may change on the way; model, data, batch size and seed may not.
        ``config`` is what config.yaml and the checkpoints hold (default: model, optimizer, data
        and all arguments), and ``hparams`` plain values of your own beside it. The model holds the
        trained weights afterwards. Raises UserError for input that cannot be used and
        Diverged when the loss or a weight is not finite.
        """
        with Session(model, "fit") as session:
            data = as_datamodule(data, validation_data, model)
            if self.overfit_batches:
                data = overfitted(data, self.overfit_batches)
            self._check_data(model, data)
            engine = self._engine_for(session, data.train, data.batch_size)
            own = {} if hparams is None else {"hparams": check_hparams(hparams)}
            config = {**(describe(self, model, data) if config is None else config), **own}
            if not (self.fast_dev_run or self.barebones):
                return self._fit(session, data, engine, None, ckpt_path, config)
            if ckpt_path is not None:
                raise UserError(
                    "fast_dev_run and barebones begin anew and keep nothing. Leave ckpt_path out "
                    "(on the command line --resume), or these."
                )
            with tempfile.TemporaryDirectory() as folder:
                result = self._fit(session, data, engine, Path(folder) / "run", None, config)
            return dataclasses.replace(
                result, run_dir=None, last_checkpoint=None, best_checkpoint=None
            )

    def _fit(self, session, data, engine, path, ckpt_path, config) -> FitResult:
        which = None
        if ckpt_path is not None:
            path, which = rundir.locate(ckpt_path, self.run_dir)
        elif path is None:
            path = self._run_path(session.model, data)
        resumed = which is not None or (ckpt_path == "auto" and rundir.has_run(path))
        if not (self.fast_dev_run or self.barebones):
            self._last_run = path
        with rundir.RunDirectory(path, config, resumed=resumed) as run:
            found = None if which is None else resume.find(path, which, engine)
            fit = self._make_fit(session, data, engine, run)
            fit.notify("setup")
            if found is not None:
                resume.check_data(fit, found)
            else:
                set_from_data(engine, data.train.x)
            run.begin()
            return run_fit(fit, found)

    @explained
    def validate(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> dict[str, float]:
        """Return loss and metrics on the validation split of ``data``, or on all of its arrays.

        ``ckpt_path`` ("best", "last", or a folder, as for `fit`) is loaded into the model before.
        With test-time augmentation ``tta`` ("mirror", "shift:1", or both, see `training.tta`)
        besides these "loss_tta" and "accuracy_tta", of the mean of the outputs over the views.
        """
        return self._outputs(model, data, "validation", self.limit_val_batches, ckpt_path, tta)[0]

    @explained
    def test(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> dict[str, float]:
        """Return loss and metrics on the test split of ``data``; all as for `validate`."""
        return self.test_outputs(model, data, ckpt_path=ckpt_path, tta=tta)[0]

    def test_outputs(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> tuple[dict[str, float], Any]:
        """Return what `test` does, and the model's outputs ``[N, ...]``, without ``tta``."""
        return self._outputs(model, data, "test", self.limit_test_batches, ckpt_path, tta)

    def _outputs(
        self,
        model: keras.Model,
        data: Any,
        split_name: str,
        limit: Amount | None,
        ckpt_path: str | Path | None,
        tta: str | None,
    ) -> tuple[dict[str, float], Any]:
        views = parse_tta(tta)
        data, split = _examples(model, data, split_name, limit)
        check_split(model, split, split_name)
        if found := not_finite(split, split_name):
            raise UserError(f"{found} Leave these examples out, or mend them with np.nan_to_num.")
        with self._engine_of(model, _VERBS[split_name], data.train, data.batch_size) as engine:
            logs, outputs = self._evaluate(engine, split, data.batch_size, ckpt_path)
            if views is not None:
                mean = self._over_views(views, engine, split, data.batch_size, outputs)
                logs |= scores(model, split, mean)
        return logs, outputs

    @explained
    def predict(
        self,
        model: keras.Model,
        images: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> Any:
        """Return the outputs (logits) ``[N, ...]`` for ``images [N, H, W, C]``, raw pixels.

        Or for what else the model takes; several inputs or outputs come in its own structure.
        ``ckpt_path`` as for `validate`. With ``tta``, as for `test`, the mean of the outputs.
        """
        views = parse_tta(tta)
        if isinstance(images, DataModule):
            raise UserError("Give images to predict: trainer.predict(model, data.setup().test.x)")
        examples = Split(mapped(as_array, images), None)
        check_inputs(model, examples.x)
        size = min(PREDICT_BATCH, len(examples))
        with self._engine_of(model, "predict", examples, size) as engine:
            _, outputs = self._evaluate(engine, examples, size, ckpt_path, measure=False)
            if views is not None:
                outputs = self._over_views(views, engine, examples, size, outputs)
        return outputs

    def _over_views(
        self, views: TTA, engine: Engine, split: Split, batch_size: int, outputs: Any
    ) -> Any:
        def outputs_of(x: Any) -> Any:
            return self._evaluate(engine, Split(x, None), batch_size, None, measure=False)[1]

        return views.mean(split.x, outputs, outputs_of)

    def _evaluate(
        self,
        engine: Engine,
        split: Split,
        batch_size: int,
        ckpt_path: str | Path | None,
        *,
        measure: bool = True,
    ) -> tuple[dict[str, float], Any]:
        if ckpt_path is not None:
            if (session := owner(engine.model)) is not None and session.verb == "fit":
                raise UserError(
                    "ckpt_path would put other weights into a model that is being trained. Leave "
                    "it out, or wait until fit has ended."
                )
            run, which = rundir.locate(ckpt_path, self._last_run)
            found = resume.find(run, which or "last", engine)
            engine.import_state(checkpoint.adopt(found.state, engine.export_state()))
        feed = self._feed(split, engine, batch_size)
        try:
            return evaluate(engine, feed, batch_size, measure=measure)
        finally:
            feed.close()

    @contextlib.contextmanager
    def _engine_of(
        self, model: keras.Model, verb: str, split: Split, batch_size: int
    ) -> Iterator[Engine]:
        """Lend the engine of ``model``: of the fit that is under way, or a session of ``verb``."""
        session = owner(model)
        if session is not None and session.engine is not None:
            yield session.engine
            return
        with Session(model, verb) as session:
            yield self._engine_for(session, split, batch_size)

    def _engine_for(self, session: Session, split: Split, batch_size: int) -> Engine:
        """Return the engine of the session's model, the same one as long as that is the same.

        Its chunks are cut for batches of ``split``.
        """
        model, engine, options = session.model, self._engine, self._engine_options()
        self._prepare(session)
        learns = engine is not None and not engine.metrics.known and split.y is not None
        changed = options != self._made_with or learns
        if engine is None or engine.model is not model or changed or not engine.is_current():
            engine = make_engine(model, example=split.take(slice(1)), **options)
            self._engine, self._made_with = engine, options
        if self.precision not in (None, "32") and engine.platform == "cpu":
            warnings.warn(
                f"On a CPU the precision {self.precision} is slower than 32.",
                stacklevel=4,
            )
        engine.read_model()
        steps = -(-len(split) // batch_size)
        most = CHUNK_STEPS.get(engine.platform, steps)
        engine.chunk_steps = min(most, steps, _steps_in_memory(split, batch_size))
        session.engine = engine
        return engine

    def _engine_options(self) -> dict[str, Any]:
        required = frozenset().union(*(callback.requires for callback in self.callbacks))
        return {
            "label_smoothing": self.label_smoothing,
            "deterministic": self.deterministic,
            "averaging": "averages" in required,
            "accumulation": self.accumulate_grad_batches > 1,
            "gradient_norms": "gradient norms" in required,
            "fill_last_batch": self.last_batch == "fill",
        }

    def _filling(self, role: str) -> Any:
        """Return the first of the given callbacks with this role, or None."""
        return next((c for c in self.callbacks if c.role == role), None)

    def _all_callbacks(self, saves: bool) -> list[Callback]:
        """Return the given callbacks and those that the Trainer brings, in the order of hooks."""
        callbacks = [leaf("summary")(), *self.callbacks]
        if self.profiler == "trace":
            callbacks.append(leaf("trace")())
        if self.max_time is not None:
            callbacks.append(leaf("timer")(self.max_time))
        wanted = {
            "checkpoints": saves,
            "progress bar": self.enable_progress_bar,
            "model summary": self.enable_model_summary and screen.on_screen(),
        }
        for role, wants in wanted.items():
            if wants and self._filling(role) is None:
                callbacks.append(leaf(role)())
        return sorted(callbacks, key=lambda callback: callback.order)

    def _prepare(self, session: Session) -> None:
        """Give a compiled model what the arguments ask for, before its engine is made."""
        model = session.model
        if getattr(model, "optimizer", None) is None:
            return  # the engine says what is missing
        if self.precision is not None:
            set_precision(session, self.precision)
        own = inner_optimizer(model.optimizer).gradient_accumulation_steps
        if self.accumulate_grad_batches > 1 and own:
            raise UserError(
                f"accumulate_grad_batches is {self.accumulate_grad_batches}, but the optimizer has "
                f"gradient_accumulation_steps={own} already. Leave one of them out."
            )
        if self.gradient_clip_val is not None:
            set_clipping(session, self.gradient_clip_val, self.gradient_clip_algorithm)

    def _check_data(self, model: keras.Model, data: DataModule) -> None:
        """Raise UserError for data that does not suit the model or holds NaN."""
        check_split(model, data.train, "training")
        found = not_finite(data.train, "training")
        if data.validation is not None:
            check_split(model, data.validation, "validation", data.train)
            found = found or not_finite(data.validation, "validation")
        if found and self.on_nonfinite == "rollback":
            warnings.warn(f"{found} Their steps will be left out.", stacklevel=4)
        elif found:
            raise UserError(
                f"{found} Leave these examples out, mend them with np.nan_to_num, or train around "
                "them: on_nonfinite='rollback'."
            )

    def _validation(self, data: DataModule) -> Split | None:
        if data.validation is None or self.limit_val_batches == 0:
            return None
        total = -(-len(data.validation) // data.batch_size)
        count = batches(self.limit_val_batches, total)
        return limited(data.validation, count, data.batch_size)

    def _feed(
        self,
        split: Split,
        engine: Engine,
        batch_size: int,
        augment: Any = (),
        *,
        training: bool = False,
    ) -> Feed:
        name = self.pipeline
        if name == "auto":
            name = "resident" if split.nbytes <= RESIDENT_BYTES else "stream"
        # Within a fit the examples of another verb may come in larger batches.
        steps = min(engine.chunk_steps, _steps_in_memory(split, batch_size))
        return PIPELINES[name](split, engine, augment, chunk_steps=steps, training=training)

    def _accumulation(self, data: DataModule) -> Accumulation:
        """Return when the optimizer makes its updates in a training on ``data``."""
        steps = batches_in_epoch(len(data.train), data.batch_size, self.last_batch)
        return Accumulation(self.accumulate_grad_batches, batches(self.limit_train_batches, steps))

    def _run_path(self, model, data) -> Path:
        if self.run_dir is not None:
            return Path(self.run_dir)
        synthetic = data.describe()["name"] == "synthetic"
        backend = keras.backend.backend()
        return rundir.new_run_path(self.default_root_dir, model.name, backend, synthetic)

    def _make_fit(self, session, data, engine, run) -> Fit:
        model = session.model
        accumulation = self._accumulation(data)
        steps = accumulation.steps_in_epoch
        epochs = self.max_epochs or -(-(self.max_steps or 0) // steps)
        total = min(epochs * steps, self.max_steps or epochs * steps)
        means = accumulation.means(np.array([total - 1]))
        if means is not None and not means[0]:
            warnings.warn(
                f"Training ends at step {total}, amid an accumulation of {accumulation.batches} "
                "batches: the last ones make no update, unless the run is resumed.",
                stacklevel=4,
            )
        every = self.val_check_interval
        schedule = None
        if self.schedule not in (None, "constant") and epochs == ENDLESS:
            raise UserError(
                f"The schedule {self.schedule} goes by the length of the training, and max_epochs "
                "is -1. Give a number of epochs or max_steps, or schedule='constant'."
            )
        if self.schedule is not None:
            if not engine.sets_learning_rate:
                raise UserError(
                    "The optimizer has a learning-rate schedule of its own. Compile the model with "
                    "a number as learning_rate, or leave out the Trainer's schedule."
                )
            peak = engine.learning_rate()
            warmup = round(min(self.warmup, 0.2 * epochs) * steps)
            schedule = make_schedule(self.schedule, peak, total, warmup)
        saves = self.enable_checkpointing and not (self.barebones or self.fast_dev_run)
        validation = self._validation(data)
        return Fit(
            session=session,
            engine=engine,
            data=data,
            feed=self._feed(data.train, engine, data.batch_size, data.augment, training=True),
            validation_feed=(
                None if validation is None else self._feed(validation, engine, data.batch_size)
            ),
            run=run,
            keeper=Keeper(run.checkpoints, enabled=saves),
            callbacks=self._all_callbacks(saves),
            jsonl=JSONLLogger(run.path),
            loggers=self.loggers,
            signals=StopSignals(),
            averaging=self._filling("averaging"),
            seed=self.seed,
            max_epochs=epochs,
            max_steps=self.max_steps,
            min_epochs=self.min_epochs,
            val_every_n_steps=None if every is None else batches(every, steps),
            check_val_every_n_epoch=self.check_val_every_n_epoch,
            accumulation=accumulation,
            schedule=schedule,
            last_batch=self.last_batch,
            log_every_n_steps=self.log_every_n_steps,
            num_sanity_val_steps=self.num_sanity_val_steps,
            on_nonfinite=self.on_nonfinite,
            precision=self.precision or model.dtype_policy.name,
            profiles=self.profiler == "simple",
        )


def _steps_in_memory(split: Split, batch_size: int) -> int:
    """Return how many batches of ``split`` a chunk may have for its bytes, at least one."""
    return max(1, CHUNK_BYTES // max(1, batch_size * split.nbytes // len(split)))


def _examples(
    model: keras.Model, data: Any, name: str, limit: Amount | None
) -> tuple[DataModule, Split]:
    """Return data as a module, and its split ``name``; of arrays and datasets all examples."""
    if isinstance(data, DataModule):
        module = data.setup()
        split = module.validation if name == "validation" else module.test
    else:
        module = as_datamodule(data, 0.0, model)
        split = module.train
    if limit == 0:
        short = {"validation": "val"}.get(name, name)
        raise UserError(f"limit_{short}_batches is 0, which means no {name}. Leave it out.")
    count = 0 if split is None else batches(limit, -(-len(split) // module.batch_size))
    if split is None or count == 0:
        raise UserError(
            f"There is no {name} split in this data. Give a DataModule that has one "
            "(validation=0.1, test=(x, y)), or the arrays (x, y) themselves."
        )
    return module, limited(split, count, module.batch_size)
