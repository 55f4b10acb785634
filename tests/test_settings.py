"""The table of settings: all that comes from it is there, and each range is checked everywhere."""

import inspect
import math
import re

import pytest
import write_settings

import fmnist_keras3
from fmnist_keras3 import Trainer, UserError
from fmnist_keras3.cli import main
from fmnist_keras3.ground.setting import amount
from fmnist_keras3.optimizers import make_optimizer
from fmnist_keras3.settings import ARGUMENTS, SETTINGS, TrainConfig, arguments_of

ROWS = [*SETTINGS.values(), *ARGUMENTS]
TAKERS = sorted({place.partition(".")[0] for row in ROWS for place in row.takers.split()})
# What a taker must be given besides.
BESIDES = {"make_optimizer": {"name": "sgd", "lr": 0.1}}
# An optimizer whose rate is 0 keeps the weights, which a program may want.
UNCHECKED = {("lr", "make_optimizer")}


def taker(name):
    return make_optimizer if name == "make_optimizer" else getattr(fmnist_keras3, name)


def outside(setting):
    """Values just outside the range, and one that is no number or no choice."""
    if setting.choices:
        return ["nonsense"] if setting.kind is str else [max(setting.choices) + 1]
    whole = setting.kind is int
    found = []
    if setting.least is not None:
        least = setting.least
        found.append(least - 1 if whole or setting.kind is amount else math.nextafter(least, -1))
    if setting.most is not None:
        found.append(setting.most + 1 if whole else math.nextafter(setting.most, math.inf))
    found += [bound for bound in (setting.above, setting.below) if bound is not None]
    if setting.kind is amount:
        found += [math.nextafter(1.0, 2), math.nan]
    if setting.kind is float:
        found += [math.nan, math.inf]
    return found


OUTSIDE = [
    pytest.param(row, value, id=f"{row.name}={value}") for row in ROWS for value in outside(row)
]


def test_every_kind_of_row_has_values_outside():
    checked = {parameter.values[0].name for parameter in OUTSIDE}
    free = {row.name for row in ROWS if row.kind in (str, bool, object) and not row.choices}
    assert checked == {row.name for row in ROWS} - free


@pytest.mark.parametrize(("setting", "value"), OUTSIDE)
def test_a_value_outside_is_refused_on_the_command_line(capsys, setting, value):
    if setting.name not in SETTINGS:
        return
    assert main(["train", f"--{setting.name}={value}"]) == 2
    message = capsys.readouterr().err
    assert f"fmnist: {setting.name} is {value!r}" in message
    assert setting.bounds in message
    if setting.choices:
        return
    known = message.split(f"Type --{setting.name} ")[1].split()[0].rstrip(",")
    setting.check(setting.read(known))  # what it tells to type may be typed


@pytest.mark.parametrize(("setting", "value"), OUTSIDE)
def test_a_value_outside_is_refused_in_python(setting, value):
    for place in setting.takers.split():
        name = place.partition(".")[0]
        if (setting.name, name) in UNCHECKED:
            continue
        argument = setting.argument(name)
        with pytest.raises(UserError) as told:
            taker(name)(**BESIDES.get(name, {}) | {argument: value})
        assert f"{argument} is {value!r}" in str(told.value)
        assert setting.in_python(name).bounds in str(told.value)
        assert setting.choices or f"Type {argument}=" in str(told.value)


@pytest.mark.parametrize("name", TAKERS)
def test_what_is_passed_on_are_arguments_of_whoever_takes_it(name):
    arguments = arguments_of(name, TrainConfig())
    inspect.signature(taker(name)).bind_partial(**arguments)
    assert arguments


def test_every_argument_of_the_trainer_has_one_row_and_one_line():
    rows = [row.argument("Trainer") for row in ROWS if row.argument("Trainer")]
    assert sorted(rows) == sorted(inspect.signature(Trainer).parameters)
    lines = re.findall(r"^- ``(\w+)``: ", inspect.getdoc(Trainer), re.MULTILINE)
    assert sorted(lines) == sorted(rows)


def test_defaults_and_examples_are_in_their_ranges():
    for row in ROWS:
        row.check(row.default)
        row.check(row.example)
        assert row.default is not None or row.optional or row.name not in SETTINGS


@pytest.mark.parametrize("part", ["DOCSTRING", "TABLE"])
def test_what_is_written_from_the_table_is_up_to_date(part):
    made = {"DOCSTRING": write_settings.docstring, "TABLE": write_settings.table}[part]()
    there, should = reversed(write_settings.replaced(getattr(write_settings, part), made))
    assert there == should, "Type: PYTHONPATH=. python tests/write_settings.py"
