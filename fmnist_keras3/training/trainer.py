"""The Trainer: Lightning's four verbs over a compiled Keras model."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import keras

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.given import as_datamodule
from fmnist_keras3.data.limits import overfitted
from fmnist_keras3.data.weights import weighted
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.runs import rundir
from fmnist_keras3.runs.locate import locate
from fmnist_keras3.runs.result import FitResult
from fmnist_keras3.training import arguments, resume
from fmnist_keras3.training.arguments import Amount, check, check_precision, seconds
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.check_data import check_examples
from fmnist_keras3.training.evaluator import Evaluator, fingerprint
from fmnist_keras3.training.fit import ENDLESS
from fmnist_keras3.training.funnel import run_fit
from fmnist_keras3.training.hparams import check_hparams, describe
from fmnist_keras3.training.logger import Logger, Loggers
from fmnist_keras3.training.prepare import set_from_data
from fmnist_keras3.training.progress import Progress
from fmnist_keras3.training.session import Session
from fmnist_keras3.training.setup import make_fit, own_copy, run_path

MAX_EPOCHS = 10
T = TypeVar("T")
OneOrMore = T | Sequence[T]


class Trainer(Evaluator, Progress):
    """Trains any compiled Keras model; argument names follow Lightning where they exist.

    Data:
    - ``last_batch``: an epoch's last, short batch: keep it as it is, drop it, or fill it up by
      repeats, which count in batch normalisation only (one of keep, fill, drop)
    - ``seed``: of weights, order, augmentation and split (at least 0)
    - ``pipeline``: images on the device, or through tf.data (one of auto, resident, stream)
    Optimizer:
    - ``schedule``: constant, cosine, linear, one_cycle, step, triangular or wsd; of the learning
      rate, with the optimizer's as its peak; None: the optimizer's own
    - ``warmup``: epochs of linear rise of the learning rate, at most a fifth of all (at least 0)
    - ``label_smoothing``: rate, in training only (at least 0 and less than 1)
    - ``accumulate_grad_batches``: batches whose gradients make one update; so do those that an
      epoch leaves over (at least 1)
    - ``gradient_clip_val``: largest global norm of the gradients (more than 0, as 1)
    - ``gradient_clip_algorithm``: what ``gradient_clip_val`` limits: the global norm, or the size
      of each number (one of norm, value)
    Arithmetic:
    - ``precision``: of the arithmetic; weights are float32 (one of 32, bf16-mixed, 16-mixed);
      "16-mixed" with loss scaling; None: as the model is
    - ``deterministic``: programs that give the same bits each time, on a GPU too; warn: or say if
      there are none (one of True, warn, False); with TensorFlow for the whole process
    - ``devices``: devices that share each batch: a number, or auto for all; with JAX; or what your
      keras.distribution says
    - ``shard``: fsdp: the devices share large weights, too, and what the optimizer keeps of them
      (one of fsdp)
    Length:
    - ``max_epochs``: epochs to train (at least 1); 10, or what ``max_steps`` takes; -1: no limit
    - ``min_epochs``: epochs before which nothing stops early (at least 0)
    - ``max_steps``: steps after which to end, if that is earlier (at least 1)
    - ``max_time``: time after which to end: 00:10:00 or seconds; or a timedelta, or its arguments,
      {"minutes": 10}
    - ``on_nonfinite``: when loss or weights are not finite: stop, or rollback to the last good
      checkpoint (one of stop, rollback); stop raises Diverged; for rollback see `resume.Rollback`
    Amount:
    - ``limit_train_batches``: batches of an epoch to train on (at least 1, or a fraction up to 1.0)
    - ``limit_val_batches``: batches to validate on; 0: no validation (at least 0, or a fraction up
      to 1.0)
    - ``limit_test_batches``: batches to test on; 0: no test (at least 0, or a fraction up to 1.0)
    - ``overfit_batches``: train and validate on so few batches, to see that they can be learnt; 0:
      off (at least 0, or a fraction up to 1.0)
    - ``fast_dev_run``: so many batches of training, validation and test, as a trial; leaves no
      files (at least 0)
    - ``barebones``: train without checkpoints, records, bar and files, to see what they cost (one
      of False, True)
    Validation and test:
    - ``num_sanity_val_steps``: batches to validate on before the first epoch; -1: all (at least -1)
    - ``val_check_interval``: steps, or part of an epoch, between validations, besides at epochs'
      ends (at least 1, or a fraction up to 1.0)
    - ``check_val_every_n_epoch``: validate at the end of each n-th epoch (at least 1)
    Records:
    - ``log_every_n_steps``: steps between step records; 0 for none (at least 0)
    - ``logger``: beside metrics.jsonl, one or a list of csv, tensorboard, mlflow, wandb, trackio;
      or `Logger`; True: csv; one that fails is left out
    - ``profiler``: simple: the share of each part; trace: the backend's profiler over one chunk
      (one of simple, trace); in ``FitResult.profile`` and the run directory
    - ``callbacks``: ours, your own and Keras', one or a list
    - ``enable_progress_bar``: print each epoch, with a bar on a terminal and in a notebook
    - ``enable_model_summary``: and print the layers there first
    Files:
    - ``run_dir``: new folder of the run
    - ``enable_checkpointing``: False: write none, so nothing can be resumed
    - ``default_root_dir``: where the folder of a run is made

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
        devices: int | str | None = None,
        shard: str | None = None,
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
        Evaluator.__init__(self)  # super() would make one more of the locals()
        Progress.__init__(self)
        callbacks = cast("list[Callback]", leaf("Keras' callbacks")(callbacks))
        max_steps = None if max_steps == -1 else max_steps  # as Lightning has it
        self._given = {name: value for name, value in locals().items() if name != "self"}
        if max_epochs is None and max_steps is None:
            max_epochs = MAX_EPOCHS
        if max_epochs == -1:  # as Lightning has it: as many as it takes
            max_epochs = ENDLESS if max_steps is None else None
        check(Trainer, self._given | {"max_epochs": max_epochs})
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
        self.deterministic, self.devices = deterministic, arguments.devices(devices)
        self.shard = shard
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
        self._last_run = run_dir

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
        class_weight: Any = None,
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
        and all arguments), and ``hparams`` plain values of your own beside it. ``class_weight``
        is what examples of a class count in the training: "balanced", factors by number or name,
        or a YAML file of such. The model holds the trained weights afterwards. Raises UserError for
        input that cannot be used and Diverged when the loss or a weight is not finite.
        """
        leaves_files = not (self.fast_dev_run or self.barebones)
        if ckpt_path is not None and not leaves_files:
            raise UserError(
                "fast_dev_run and barebones begin anew and keep nothing. Leave ckpt_path out (on "
                "the command line --resume), or these."
            )
        self._finished = None
        with Session(model, "fit") as session, contextlib.ExitStack() as folders:
            data = as_datamodule(data, validation_data, model, self.limit_train_batches)
            if self.overfit_batches:
                data = overfitted(data, self.overfit_batches)
            data = weighted(data, class_weight)
            around = self.on_nonfinite == "rollback"
            check_examples(model, data, goes_around=around)
            engine = self._engine_for(session, data.train, data.batch_size)
            engine.device.check_batch(data.batch_size)
            config = describe(self, model, data) if config is None else config
            config |= {} if hparams is None else {"hparams": check_hparams(hparams)}
            which = None
            writes = engine.world.rank == 0
            if ckpt_path is not None:
                path, which = locate(ckpt_path, self.run_dir)
            elif leaves_files and writes:
                path = run_path(self, model, data)
            else:
                path = Path(folders.enter_context(tempfile.TemporaryDirectory())) / "run"
            if leaves_files and not writes:
                self.loggers = Loggers([])
                self._own, path = own_copy(None if ckpt_path is None else path)
            engine.world.barrier()  # nothing is written before every copy is made
            resumed = which is not None or (ckpt_path == "auto" and rundir.has_run(path))
            if leaves_files:
                self._last_run = path
            run = folders.enter_context(rundir.RunDirectory(path, config, resumed=resumed))
            found = None if which is None else resume.find(path, which, engine)
            fit = make_fit(self, session, data, engine, run)
            folders.enter_context(self._watched(fit))
            fit.notify("setup")
            if found is not None:
                resume.check_data(fit, found)
            else:
                set_from_data(engine, data.train.x)
            run.begin()
            result = run_fit(fit, found)
        if leaves_files:
            if result.status != "interrupted":
                self._finished = (model, fingerprint(model), path.absolute())
            return result
        nowhere = dict.fromkeys(("run_dir", "last_checkpoint", "best_checkpoint"))
        return dataclasses.replace(result, **nowhere)

    def _filling(self, role: str) -> Any:
        """Return the first of the given callbacks with this role, or None."""
        return next((c for c in self.callbacks if c.role == role), None)
