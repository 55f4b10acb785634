"""What is searched: settings with the values that they may take, checked before anything starts.

Needs neither Keras nor Optuna.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.lightning import option_here
from fmnist_keras3.ground.setting import Setting, amount
from fmnist_keras3.settings import SETTINGS, TrainConfig

DEFAULT = {"lr": "log(1e-4,1e-1)", "dropout": "0.1..0.6", "l2": "log(1e-6,1e-2)"}
EXAMPLES = DEFAULT | {
    "model": "[baseline,cnn]",
    "optimizer": "[adamw,sgd]",
    "schedule": "[cosine,triangular]",
    "augment": "[none,'flip,crop:1']",
}
MOST_CORNERS = 512  # combinations of extreme values that are looked at one by one
FORMS = "log(LOW,HIGH), LOW..HIGH or [ONE,ANOTHER]"

# Settings that are no parameters, and why.
_MEASURE = "says what is measured, so trials could not be compared"
_NOTHING = "does not change what is measured"
_KEPT = "is the study's own: each trial has a run directory below it"
NO_PARAMETERS = {
    **dict.fromkeys(("data", "data_dir", "validation", "limit_val_batches"), _MEASURE),
    "overfit_batches": _MEASURE,
    "seed": "would choose a lucky draw: give --seeds 3 for a mean over seeds",
    "recipe": "stands below the other settings: give --recipe, and settings of it as parameters",
    **dict.fromkeys(
        ("tta", "limit_test_batches", "num_sanity_val_steps", "pipeline", "cache"), _NOTHING
    ),
    **dict.fromkeys(("fast_dev_run", "barebones", "checkpoint_every", "keep_top"), _NOTHING),
    "deterministic": _NOTHING,
    **{name: _NOTHING for name, setting in SETTINGS.items() if setting.group == "records"},
    **dict.fromkeys(("run_dir", "resume"), _KEPT),
}


@dataclass(frozen=True)
class Param:
    """A setting and its values: ``choices``, or a range ``low`` to ``high`` with both ends."""

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return json.dumps(self.choices)
        ends = (repr(self.low), repr(self.high))
        return f"log({','.join(ends)})" if self.log else "..".join(ends)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are checked: all choices, or both ends of the range."""
        return self.choices or (self.low, self.high)

    @property
    def is_integer(self) -> bool:
        """Whether the range is one of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any) -> Any:
        """Return the value of an `optuna.Trial`."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        suggest = trial.suggest_int if self.is_integer else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.log)


def read_space(given: Iterable[str] | Mapping[str, Any]) -> dict[str, Param]:
    """Return the parameters of texts ``NAME=VALUES``, or of a mapping of names to values.

    Values are a text of `FORMS`, a list of choices, or a tuple (low, high) or (low, high, "log").
    Raises UserError for what is no parameter, with the nearest name, and for wrong values.
    """
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        texts = [text.partition("=") for text in given]
        for name, equals, values in texts:
            name = name.strip()
            if not (equals and values.strip()):
                how = _how(name if name in SETTINGS else "lr")
                raise UserError(f"The parameter {name!r} has no values. {how}")
        pairs = [(name.strip(), values.strip()) for name, _, values in texts]
    space: dict[str, Param] = {}
    for name, values in pairs:
        setting = _setting(name)
        if name in space:
            raise UserError(f"The parameter {name} is given twice. Leave one of them out.")
        space[name] = _param(setting, values)
    return space


def _setting(name: str) -> Setting:
    if name not in SETTINGS:
        guess = option_here(name, SETTINGS) or nearest(name, SETTINGS.keys() - NO_PARAMETERS.keys())
        raise UserError(
            f"There is no setting {name!r} to tune.{guess} `fmnist train --help` lists them. "
            f"{_how('lr')}"
        )
    if name in NO_PARAMETERS:
        raise UserError(f"{name} cannot be tuned: it {NO_PARAMETERS[name]}. Leave it out.")
    return SETTINGS[name]


