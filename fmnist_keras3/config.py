"""The settings of `fmnist train`: one frozen dataclass for the command line and for YAML.

A field is a setting, an option (``--batch_size`` or ``--batch-size``) and a YAML key. This module
imports neither Keras nor a backend, so that a wrong setting is told at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.lightning import option_here

if TYPE_CHECKING:
    import keras


def _setting(default: Any, help: str, **checks: Any) -> Any:
    return field(default=default, metadata={"help": help, **checks})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training; raises UserError for a value outside its range."""

    recipe: str | None = _setting(
        None, "settings below all that you give: a name in `fmnist recipes`, or a YAML file"
    )
    model: str = _setting(
        "baseline",
        "what to train, with options as airnet:widths=16-32; see `fmnist models`",
        fixed=True,
    )
    dropout: float | None = _setting(
        None,
        "dropout rate, 0 <= rate < 1; the model's own if not given",
        least=0,
        below=1,
        fixed=True,
    )
    l2: float | None = _setting(
        None, "L2 strength on kernels; the model's own if not given", least=0, fixed=True
    )
    data: str = _setting("auto", "auto, fashion_mnist, synthetic or tfds:NAME", fixed=True)
    data_dir: str | None = _setting(None, "folder with the IDX files; else $FMNIST_DATA_DIR")
    validation: float = _setting(
        0.1, "fraction of the training set held out, 0 <= f < 1", least=0, below=1, fixed=True
    )
    augment: str = _setting(
        "altflip,crop:1",
        "none, or a list of flip[:P] or altflip, crop[:PIXELS], rotate[:DEGREES], brightness[:S], "
        "contrast[:S], erase[:P], cutout[:SIZE], mixup[:ALPHA] or cutmix[:ALPHA]",
        fixed=True,
    )
    tta: str | None = _setting(
        None,
        "test-time augmentation, mirror, shift[:PIXELS] or both: the test's figures with it come "
        "beside those without",
    )
    pipeline: str = _setting(
        "auto", "images on the device, or through tf.data", choices=("auto", "resident", "stream")
    )
    optimizer: str = _setting("adamw", "optimizer's name, with options as sgd:momentum=0.85")
    lr: float = _setting(2e-3, "learning rate, the schedule's peak", above=0)
    schedule: str = _setting(
        "cosine", "constant, cosine, linear, one_cycle, step, triangular or wsd"
    )
    warmup: float | None = _setting(
        None,
        "epochs of linear rise of the learning rate, at most a fifth of all [5; one_cycle and "
        "triangular rise on their own]",
        least=0,
    )
    lr_groups: str | None = _setting(
        None, "factors on the learning rate by names in variables' paths: beta=64,logits=0.5"
    )
    weight_decay: float = _setting(0.0, "decoupled weight decay on kernels", least=0)
    label_smoothing: float = _setting(0.0, "0 <= e < 1, in training only", least=0, below=1)
    clip: float | None = _setting(None, "largest global norm of the gradients", above=0)
    accumulate: int = _setting(1, "batches whose gradients make one update", least=1)
    ema: float | None = _setting(
        None,
        "decay of an exponential average of the weights (0.999), which the model then holds",
        least=0,
        below=1,
        fixed=True,
    )
    swa: int | float | None = _setting(
        None,
        "epoch, or fraction of all epochs (0.8), from which on the weights are averaged (SWA)",
        fixed=True,
    )
    swa_lr: float | None = _setting(
        None, "learning rate while SWA averages; the schedule's if not given", above=0
    )
    lookahead: float | None = _setting(
        None,
        "how far slow weights follow the trained ones, which go on from them (look-ahead, 0.5)",
        above=0,
        most=1,
        fixed=True,
    )
    lookahead_steps: int = _setting(5, "steps between look-aheads", least=1, fixed=True)
    lookahead_anneal: int = _setting(
        0,
        "1: slow weights follow at once at first, and as far as --lookahead says in the end",
        choices=(0, 1),
        flag=1,
        fixed=True,
    )
    precision: str = _setting(
        "32", "of the arithmetic; weights are float32", choices=("32", "bf16-mixed", "16-mixed")
    )
    deterministic: str | None = _setting(
        None,
        "programs that give the same bits each time, on a GPU too; warn: or say if there are none",
        choices=("true", "warn"),
        flag="true",
    )
    epochs: int = _setting(25, "epochs to train", least=1)
    min_epochs: int = _setting(0, "epochs before which nothing stops early", least=0)
    max_steps: int | None = _setting(None, "steps after which to end, if that is earlier", least=1)
    max_time: str | None = _setting(None, "time after which to end: 00:10:00 or seconds")
    batch_size: int = _setting(128, "examples a step", least=1, fixed=True)
    seed: int = _setting(0, "of weights, order, augmentation and split", least=0, fixed=True)
    early_stopping: int | None = _setting(
        None, "epochs without a better validation loss after which to stop", least=0
    )
    checkpoint_every: str | None = _setting(
        None,
        "2epochs; or, besides each epoch's end, steps (500) or a time (30s, 10m, 1h) [1epoch]",
    )
    on_nonfinite: str = _setting(
        "stop",
        "when loss or weights are not finite: stop, or rollback to the last good checkpoint",
        choices=("stop", "rollback"),
    )
    keep_top: int = _setting(
        1, "best checkpoints to keep, besides the last; -1: every checkpoint", least=-1
    )
    limit_train_batches: int | float | None = _setting(
        None, "batches of an epoch to train on, or a fraction (0.1)", fixed=True
    )
    limit_val_batches: int | float | None = _setting(
        None, "batches to validate on, or a fraction; 0: no validation"
    )
    limit_test_batches: int | float | None = _setting(
        None, "batches to test on, or a fraction; 0: no test"
    )
    last_batch: str = _setting(
        "keep",
        "an epoch's last, short batch: keep it as it is, drop it, or fill it up by repeats, which "
        "count in batch normalisation only",
        choices=("keep", "fill", "drop"),
        fixed=True,
    )
    overfit_batches: int | float = _setting(
        0,
        "train and validate on so few batches (or a fraction), to see that they can be learnt",
        fixed=True,
    )
    fast_dev_run: int = _setting(
        0,
        "so many batches of training, validation and test, as a trial; leaves no files",
        least=0,
        flag=1,
    )
    num_sanity_val_steps: int = _setting(
        2, "batches to validate on before the first epoch; -1: all", least=-1
    )
    barebones: int = _setting(
        0, "1: train without checkpoints, records, bar and files", choices=(0, 1), flag=1
    )
    val_every: int | float | None = _setting(
        None, "steps (or a fraction of an epoch) between validations, besides at epochs' ends"
    )
    check_val_every_n_epoch: int = _setting(1, "validate at the end of each n-th epoch", least=1)
    log_every_n_steps: int = _setting(50, "steps between step records; 0 for none", least=0)
    logger: str | None = _setting(
        None, "beside metrics.jsonl, one or a list of csv, tensorboard, mlflow, wandb, trackio"
    )
    monitor: str | None = _setting(
        None, "what to log besides, one or a list of lr, gradients, throughput, device"
    )
    profile: str | None = _setting(
        None,
        "simple: the share of each part; trace: the backend's profiler over one chunk",
        choices=("simple", "trace"),
    )
    run_dir: str | None = _setting(None, "new folder of the run; one below runs/ if not given")
    resume: str | None = _setting(
        None, "last, best, auto (last, if there is one), or a run's or checkpoint's folder"
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f, getattr(self, f.name))
        from fmnist_keras3.data.augment import parse_augment
        from fmnist_keras3.data.sources import check_name
        from fmnist_keras3.loggers import make_loggers
        from fmnist_keras3.models import check_model
        from fmnist_keras3.optimizers import check_optimizer, parse_lr_groups
        from fmnist_keras3.training.arguments import check_amount, seconds
        from fmnist_keras3.training.schedules import RISING, make_schedule
        from fmnist_keras3.training.tta import parse_tta

        check_model(self.model)
        check_optimizer(self.optimizer)
        parse_lr_groups(self.lr_groups)
        make_schedule(self.schedule, self.lr, 1)
        check_name(self.data)
        parse_augment(self.augment)
        parse_tta(self.tta)
        make_loggers(self.logger)
        monitors(self.monitor)
        for name, fewest in (
            ("limit_train_batches", 1),
            ("limit_val_batches", 0),
            ("limit_test_batches", 0),
            ("overfit_batches", 0),
            ("val_every", 1),
        ):
            check_amount(name, getattr(self, name), fewest)
        if self.max_time is not None:
            seconds(self.max_time)
        if self.min_epochs > self.epochs:
            raise UserError(f"min_epochs is {self.min_epochs}, more than epochs {self.epochs}.")
        averages = [name for name in ("ema", "swa", "lookahead") if getattr(self, name) is not None]
        if len(averages) > 1:
            raise UserError(f"{' and '.join(averages)} both average the weights. Give one of them.")
        if self.swa is not None and not 0 <= self.swa < self.epochs:
            raise UserError(
                f"swa is {self.swa}; it must be an epoch below {self.epochs}, or a fraction of all "
                "epochs. Type --swa 0.8"
            )
        self._check_idle()
        checkpoint_interval(self.checkpoint_every)
        if self.warmup is None:
            object.__setattr__(self, "warmup", 0.0 if self.schedule in RISING else 5.0)
        if self.early_stopping is not None and self.validation == 0:
            raise UserError("early_stopping watches the validation loss, but validation is 0.")

    def _check_idle(self) -> None:
        """Raise UserError for settings that would do nothing beside the others."""
        idle = {
            "swa_lr": (self.swa is None, "without swa"),
            "lookahead_steps": (self.lookahead is None, "without lookahead"),
            "lookahead_anneal": (self.lookahead is None, "without lookahead"),
            "checkpoint_every": (bool(self.barebones), "with barebones"),
            "tta": (bool(self.barebones), "with barebones, which tests nothing"),
        }
        if self.limit_test_batches == 0 and self.validation == 0:
            idle["tta"] = (True, "without test and validation")
        for name, (unused, when) in idle.items():
            if unused and getattr(self, name) != FIELDS[name].default:
                raise UserError(f"{name} does nothing {when}. Leave one of them out.")

    def build_model(self, image_shape: tuple[int, ...], classes: int) -> keras.Model:
        """Build the model, compiled with the optimizer of these settings; imports Keras."""
        from fmnist_keras3.models import build_model
        from fmnist_keras3.optimizers import make_optimizer, parse_lr_groups

        optimizer = make_optimizer(
            self.optimizer,
            self.lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
            lr_groups=parse_lr_groups(self.lr_groups),
        )
        options = {"dropout": self.dropout, "l2": self.l2, "seed": self.seed}
        shape = {"input_shape": image_shape, "classes": classes}
        return build_model(self.model, optimizer=optimizer, **options, **shape)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.yaml holds: all settings but where this one run lies.

        Without the recipe, whose settings are among them: it may be another one some day.
        """
        values = dataclasses.asdict(self)
        del values["recipe"], values["run_dir"], values["resume"]
        if self.data_dir is not None:
            values["data_dir"] = str(Path(self.data_dir).resolve())
        return values


_INTERVAL = re.compile(r"([1-9]\d*)(|steps?|epochs?|s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def checkpoint_interval(text: str | None) -> dict[str, Any]:
    """Return ``checkpoint_every`` as arguments of `ModelCheckpoint`; raises UserError."""
    match = _INTERVAL.fullmatch((text or "1epoch").replace(" ", ""))
    if not match:
        raise UserError(
            f"checkpoint_every is {text!r}; it must be a number of steps, epochs or a time, at "
            "least 1. Type --checkpoint_every 500, 2epochs, 30s, 10m or 1h"
        )
    count, unit = int(match[1]), match[2]
    if unit.startswith("epoch"):
        return {"every_n_epochs": count}
    if unit in _SECONDS:
        return {"train_time_interval": count * _SECONDS[unit]}
    return {"every_n_train_steps": count}


def monitors(text: str | None) -> list[str]:
    """Return the names in ``monitor``; raises UserError for one that there is not."""
    from fmnist_keras3.callbacks import MONITORS

    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in MONITORS:
            raise UserError(
                f"monitor has {name!r}.{nearest(name, MONITORS)} It must be one or a list of "
                f"{', '.join(MONITORS)}. Type --monitor lr,device"
            )
    return list(dict.fromkeys(names))


FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}
_TYPES = typing.get_type_hints(TrainConfig)


def field_type(name: str) -> tuple[Any, bool]:
    """Return the type of a setting (str, int, float, or `amount`) and whether it may be None."""
    hint = _TYPES[name]
    if not isinstance(hint, types.UnionType):
        return hint, False
    kinds = [t for t in hint.__args__ if t is not type(None)]
    return (amount if len(kinds) > 1 else kinds[0]), type(None) in hint.__args__


def amount(value: Any) -> int | float:
    """Return a number of things as int, a fraction of them as float: "10", "0.1", "1.0"."""
    if isinstance(value, (int, float)):
        return value
    return int(value) if value.strip().lstrip("+-").isdigit() else float(value)


def convert(name: str, value: Any) -> Any:
    """Return ``value``, from the command line or YAML, in the setting's type; else UserError."""
    kind, optional = field_type(name)
    if value is None or (optional and value == "none"):
        if optional:
            return None
        raise UserError(f"{name} has no value. Give {_article(kind)}, or leave the line out.")
    if isinstance(value, bool) and "flag" in FIELDS[name].metadata:
        return FIELDS[name].metadata["flag"] if value else FIELDS[name].default
    if isinstance(value, (bool, list, dict)):
        raise UserError(f"{name} is {value!r}; it must be {_article(kind)}.")
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return kind(value)
    except (ValueError, OverflowError):
        raise UserError(
            f"{name} is {value!r}; it must be {_article(kind)}. Type --{name} {_example(name)}"
        ) from None


