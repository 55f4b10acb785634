"""The table of settings, and what comes from it.

From a line of it come the option of `fmnist train` with its help, the key of YAML and of the
environment, the check, and what each class and function is given; of what the Trainer takes also
the check in Python and the line in its docstring. tests/write_settings.py writes that docstring
and the README's table.

Neither Keras nor a backend is imported, so that a wrong setting is told at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.ground.lightning import option_here
from fmnist_keras3.ground.setting import Setting, amount

# Lightning's names, and Keras' policies for them.
PRECISIONS = {"32": "float32", "bf16-mixed": "mixed_bfloat16", "16-mixed": "mixed_float16"}


def _setting(default: Any, **row: Any) -> Any:
    return field(default=default, metadata=row)


PROCESSES = ("coordinator", "num_processes", "process_id")  # which are of one start of a run

_fixed = functools.partial(_setting, fixed=True)  # may not change on resume
_switch = functools.partial(_setting, 0, choices=(0, 1), flag=1)


# fmt: off
# A row of the table is what a setting is, and below it what is said of it.
@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training; raises UserError for a value outside its range."""

    recipe: str | None = _setting(None, takers="", group="model",
        help="settings below all that you give: a name in `fmnist recipes`, or a YAML file")
    model: str = _fixed("baseline", takers="build_model.name", parser="models:check_model",
        help="what to train, with options as airnet:widths=16-32; see `fmnist models`")
    dropout: float | None = _fixed(None, takers="build_model", least=0, below=1, example=0.2,
        unset="the model's own",
        help="dropout rate")
    l2: float | None = _fixed(None, takers="build_model", least=0, example=1e-4,
        unset="the model's own",
        help="L2 strength on kernels")

    data: str = _fixed("auto", takers="FashionMNIST", parser="data.sources:check_name",
        group="data",
        help="auto, fashion_mnist, synthetic, tfds:NAME, or your own images: folder:PATH, "
        "csv:PATH, npz:PATH, idx:PATH, parquet:PATH, hf:NAME")
    data_dir: str | None = _setting(None, takers="FashionMNIST", unset="$FMNIST_DATA_DIR",
        help="folder with the IDX files")
    image_size: str | None = _fixed(None, takers="FashionMNIST", parser="data.pixels:parse_size",
        unset="as they are",
        help="height and width that images are brought to, as 64,48")
    color: str = _fixed("auto", takers="FashionMNIST", choices=("auto", "grey", "rgb"),
        help="of the images; auto: rgb, if any of them has colours")
    resize: str = _fixed("crop", takers="FashionMNIST", choices=("crop", "pad", "stretch"),
        needs="image_size",
        help="what is done to images of another ratio of sides than image_size")
    on_bad_file: str = _setting("skip", takers="FashionMNIST", choices=("skip", "stop"),
        help="what is done about files that cannot be read as images")
    cache: str = _setting("none", takers="FashionMNIST", choices=("none", "disk", "memory"),
        help="decoded images of more than 0.5 GB: none, they are decoded when they are needed; "
        "disk, a copy of them is kept; memory, they are read into it")
    validation: float = _fixed(0.1, takers="DataModule", least=0, below=1,
        help="fraction of the training set held out")
    augment: str = _fixed("altflip,crop:1", takers="DataModule",
        parser="data.augment:parse_augment",
        help="none, or a list of flip[:P] or altflip, crop[:PIXELS], rotate[:DEGREES], "
        "brightness[:S], contrast[:S], erase[:P], cutout[:SIZE], mixup[:ALPHA] or cutmix[:ALPHA]")
    class_weight: str | None = _fixed(None, takers="", unset="all count alike",
        help="balanced, or a YAML file with a factor for each class: cat: 2.5")
    sampling: str = _fixed("all", takers="DataModule", choices=("all", "balanced"),
        help="examples of an epoch: all, or of each class equally many, which balances it")
    batch_size: int = _fixed(128, takers="DataModule", least=1, help="examples a step")
    last_batch: str = _fixed("keep", choices=("keep", "fill", "drop"),
        help="an epoch's last, short batch: keep it as it is, drop it, or fill it up by repeats, "
        "which count in batch normalisation only")
    seed: int = _fixed(0, takers="Trainer DataModule build_model", least=0,
        help="of weights, order, augmentation and split")
    pipeline: str = _setting("auto", choices=("auto", "resident", "stream"),
        help="images on the device, or through tf.data")

    optimizer: str = _setting("adamw", takers="make_optimizer.name",
        parser="optimizers:check_optimizer", group="optimizer",
        help="optimizer's name, with options as sgd:momentum=0.85")
    lr: float = _setting(2e-3, takers="make_optimizer", above=0,
        help="learning rate, the schedule's peak")
    schedule: str = _setting("cosine", parser="training.schedules:check_schedule",
        help="constant, cosine, linear, one_cycle, step, triangular or wsd",
        more="of the learning rate, with the optimizer's as its peak; None: the optimizer's own")
    warmup: float | None = _setting(None, least=0,
        unset="5; one_cycle and triangular rise on their own",
        help="epochs of linear rise of the learning rate, at most a fifth of all")
    lr_groups: str | None = _setting(None, takers="make_optimizer",
        parser="optimizers:parse_lr_groups",
        help="factors on the learning rate by names in variables' paths: beta=64,logits=0.5")
    weight_decay: float = _setting(0.0, takers="make_optimizer", least=0,
        help="decoupled weight decay on kernels")
    label_smoothing: float = _setting(0.0, least=0, below=1, help="rate, in training only")
    clip: float | None = _setting(None, takers="make_optimizer", above=0, example=1,
        help="largest global norm of the gradients")
    accumulate: int = _setting(1, takers="Trainer.accumulate_grad_batches", least=1,
        help="batches whose gradients make one update; so do those that an epoch leaves over")

    ema: float | None = _fixed(None, takers="EMAWeightAveraging.decay", least=0, below=1,
        example=0.999, group="averages",
        help="decay of an exponential average of the weights, which the model then holds")
    swa: int | float | None = _fixed(None, takers="StochasticWeightAveraging.swa_epoch_start",
        least=0, example=0.8,
        help="epoch, or fraction of all, from which on the weights are averaged (SWA)")
    swa_lr: float | None = _setting(None, takers="StochasticWeightAveraging.swa_lrs", above=0,
        example=1e-3, unset="the schedule's", needs="swa",
        help="learning rate while SWA averages")
    lookahead: float | None = _fixed(None, takers="Lookahead.alpha", above=0, most=1, example=0.5,
        help="how far slow weights follow the trained ones, which go on from them (look-ahead)")
    lookahead_steps: int = _fixed(5, takers="Lookahead.every_n_steps", least=1, needs="lookahead",
        help="steps between look-aheads")
    lookahead_anneal: int = _switch(takers="Lookahead.anneal", fixed=True, needs="lookahead",
        help="slow weights follow at once at first, and as far as --lookahead says in the end")

    precision: str = _setting("32", choices=tuple(PRECISIONS), group="arithmetic",
        help="of the arithmetic; weights are float32",
        more='"16-mixed" with loss scaling; None: as the model is')
    deterministic: str | None = _setting(None, choices=("true", "warn"), flag="true",
        help="programs that give the same bits each time, on a GPU too; warn: or say if there are "
        "none",
        more="with TensorFlow for the whole process")

    devices: str | None = _setting(None, parser="training.arguments:devices", unset="one",
        help="devices that share each batch: a number, or auto for all; with JAX",
        more="or what your keras.distribution says")
    shard: str | None = _setting(None, choices=("fsdp",), needs="devices",
        unset="each device holds all weights",
        help="fsdp: the devices share large weights, too, and what the optimizer keeps of them")

    coordinator: str | None = _setting(None, takers="", parser="runtime:check_coordinator",
        group="processes", unset="one process",
        help="HOST:PORT of the first of many processes that train together, or auto in a job of "
        "SLURM, Open MPI, Kubernetes or torchrun; `fmnist launch` starts them on one machine")
    num_processes: int | None = _setting(None, takers="", least=1, needs="coordinator",
        help="how many processes there are")
    process_id: int | None = _setting(None, takers="", least=0, needs="coordinator",
        help="which of them this one is, from 0")

    epochs: int = _setting(25, takers="Trainer.max_epochs", least=1, group="length",
        help="epochs to train",
        more="10, or what ``max_steps`` takes; -1: no limit")
    min_epochs: int = _setting(0, least=0, help="epochs before which nothing stops early")
    max_steps: int | None = _setting(None, least=1,
        help="steps after which to end, if that is earlier")
    max_time: str | None = _setting(None, parser="training.arguments:seconds",
        help="time after which to end: 00:10:00 or seconds",
        more='or a timedelta, or its arguments, {"minutes": 10}')
    early_stopping: int | None = _setting(None, takers="EarlyStopping.patience", least=0,
        help="epochs without a better validation loss after which to stop")
    on_nonfinite: str = _setting("stop", choices=("stop", "rollback"),
        help="when loss or weights are not finite: stop, or rollback to the last good checkpoint",
        more="stop raises Diverged; for rollback see `resume.Rollback`")

    limit_train_batches: int | float | None = _fixed(None, least=1, group="amount",
        help="batches of an epoch to train on")
    limit_val_batches: int | float | None = _setting(None, least=0,
        help="batches to validate on; 0: no validation")
    limit_test_batches: int | float | None = _setting(None, least=0,
        help="batches to test on; 0: no test")
    overfit_batches: int | float = _fixed(0, least=0,
        help="train and validate on so few batches, to see that they can be learnt; 0: off")
    fast_dev_run: int = _setting(0, least=0, flag=1,
        help="so many batches of training, validation and test, as a trial; leaves no files")
    barebones: int = _switch(
        help="train without checkpoints, records, bar and files, to see what they cost")

    num_sanity_val_steps: int = _setting(2, least=-1, group="validation and test",
        help="batches to validate on before the first epoch; -1: all")
    val_every: int | float | None = _setting(None, takers="Trainer.val_check_interval", least=1,
        help="steps, or part of an epoch, between validations, besides at epochs' ends")
    check_val_every_n_epoch: int = _setting(1, least=1,
        help="validate at the end of each n-th epoch")
    tta: str | None = _setting(None, takers="", parser="training.tta:parse_tta",
        help="test-time augmentation, mirror, shift[:PIXELS] or both: the test's figures with it "
        "come beside those without")

    log_every_n_steps: int = _setting(50, least=0, group="records",
        help="steps between step records; 0 for none")
    logger: str | None = _setting(None, parser="loggers:make_loggers",
        help="beside metrics.jsonl, one or a list of csv, tensorboard, mlflow, wandb, trackio",
        more="or `Logger`; True: csv; one that fails is left out")
    monitor: str | None = _setting(None, takers="", parser="callbacks:monitors",
        help="what to log besides, one or a list of lr, gradients, throughput, device")
    profile: str | None = _setting(None, takers="Trainer.profiler", choices=("simple", "trace"),
        help="simple: the share of each part; trace: the backend's profiler over one chunk",
        more="in ``FitResult.profile`` and the run directory")

    checkpoint_every: str | None = _setting(None, takers="", group="files",
        parser="callbacks.model_checkpoint:interval", unset="1epoch",
        help="2epochs; or, besides each epoch's end, steps (500) or a time (30s, 10m, 1h)")
    keep_top: int = _setting(1, takers="ModelCheckpoint.save_top_k", least=-1,
        help="best checkpoints to keep, besides the last; -1: every checkpoint")
    run_dir: str | None = _setting(None, unset="one below runs/", help="new folder of the run")
    resume: str | None = _setting(None, takers="",
        help="last, best, auto (last, if there is one), or a run's or checkpoint's folder")
    # fmt: on

    def __post_init__(self) -> None:
        for setting in SETTINGS.values():
            setting.check(getattr(self, setting.name))
        if self.min_epochs > self.epochs:
            raise UserError(f"min_epochs is {self.min_epochs}, more than epochs {self.epochs}.")
        averages = [name for name in ("ema", "swa", "lookahead") if getattr(self, name) is not None]
        if len(averages) > 1:
            raise UserError(f"{' and '.join(averages)} both average the weights. Give one of them.")
        if self.swa is not None and self.swa >= self.epochs:
            raise UserError(
                f"swa is {self.swa}; it must be an epoch below {self.epochs}, or a fraction of all "
                "epochs. Type --swa 0.8"
            )
        for name, why in self._idle():
            if getattr(self, name) != SETTINGS[name].default:
                raise UserError(f"{name} does nothing {why}. Leave one of them out.")
        if self.warmup is None:
            rises = self.schedule in named("training.schedules:RISING")
            object.__setattr__(self, "warmup", 0.0 if rises else 5.0)
        if self.early_stopping is not None and self.validation == 0:
            raise UserError("early_stopping watches the validation loss, but validation is 0.")

    def _idle(self) -> list[tuple[str, str]]:
        """Return settings that would do nothing beside the others, and why."""
        needing = (s for s in SETTINGS.values() if s.needs and getattr(self, s.needs) is None)
        idle = [(s.name, f"without {s.needs}") for s in needing]
        if self.barebones:
            idle.append(("checkpoint_every", "with barebones"))
            idle.append(("tta", "with barebones, which tests nothing"))
        if self.limit_test_batches == 0 and self.validation == 0:
            idle.append(("tta", "without test and validation"))
        return idle

    def to_dict(self) -> dict[str, Any]:
        """Return what config.yaml holds: all settings but where this one run lies.

        Without the recipe, whose settings are among them: it may be another one some day.
        """
        values = dataclasses.asdict(self)
        for name in ("recipe", "run_dir", "resume", *PROCESSES):
            del values[name]
        if self.data_dir is not None:
            values["data_dir"] = str(Path(self.data_dir).resolve())
        values["data"] = named("data.sources:absolute")(self.data)
        if self.class_weight is not None:
            values["class_weight"] = named("data.weights:absolute")(self.class_weight)
        return values


