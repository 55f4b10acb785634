"""A training from its settings to a finished run; commands parse before it and print after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import runtime
from fmnist_keras3.callbacks import (
    MONITORS,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    Lookahead,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from fmnist_keras3.config import TrainConfig, checkpoint_interval, monitors
from fmnist_keras3.data.datamodule import DataModule, FashionMNIST
from fmnist_keras3.evaluation import report
from fmnist_keras3.evaluation.metrics import Evaluation
from fmnist_keras3.evaluation.results import classified
from fmnist_keras3.ground.files import write_json
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.runs import rundir
from fmnist_keras3.training.trainer import Trainer

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.runs.result import FitResult

RUNS = Path("runs")


@dataclass(frozen=True)
class Conclusion:
    """What there is to tell when a training and its test have ended.

    ``summary`` is that of the run, ``evaluation`` the scores of the test (None without one),
    ``report`` the page.
    """

    summary: dict[str, Any]
    evaluation: Evaluation | None
    report: Path


def load_data(config: TrainConfig) -> DataModule:
    """Return the data of the settings, loaded."""
    return FashionMNIST(
        batch_size=config.batch_size,
        augment=config.augment,
        validation=config.validation,
        seed=config.seed,
        data=config.data,
        data_dir=config.data_dir,
    ).setup()


def build(config: TrainConfig, data: DataModule) -> tuple[keras.Model, Trainer]:
    """Return the model and the Trainer of the settings, for ``data``."""
    model = config.build_model(data.train.image_shape, len(data.source.class_names))
    trainer = Trainer(
        max_epochs=config.epochs,
        min_epochs=config.min_epochs,
        max_steps=config.max_steps,
        max_time=config.max_time,
        schedule=config.schedule,
        warmup=config.warmup or 0.0,
        accumulate_grad_batches=config.accumulate,
        precision=config.precision,
        label_smoothing=config.label_smoothing,
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        limit_test_batches=config.limit_test_batches,
        last_batch=config.last_batch,
        overfit_batches=config.overfit_batches,
        fast_dev_run=config.fast_dev_run,
        val_check_interval=config.val_every,
        check_val_every_n_epoch=config.check_val_every_n_epoch,
        pipeline=config.pipeline,
        deterministic={"true": True}.get(config.deterministic or "", config.deterministic),
        on_nonfinite=config.on_nonfinite,
        seed=config.seed,
        num_sanity_val_steps=config.num_sanity_val_steps,
        barebones=bool(config.barebones),
        callbacks=_callbacks(config),
        logger=config.logger,
        profiler=config.profile,
        log_every_n_steps=config.log_every_n_steps,
        run_dir=config.run_dir,
        default_root_dir=RUNS,
    )
    return model, trainer


def _callbacks(config: TrainConfig) -> list[Callback]:
    callbacks: list[Callback] = []
    if not config.barebones:
        interval = checkpoint_interval(config.checkpoint_every)
        callbacks.append(ModelCheckpoint(save_top_k=config.keep_top, **interval))
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(patience=config.early_stopping))
    if config.ema is not None:
        callbacks.append(EMAWeightAveraging(config.ema))
    if config.swa is not None:
        callbacks.append(StochasticWeightAveraging(config.swa_lr, config.swa))
    if config.lookahead is not None:
        steps, anneal = config.lookahead_steps, bool(config.lookahead_anneal)
        callbacks.append(Lookahead(steps, config.lookahead, anneal))
    callbacks += [named(MONITORS[name])() for name in monitors(config.monitor)]
    if config.recipe is not None and not config.barebones:
        callbacks.append(_Recipe(config.recipe))
    return callbacks


class _Recipe(Callback):
    """Writes the recipe's name into the run's summary."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_fit_start(self, fit):
        fit.run.update(recipe=self.name)


def conclude(
    trainer: Trainer, model: keras.Model, data: DataModule, result: FitResult, tta: str | None
) -> Conclusion:
    """Evaluate on the test split, once, and write record, plots and report into the run.

    Where there is to be no test, ``tta`` is measured on the validation split.
    """
    run, evaluation = result.run_dir, None
    assert run is not None
    more: dict[str, Any] = {}
    if trainer.limit_test_batches == 0:
        if tta is not None and data.validation is not None:
            logs = trainer.validate(model, data, tta=tta)
            more = {f"validation_{name}": logs[name] for name in ("loss_tta", "accuracy_tta")}
    elif data.test is not None:
        _, logits = trainer.test_outputs(model, data, tta=tta)
        labels = data.test.y[: len(logits)]  # limit_test_batches may leave some out
        evaluation = classified(labels, logits, data.source.class_names)
        more = {"total_seconds": round(runtime.process_seconds(), 2)}
    summary = rundir.read_json(run / rundir.SUMMARY) | more
    write_json(run / rundir.SUMMARY, summary)
    return Conclusion(summary, evaluation, report.build([run]))