def _how(name: str) -> str:
    """Return what to type for a parameter."""
    values, setting = EXAMPLES.get(name), SETTINGS[name]
    if values is None and setting.choices:
        values = f"[{','.join(map(str, setting.choices))}]"
    elif values is None:
        least = int(setting.least or 0) + 1
        whole = f"{least}..{10 * least}"
        values = {str: "[...,...]", int: whole}.get(setting.kind, "0.1..0.5")
    return f'Type --param "{name}={values}"'


def _param(setting: Setting, values: Any) -> Param:
    name = setting.name
    if isinstance(values, list):
        return _choices(setting, values)
    if isinstance(values, tuple) and len(values) in (2, 3) and values[2:] in ((), ("log",)):
        return _range(setting, values[0], values[1], len(values) == 3)
    text = str(values).strip()
    if text.startswith("[") and text.endswith("]"):
        return _choices(setting, _listed(name, text))
    number = r"\s*([^,()\[\]]+?)\s*"
    if match := re.fullmatch(rf"log\({number},{number}\)", text):
        return _range(setting, match[1], match[2], True)
    if match := re.fullmatch(rf"{number}\.\.{number}", text):
        return _range(setting, match[1], match[2], False)
    raise UserError(f"The values of {name} are {text!r}; they must be {FORMS}. {_how(name)}")


def _listed(name: str, text: str) -> list[Any]:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(
            f"The values of {name} are {text!r}, which is no list. A value with commas or colons "
            f"stands in quotes. Type --param '{name}=[\"one,two\", three]'"
        ) from None


def _choices(setting: Setting, values: list[Any]) -> Param:
    name, read = setting.name, tuple(_read(setting, value) for value in values)
    if len(read) < 2:
        given = f"one value, {read[0]!r}" if read else "no values"
        instead = f" Give it as --{name} {read[0]}, or more values." if read else ""
        raise UserError(f"The list of {name} has {given}.{instead} {_how(name)}")
    if twice := [value for i, value in enumerate(read) if value in read[:i]]:
        raise UserError(f"The list of {name} has {twice[0]!r} twice. Leave one of them out.")
    return Param(name, choices=read)


def _range(setting: Setting, low: Any, high: Any, log: bool) -> Param:
    name = setting.name
    if setting.choices or setting.kind not in (int, float, amount):
        what = setting.bounds or "a text"
        raise UserError(f"{name} is {what}, which has no range. Give a list. {_how(name)}")
    low, high = _read(setting, low), _read(setting, high)
    if low is None or high is None or low >= high:
        raise UserError(f"The range of {name} is from {low} to {high}; it must rise. {_how(name)}")
    if isinstance(low, int) != isinstance(high, int):
        raise UserError(
            f"The range of {name} is from {low} to {high}: whole numbers are numbers of things, "
            "others fractions. Give both ends alike."
        )
    if log and low <= 0:
        raise UserError(
            f"The range of {name} is logarithmic and begins at {low:g}; it must begin above 0. "
            f"{_how(name)}"
        )
    return Param(name, low, high, log)


def _read(setting: Setting, value: Any) -> Any:
    try:
        value = setting.read(value)
        setting.check(value)
    except UserError as error:
        said = str(error).partition(f" Type --{setting.name}")[0]
        raise UserError(f"{said} {_how(setting.name)}") from None
    return value


def check_space(space: Mapping[str, Param], settings: Mapping[str, Any]) -> None:
    """Raise UserError where the extremes of ``space`` do not suit each other or the settings.

    With many parameters each one is looked at beside the first values of the others.
    """
    ends = {name: param.ends for name, param in space.items()}
    first = {name: values[0] for name, values in ends.items()}
    corners: Iterable[dict[str, Any]] = (
        first | {name: value} for name, values in ends.items() for value in values
    )
    count = 1
    for values in ends.values():
        count *= len(values)
    if count <= MOST_CORNERS:
        corners = (dict(zip(ends, v, strict=True)) for v in itertools.product(*ends.values()))
    for corner in corners:
        try:
            TrainConfig(**{**settings, **corner})
        except UserError as error:
            shown = ", ".join(f"{name}={value}" for name, value in corner.items())
            raise UserError(f"A trial with {shown} is not possible: {error}") from None