def _table() -> dict[str, Setting]:
    hints, group, found = typing.get_type_hints(TrainConfig), "", {}
    for f in dataclasses.fields(TrainConfig):
        several = typing.get_args(hints[f.name]) or (hints[f.name],)
        kinds = [kind for kind in several if kind is not types.NoneType]
        group = f.metadata.get("group", group)
        found[f.name] = Setting(
            name=f.name,
            kind=amount if len(kinds) > 1 else kinds[0],
            optional=types.NoneType in several,
            default=f.default,
            **{**f.metadata, "group": group},
        )
    return found


SETTINGS = _table()


# What the Trainer takes in Python only.
# fmt: off
ARGUMENTS = [
    dataclasses.replace(SETTINGS["clip"], name="gradient_clip_val", takers="Trainer"),
    Setting(name="gradient_clip_algorithm", kind=str, choices=("norm", "value"), group="optimizer",
        help="what ``gradient_clip_val`` limits: the global norm, or the size of each number"),
    Setting(name="callbacks", kind=object, group="records",
        help="ours, your own and Keras', one or a list"),
    Setting(name="enable_progress_bar", kind=bool, group="records",
        help="print each epoch, with a bar on a terminal and in a notebook"),
    Setting(name="enable_model_summary", kind=bool, group="records",
        help="and print the layers there first"),
    Setting(name="enable_checkpointing", kind=bool, group="files",
        help="False: write none, so nothing can be resumed"),
    Setting(name="default_root_dir", kind=str, group="files",
        help="where the folder of a run is made"),
]
# fmt: on