OWN_VARIABLES = ("DATA_DIR", "OFFLINE")  # of the data sources
_NOT_BY_ENVIRONMENT = ("data_dir", "run_dir", "resume")


def read_environment() -> dict[str, Any]:
    """Return the settings in the environment: ``FMNIST_EPOCHS=3`` is ``epochs: 3``.

    Raises UserError for a variable that names no setting.
    """
    names = {name.upper(): name for name in FIELDS if name not in _NOT_BY_ENVIRONMENT}
    chosen = {}
    for variable, value in os.environ.items():
        key = variable.removeprefix("FMNIST_")
        if key == variable or key in OWN_VARIABLES:
            continue
        if key not in names:
            raise UserError(
                f"The environment variable {variable} names no setting."
                f"{option_here(key, FIELDS) or nearest(key, names)} "
                "`fmnist train --help` lists the settings; unset the variable if it is not ours."
            )
        chosen[names[key]] = convert(names[key], value)
    return chosen


def layered(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return settings of which later layers rule, over those of the recipe that they name."""
    given = {name: value for layer in layers for name, value in layer.items()}
    if given.get("recipe") is None:
        return given
    from fmnist_keras3.recipes import read

    return read(given["recipe"])[1] | given


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the settings in a YAML file, in their types.

    Raises UserError for a file that is missing, no YAML or no mapping, and for unknown keys, with
    the nearest known one.
    """
    return typed(mapping(path), path)


def mapping(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file maps; raises UserError for one that is missing, broken or no map."""
    import yaml

    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration {path} cannot be read: {error}.") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: this is not YAML ({getattr(error, 'problem', None) or 'broken'}). "
            "Write one `key: value` a line; `fmnist train --print_config` shows all keys."
        ) from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; write one `key: value` a line.")
    return values


def typed(values: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the settings ``values``, of the file ``path``, in their types.

    Raises UserError for unknown keys, with the nearest known one.
    """
    if "trainer" in values:
        raise UserError(
            f"{path} is of a Trainer in Python, whose model and data are in your program. Run that "
            "again (Trainer(...).fit); the file holds the arguments it had."
        )
    for key in values:
        if key not in FIELDS:
            raise UserError(
                f"{path}: unknown key {key!r}."
                f"{option_here(str(key), FIELDS) or nearest(str(key), FIELDS)} "
                "`fmnist train --print_config` shows all keys."
            )
    return {key: convert(key, value) for key, value in values.items()}


def _check(f: dataclasses.Field, value: Any) -> None:
    limits = f.metadata
    if value is None:
        return
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(
            f"{f.name} is {value!r}.{nearest(str(value), map(str, limits['choices']))} "
            f"Allowed: {', '.join(map(str, limits['choices']))}."
        )
    rules = []
    bad = isinstance(value, float) and not math.isfinite(value)
    for key, words, good in (
        ("least", "at least", lambda v, m: v >= m),
        ("above", "more than", lambda v, m: v > m),
        ("below", "less than", lambda v, m: v < m),
        ("most", "at most", lambda v, m: v <= m),
    ):
        if key in limits:
            rules.append(f"{words} {limits[key]}")
            bad = bad or not good(value, limits[key])
    if bad:
        rules = rules or ["finite"]
        raise UserError(
            f"{f.name} is {value}; it must be {' and '.join(rules)}. "
            f"Type --{f.name} {_example(f.name)}"
        )


def _article(kind: type) -> str:
    names = {int: "a whole number", float: "a number", str: "a text"}
    return names.get(kind, "a number of batches or a fraction")


def _example(name: str) -> str:
    default = FIELDS[name].default
    if default is not None:
        return f"{default:g}" if isinstance(default, float) else str(default)
    kind = field_type(name)[0]
    return {int: "10", float: "0.1", str: "..."}.get(kind, "10")
