"""The soak in small: real signals to a real process, and a driver that sees what is lost."""

import dataclasses
import json
import os
import shutil
import signal
import time

import keras
import pytest
from kept import kept
from soak import __main__ as driver
from soak.__main__ import Failure, Settings, Soak, check_output, compare

from fmnist_keras3 import experiment
from fmnist_keras3.cli import main
from fmnist_keras3.ground.errors import Interrupted
from fmnist_keras3.training.signals import terminable

SMALL = Settings(examples=1000, epochs=3, checkpoint_every=20, pause=0.02)


@pytest.fixture(scope="module")
def soak(tmp_path_factory, backend):
    """A soak whose straight run is made, in this process."""
    made = Soak(tmp_path_factory.mktemp("soak"), SMALL, seed=0, backend=backend)
    train(*made.words, "--run_dir", str(made.straight))
    return made


def train(*words):
    """Run `fmnist train` in this process, with the names that a process of its own gives."""
    keras.utils.clear_session()  # Keras numbers its seed generators through a process
    assert main(["train", *words]) == 0


def test_what_is_stopped_anywhere_loses_nothing(soak):
    soak.run(kills=1, terms=1, ints=1, jobs=1)
    found = driver.result(soak, "pytest")
    sent = {name: row["sent"] for name, row in found["signals"].items()}
    sent.pop(driver.SECOND, None)
    assert sent == {"SIGKILL": 1, "SIGTERM": 1, "SIGINT": 1}
    assert found["signals"]["SIGKILL"]["exit_codes"] == {"-9": 1}
    assert found["resumes"] > 0
    assert "SIGKILL" in driver.table(found)


def test_another_seed_is_seen(soak, tmp_path, monkeypatch):
    other = tmp_path / "other"

    def first_weights_of_seed_0(config, *of):
        return kept.build_model(dataclasses.replace(config, seed=0), *of)

    # What else the seed decides is enough; another model would have to be compiled.
    monkeypatch.setattr(experiment, "make_model", first_weights_of_seed_0)
    train(*soak.words, "--seed", "1", "--run_dir", str(other))
    with pytest.raises(Failure, match=r"metrics\.jsonl.*last checkpoint, 0: .*model\.keras"):
        compare(soak.straight, other)


def lose_a_record(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10] + lines[11:]))


def log_twice(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:10], *lines[9:]]))


def change_a_value(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[10])
    record["loss"] *= 1 + 1e-15
    lines[10] = json.dumps(record)
    (run / "metrics.jsonl").write_text("\n".join(lines))


def forget_the_best(run):
    pointer = json.loads((run / "checkpoints/last.json").read_text())
    best = json.loads((run / "checkpoints/best.json").read_text())
    (run / "checkpoints/best.json").write_text(json.dumps(best | pointer | {"epoch": 0}))


def leave_a_temporary_file(run):
    (run / "checkpoints/.last.0123abcd.tmp.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lose_a_record, r"metrics\.jsonl: entry 10"),
        (log_twice, r"more than once: \[\('step', 10\)\]"),
        (change_a_value, r"metrics\.jsonl: entry 10"),
        (forget_the_best, r"best\.json"),
        (leave_a_temporary_file, r"still has"),
    ],
)
def test_what_is_lost_is_seen(soak, tmp_path, harm, words):
    copy = tmp_path / "copy"
    shutil.copytree(soak.straight, copy)
    compare(soak.straight, copy)
    harm(copy)
    with pytest.raises(Failure, match=words):
        compare(soak.straight, copy)


TRACEBACK = 'Traceback (most recent call last):\n  File "{}", line 3, in {}\nKeyboardInterrupt\n'


def test_warnings_and_tracebacks_are_seen():
    outside, inside = TRACEBACK.format("site.py", "main"), TRACEBACK.format("cli.py", "main")
    left = "Warning: Nothing is left to train"
    assert not check_output("epoch 1/2", complete=False)
    assert not check_output(left, complete=True)
    assert check_output(outside, complete=False, may_be_interrupted=True)
    for output in ("Warning: it is late", "/x.py:3: UserWarning: late", left, outside, inside):
        with pytest.raises(Failure, match=r"A (warning|traceback)"):
            check_output(output, complete=False)
    for output in (inside, outside.replace("KeyboardInterrupt", "ImportError")):
        with pytest.raises(Failure, match="A traceback"):
            check_output(output, complete=False, may_be_interrupted=True)


class Finalized:
    """Is sent a signal where Python drops what its handler raises."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(100):
            pass


def finalize_and_wait(number):
    Finalized(number)
    time.sleep(10)  # ended by the signal


@pytest.fixture
def interruptible():
    """SIGINT as Python has it by itself; a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_python_drops_comes_again(number):
    with pytest.raises(KeyboardInterrupt), terminable():
        finalize_and_wait(number)


def test_an_error_that_a_signal_caused_is_the_signal():
    # What pybind11 makes of a signal while a module of TensorFlow is imported.
    with pytest.raises(Interrupted, match="SIGTERM"), terminable():
        raise ImportError("initialization failed") from Interrupted("SIGTERM")
    with pytest.raises(ImportError), terminable():
        raise ImportError("No module named 'x'")