def arguments_of(taker: str, config: TrainConfig) -> dict[str, Any]:
    """Return what ``config`` gives to a class or function, by the names of its arguments."""
    taken = {setting.argument(taker): setting for setting in SETTINGS.values()}
    return {a: s.value(getattr(config, s.name)) for a, s in taken.items() if a is not None}


def check_arguments(taker: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise UserError for an argument of ``taker``, of those ``given``, outside its range."""
    parameters, name = inspect.signature(taker).parameters, taker.__name__
    for setting in (*SETTINGS.values(), *ARGUMENTS):
        argument = setting.argument(name)
        if argument is None or argument not in given:
            continue
        setting, value = setting.in_python(name), given[argument]
        if value is None and setting.choices and parameters[argument].default is not None:
            raise setting.error(value)
        setting.check(value)


OWN_VARIABLES = ("DATA_DIR", "OFFLINE")  # of the data sources
_NOT_BY_ENVIRONMENT = ("data_dir", "run_dir", "resume")


def read_environment() -> dict[str, Any]:
    """Return the settings in the environment: ``FMNIST_EPOCHS=3`` is ``epochs: 3``.

    Raises UserError for a variable that names no setting.
    """
    names = {name.upper(): name for name in SETTINGS if name not in _NOT_BY_ENVIRONMENT}
    chosen = {}
    for variable, value in os.environ.items():
        key = variable.removeprefix("FMNIST_")
        if key == variable or key in OWN_VARIABLES:
            continue
        if key not in names:
            raise UserError(
                f"The environment variable {variable} names no setting."
                f"{option_here(key, SETTINGS) or nearest(key, names)} "
                "`fmnist train --help` lists the settings; unset the variable if it is not ours."
            )
        chosen[names[key]] = SETTINGS[names[key]].read(value)
    return chosen


def mapping(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file maps; raises UserError for one that is missing, broken or no map."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration {path} cannot be read: {error}.") from error
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
        if key not in SETTINGS:
            raise UserError(
                f"{path}: unknown key {key!r}."
                f"{option_here(str(key), SETTINGS) or nearest(str(key), SETTINGS)} "
                "`fmnist train --print_config` shows all keys."
            )
    return {key: SETTINGS[key].read(value) for key, value in values.items()}
