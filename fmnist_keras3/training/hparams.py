"""What decides a run that was started from Python, as plain values for config.yaml."""

from __future__ import annotations

import inspect
import json
import math
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.engines.module_step import example_of
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.module import Module

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.data.datamodule import DataModule
    from fmnist_keras3.training.trainer import Trainer

PLACES = ("run_dir", "default_root_dir")  # of this one run


def describe(trainer: Trainer, model: keras.Model, data: DataModule) -> dict[str, Any]:
    """Return model, optimizer, loss, data and all arguments of the Trainer and its callbacks."""
    names = [n for n in inspect.signature(type(trainer)).parameters if n not in PLACES]
    values = {n: getattr(trainer, n) for n in names if n != "logger"}
    values["logger"] = trainer.loggers.names
    values["callbacks"] = [_described(callback) for callback in trainer.callbacks]
    loss = model.loss
    where = getattr(data, "data_dir", None)
    return _plain(
        {
            "model": model.name,
            "optimizer": {"class": type(model.optimizer).__name__, **model.optimizer.get_config()},
            "loss": loss if isinstance(loss, str) else _name(loss or model),
            "data_module": {
                "class": type(data).__name__,
                "data": getattr(data, "data", data.source.name),
                "data_dir": None if where is None else Path(where).resolve(),
                **(vars(data.pixels) if hasattr(data, "pixels") else {}),
                "sha256": data.source.sha256,
                "batch_size": data.batch_size,
                "augment": [repr(augmentation) for _, augmentation in data.augment],
                "validation": data.validation_fraction,
                "seed": data.seed,
            },
            "trainer": values,
            **({"module": _of_module(model, data)} if isinstance(model, Module) else {}),
        }
    )


def _of_module(model: Module, data: DataModule) -> dict[str, Any]:
    """Return what `Module.load_from_checkpoint` needs."""
    arguments = check_hparams(vars(getattr(model, "hparams", SimpleNamespace())))
    return {"arguments": arguments, "example": example_of(data.train)}


def check_hparams(values: dict[str, Any]) -> dict[str, Any]:
    """Return a user's own hyper-parameters; raises UserError for what YAML cannot hold."""
    for name, value in values.items():
        try:
            plain = json.loads(json.dumps({name: value}, allow_nan=False)) == {name: value}
        except (TypeError, ValueError):
            plain = False
        if not plain:
            raise UserError(
                f"hparams holds {name!r}: {value!r}; it must map names to texts, numbers, truth "
                "values, None, or lists and dicts of them."
            )
    return dict(values)


def _described(callback: Any) -> dict[str, Any]:
    """Return a callback's class and those of its arguments that it keeps."""
    callback = callback.given
    names = inspect.signature(type(callback)).parameters
    kept = {n: getattr(callback, n) for n in names if hasattr(callback, n)}
    return {"class": type(callback).__name__, **kept}


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _plain(value: Any) -> Any:
    """Return ``value`` as YAML and JSON hold it; what they cannot, by the name of its class."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, str):  # YAML refuses what is derived from them, such as an enum's members
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _name(value)
