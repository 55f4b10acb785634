"""The tables of names, `fmnist --help` and the code say the same: no row more, no row less."""

import inspect
import re
from pathlib import Path

import keras
import pytest

import fmnist_keras3
from fmnist_keras3 import Callback, Trainer, Tuner, callbacks, loggers
from fmnist_keras3.cli import COMMANDS, main
from fmnist_keras3.optimizers import OPTIMIZERS
from fmnist_keras3.settings import SETTINGS
from fmnist_keras3.training.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "fmnist_keras3/training/README.md").read_text()
# What the command line has besides says what to train on what, and how the optimizer is made.
WHAT = {"model", "dropout", "l2", "data", "data_dir", "validation", "augment", "batch_size"}
WHAT |= {"optimizer", "lr", "lr_groups", "weight_decay", "recipe", "resume", "monitor", "tta"}
WHAT |= {"image_size", "color", "resize", "on_bad_file", "cache", "class_weight", "sampling"}
WHAT |= {"coordinator", "num_processes", "process_id"}


def table(name):
    """The rows of a table: the code words of each cell."""
    part = TEXT.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    rows = [line.split("|")[1:-1] for line in part.strip().splitlines()[2:]]
    return [[set(re.findall(r"`([^`]*)`", cell)) for cell in row] for row in rows]


def column(name, number):
    return set().union(*(row[number] for row in table(name)))


def options(name):
    words = {word.split()[0] for word in column(name, 1)}
    return {word.removeprefix("--") for word in words if word.startswith("--")}


def test_every_argument_of_the_trainer_has_its_row():
    assert column("arguments", 0) - {"Trainer(...)"} == set(inspect.signature(Trainer).parameters)


def test_every_option_has_its_row():
    named = options("arguments") | options("callbacks") | options("loggers")
    assert named - {"max_time", "logger", "monitor"} <= set(SETTINGS)
    assert named | WHAT == set(SETTINGS)


def test_every_public_callback_and_every_method_has_its_row():
    public = {
        name
        for name in fmnist_keras3.__all__
        if isinstance(made := getattr(fmnist_keras3, name), type) and issubclass(made, Callback)
    }
    assert column("callbacks", 0) == public
    assert public <= set(callbacks.__all__)
    kept = {"Callback", "MONITORS", "Summary", "Trace"}  # of the Trainer itself
    assert set(callbacks.__all__) - public == kept - {"Callback"}
    words = {word.split("(")[0] for word in column("methods", 0)}
    for kind in (Trainer, Tuner):
        names = {name for base in kind.__mro__[:-1] for name in vars(base)}
        methods = {f"{kind.__name__}.{name}" for name in names if not name.startswith("_")}
        assert methods == {word for word in words if word.startswith(kind.__name__)}


def test_every_logger_has_its_row_and_its_extra():
    rows = table("loggers")
    named = {place.split(":")[1]: name for name, place in loggers.LOGGERS.items()}
    assert {(*row[0], *row[1]) for row in rows} == {
        (kind, f"--logger {name}") for kind, name in named.items()
    }
    extras = (ROOT / "pyproject.toml").read_text()
    for word in column("loggers", 3):
        assert re.search(rf"^{word.split('[')[1][:-1]} = \[", extras, re.MULTILINE), word


def test_every_name_stands_in_its_row():
    found = {next(iter(row[0])): row[1] for row in table("names")}
    assert found["schedule"] - {"warmup"} == set(SCHEDULES)
    assert found["precision"] == set(SETTINGS["precision"].choices)
    assert found["profiler"] == set(SETTINGS["profile"].choices)
    assert found["--optimizer"] == set(OPTIMIZERS)
    assert found["--monitor"] == set(callbacks.MONITORS)


def test_what_stands_for_keras_is_there():
    fit = set(inspect.signature(keras.Model.fit).parameters)
    for name in ("epochs", "steps_per_epoch", "validation_steps", "validation_freq", "verbose"):
        assert name in column("arguments", 3) & fit
    for name in column("callbacks", 3):
        assert hasattr(keras.callbacks, name) or not name[0].isupper(), name


def test_commands_in_the_tables_are_commands():
    for row in table("methods"):
        for word in row[1]:
            assert word.split()[0] in COMMANDS


def test_each_option_is_in_help_with_a_line_of_what_it_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name, setting in SETTINGS.items():
        found = re.search(rf"^ +--{name}[ ,].*\n?.*", text, re.MULTILINE)
        assert found, name
        assert setting.help in found[0]
