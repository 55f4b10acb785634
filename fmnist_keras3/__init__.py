"""A PyTorch-Lightning-style trainer on Keras 3, with Fashion-MNIST as its subject.

Importing the package imports neither Keras nor a backend and sets nothing; the public names are
loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_keras3.callbacks import (
        BackboneFinetuning,
        Callback,
        DeviceStatsMonitor,
        EarlyStopping,
        EMAWeightAveraging,
        GradientNorm,
        LearningRateMonitor,
        Lookahead,
        ModelCheckpoint,
        ModelSummary,
        OptunaPruning,
        RichProgressBar,
        StochasticWeightAveraging,
        ThroughputMonitor,
        Timer,
        WeightAveraging,
    )
    from fmnist_keras3.data.arrays import ArrayData
    from fmnist_keras3.data.datamodule import DataModule
    from fmnist_keras3.data.fashion import FashionMNIST
    from fmnist_keras3.data.items import SourceData
    from fmnist_keras3.data.own import FolderData, TableData
    from fmnist_keras3.ground.errors import Diverged, UserError
    from fmnist_keras3.inference.export import export
    from fmnist_keras3.inference.predictor import Predictor
    from fmnist_keras3.loggers import (
        CSVLogger,
        Logger,
        MLFlowLogger,
        TensorBoardLogger,
        TrackioLogger,
        WandbLogger,
    )
    from fmnist_keras3.models import build_model
    from fmnist_keras3.module import Module
    from fmnist_keras3.runs.history import History
    from fmnist_keras3.runs.load import Run, load_model, load_run
    from fmnist_keras3.runs.result import FitResult
    from fmnist_keras3.seeding import seed_everything
    from fmnist_keras3.training.trainer import Trainer
    from fmnist_keras3.training.view import SessionView
    from fmnist_keras3.tuning.finders import Tuner
    from fmnist_keras3.tuning.tune import tune

_PUBLIC = {
    "data.arrays": "ArrayData",
    "data.datamodule": "DataModule",
    "data.fashion": "FashionMNIST",
    "data.items": "SourceData",
    "data.own": "FolderData TableData",
    "ground.errors": "Diverged UserError",
    "inference.export": "export",
    "inference.predictor": "Predictor",
    "models": "build_model",
    "module": "Module",
    "seeding": "seed_everything",
    "runs.history": "History",
    "runs.load": "Run load_model load_run",
    "runs.result": "FitResult",
    "training.callback": "Callback",
    "training.logger": "Logger",
    "training.trainer": "Trainer",
    "training.view": "SessionView",
    "tuning.finders": "Tuner",
    "tuning.tune": "tune",
    "callbacks": "BackboneFinetuning DeviceStatsMonitor EMAWeightAveraging EarlyStopping "
    "GradientNorm Lookahead LearningRateMonitor ModelCheckpoint ModelSummary OptunaPruning "
    "RichProgressBar StochasticWeightAveraging ThroughputMonitor Timer WeightAveraging",
    "loggers": "CSVLogger MLFlowLogger TensorBoardLogger TrackioLogger WandbLogger",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [
    "ArrayData",
    "BackboneFinetuning",
    "CSVLogger",
    "Callback",
    "DataModule",
    "DeviceStatsMonitor",
    "Diverged",
    "EMAWeightAveraging",
    "EarlyStopping",
    "FashionMNIST",
    "FitResult",
    "FolderData",
    "GradientNorm",
    "History",
    "LearningRateMonitor",
    "Logger",
    "Lookahead",
    "MLFlowLogger",
    "ModelCheckpoint",
    "ModelSummary",
    "Module",
    "OptunaPruning",
    "Predictor",
    "RichProgressBar",
    "Run",
    "SessionView",
    "SourceData",
    "StochasticWeightAveraging",
    "TableData",
    "TensorBoardLogger",
    "ThroughputMonitor",
    "Timer",
    "TrackioLogger",
    "Trainer",
    "Tuner",
    "UserError",
    "WandbLogger",
    "WeightAveraging",
    "build_model",
    "export",
    "load_model",
    "load_run",
    "seed_everything",
    "tune",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from fmnist_keras3.ground.lightning import NAMES

        if name in NAMES:  # an AttributeError's message would be lost in `from ... import`
            raise ImportError(f"There is no {name} in {__name__}. It is {NAMES[name]}.")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fmnist_keras3 import runtime

    if name == "tune":
        import_module(f"{__name__}.tuning.plan").check_optuna()
    heavy = (
        "Module",
        "Trainer",
        "FitResult",
        "Predictor",
        "Tuner",
        "export",
        "load_model",
        "load_run",
    )
    if name in (*heavy, "tune"):
        runtime.prepare()  # these import Keras, which must find its flags
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
