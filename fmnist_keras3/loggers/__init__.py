"""Loggers: each takes records, dicts of plain numbers with the keys event, epoch and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.loggers.csv import CSVLogger
from fmnist_keras3.loggers.mlflow import MLFlowLogger
from fmnist_keras3.loggers.tensorboard import TensorBoardLogger
from fmnist_keras3.loggers.trackio import TrackioLogger
from fmnist_keras3.loggers.wandb import WandbLogger
from fmnist_keras3.runs.jsonl import JSONLLogger
from fmnist_keras3.training.logger import Logger, Loggers

LOGGERS = {  # of --logger
    "csv": "loggers.csv:CSVLogger",
    "tensorboard": "loggers.tensorboard:TensorBoardLogger",
    "mlflow": "loggers.mlflow:MLFlowLogger",
    "wandb": "loggers.wandb:WandbLogger",
    "trackio": "loggers.trackio:TrackioLogger",
}

__all__ = [
    "LOGGERS",
    "CSVLogger",
    "JSONLLogger",
    "Logger",
    "Loggers",
    "MLFlowLogger",
    "TensorBoardLogger",
    "TrackioLogger",
    "WandbLogger",
    "make_loggers",
]


def make_loggers(chosen: bool | str | Logger | Sequence[str | Logger] | None) -> list[Logger]:
    """Return the loggers that a Trainer's ``logger`` means; imports none of their packages.

    ``chosen`` is None or False (none), True (csv), a name or several ("csv,tensorboard"), a
    `Logger`, or a list of names and Loggers. Raises UserError for anything else, for a package that
    is not installed, and for two of a kind, which would share their files.
    """
    several: Sequence[Any]
    if chosen is None or chosen is False:
        several = []
    elif chosen is True:
        several = ["csv"]
    elif isinstance(chosen, str):
        several = [name.strip() for name in chosen.split(",")]
    else:
        several = chosen if isinstance(chosen, (list, tuple)) else [chosen]
    loggers = [_made(one) for one in several]
    for kind, count in Counter(map(type, loggers)).items():
        if count > 1 and kind.__module__.startswith(f"{__name__}."):
            raise UserError(f"logger has {count} of {kind.__name__}; give one of a kind.")
    return loggers


def _made(one: Any) -> Logger:
    if isinstance(one, Logger):
        return one
    if isinstance(one, str) and one in LOGGERS:
        return named(LOGGERS[one])()
    raise UserError(
        f"There is no logger {one!r}.{nearest(str(one), LOGGERS)} Loggers: {', '.join(LOGGERS)} "
        "(metrics.jsonl is always written), or an instance of a Logger."
    )
