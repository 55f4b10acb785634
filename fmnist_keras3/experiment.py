"""A training from its settings to a finished run; commands parse before it and print after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import runtime
from fmnist_keras3.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    Lookahead,
    ModelCheckpoint,
    StochasticWeightAveraging,
    monitors,
)
from fmnist_keras3.callbacks.model_checkpoint import interval
from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.fashion import FashionMNIST
from fmnist_keras3.data.weights import weighted
from fmnist_keras3.evaluation import report
from fmnist_keras3.evaluation.metrics import Evaluation
from fmnist_keras3.evaluation.results import classified
from fmnist_keras3.ground.files import read_json, write_json
from fmnist_keras3.models import build_model
from fmnist_keras3.optimizers import make_optimizer, parse_lr_groups
from fmnist_keras3.runs import rundir
from fmnist_keras3.runs.lock import locked
from fmnist_keras3.settings import TrainConfig, arguments_of
from fmnist_keras3.training.programs import Programs
from fmnist_keras3.training.trainer import Trainer

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.data.dataset import ImageData
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


def load_data(config: TrainConfig, source: ImageData | None = None) -> DataModule:
    """Return the data of the settings, loaded; of ``source``, if that was read before."""
    given = arguments_of("DataModule", config) | arguments_of("FashionMNIST", config)
    module = FashionMNIST(**given)
    if source is not None:
        module.load = lambda: source
    return weighted(module.setup(), config.class_weight)


def make_model(config: TrainConfig, image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return the model of the settings, compiled with their optimizer."""
    given = arguments_of("make_optimizer", config)
    given["lr_groups"] = parse_lr_groups(config.lr_groups)
    options = arguments_of("build_model", config)
    options |= {"input_shape": image_shape, "classes": classes}
    return build_model(optimizer=make_optimizer(**given), **options)


def build(
    config: TrainConfig, data: DataModule | None = None, programs: Programs | None = None
) -> tuple[DataModule, keras.Model, Trainer]:
    """Return the data of the settings (or ``data``), the model and the Trainer for it.

    ``programs``, of an earlier training, are used again where they fit: for the same model with
    another seed, learning rate, weight decay, dropout rate or strength of L2.
    """
    data = load_data(config) if data is None else data
    model = make_model(config, data.train.image_shape, len(data.source.class_names))
    given = arguments_of("Trainer", config)
    trainer = Trainer(**given, callbacks=_callbacks(config), default_root_dir=RUNS)
    if programs is not None:
        trainer.programs, model = programs, programs.adopt(model)
    return data, model, trainer


def _callbacks(config: TrainConfig) -> list[Callback]:
    def made(kind: type[Callback], **more: Any) -> Callback:
        return kind(**arguments_of(kind.__name__, config), **more)

    callbacks: list[Callback] = []
    if not config.barebones:
        callbacks.append(made(ModelCheckpoint, **interval(config.checkpoint_every)))
    if config.early_stopping is not None:
        callbacks.append(made(EarlyStopping))
    if config.ema is not None:
        callbacks.append(made(EMAWeightAveraging))
    if config.swa is not None:
        callbacks.append(made(StochasticWeightAveraging))
    if config.lookahead is not None:
        callbacks.append(made(Lookahead))
    callbacks += [monitor() for monitor in monitors(config.monitor)]
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
    with locked(run):
        summary = read_json(run / rundir.SUMMARY) | more
        write_json(run / rundir.SUMMARY, summary)
        return Conclusion(summary, evaluation, report.build([run]))
