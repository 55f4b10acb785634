"""Several real processes on loopback that train together."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fmnist_keras3.commands import launch
from fmnist_keras3.ground.errors import UserError

TRAIN = ("train", "--data", "synthetic", "--model", "lenet", "--batch_size", "12")
TRAIN += ("--limit_train_batches", "20", "--limit_val_batches", "4", "--limit_test_batches", "4")
TRAIN += ("--log_every_n_steps", "1", "--checkpoint_every", "10", "--lr", "3e-4")


def started(processes, *words, restarts=0):
    """Start a training in so many processes."""
    launched = ["launch", "-n", str(processes), "--restarts", str(restarts), "--"]
    command = [*launched, *TRAIN, *words]
    if processes == 1:
        command = [*TRAIN, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "fmnist_keras3", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )


def trained(processes, run, *words):
    """Train to the end; return the losses of all records."""
    process = started(processes, "--run_dir", str(run), *words)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("run directory") == 1  # one of them prints
    return losses(run)


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records]


def steps_of(run):
    """Return the steps that were recorded, in turn."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["event"] == "step"]


def wait_for_step(run, step, process):
    """Wait until the record of ``step`` was written."""
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def children_of(process):
    """Return the numbers of the processes that were started, in their order."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, found.stdout.split()))


@pytest.mark.slow
def test_two_and_three_processes_train_as_one_does_and_go_on_as_others(tmp_path):
    alone = trained(1, tmp_path / "1", "--epochs", "2")
    for processes in (2, 3):
        together = trained(processes, tmp_path / str(processes), "--epochs", "2")
        np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert trained(2, tmp_path / "m", "--epochs", "1")
    go_on = ("--resume", "last", "--epochs", "2")
    process = started(3, "--run_dir", str(tmp_path / "m"), *go_on)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert steps_of(tmp_path / "m") == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_sigterm_to_one_stops_all_at_one_step_with_one_checkpoint(tmp_path, which):
    run = tmp_path / "run"
    process = started(2, "--run_dir", str(run), "--epochs", "500")
    wait_for_step(run, 25, process)
    os.kill(children_of(process)[which], signal.SIGTERM)
    said, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Stopped by SIGTERM after step" in said
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "checkpoints/last.json").read_text())
    assert summary["status"] == "interrupted"
    assert re.search(r"\d+", last["checkpoint"])[0].lstrip("0") == str(summary["steps"])


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_one_message(tmp_path, which):
    run = tmp_path / "run"
    process = started(2, "--run_dir", str(run), "--epochs", "500")
    wait_for_step(run, 25, process)
    killed = children_of(process)[which]
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert f"process {which} of 2 (number {killed} of the system) was killed by SIGKILL" in errors
    assert not {"Traceback", "F0000"} & set(re.findall(r"\w+", errors))
    assert "--resume last" in errors
    resumed = started(1, "--run_dir", str(run), "--resume", "last", "--max_steps", "60")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors


@pytest.mark.slow
def test_all_start_again_where_one_has_died(tmp_path):
    run = tmp_path / "run"
    process = started(2, "--run_dir", str(run), "--epochs", "3", restarts=1)
    wait_for_step(run, 25, process)
    os.kill(children_of(process)[1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors.count("starting again from the last checkpoint") == 1
    assert steps_of(run) == list(range(1, 61))


@pytest.mark.parametrize(
    ("words", "processes", "restarts", "message"),
    [
        (["evaluate", "x"], 2, 0, "launch starts train, not 'evaluate'"),
        ([], 2, 0, "launch starts train, not nothing"),
        (["train", "--coordinator", "a:1"], 2, 0, "launch gives --coordinator to each process"),
        (["train", "--process-id=1"], 2, 0, "launch gives --process_id to each process"),
        (["train"], 2, 1, "restarts go on in the run's folder"),
    ],
)
def test_what_cannot_be_launched_is_refused(monkeypatch, words, processes, restarts, message):
    monkeypatch.setattr(launch.runtime, "choose_backend", lambda: "jax")
    with pytest.raises(UserError, match=re.escape(message)):
        launch.launch(words, processes, restarts)


def test_an_option_is_found_and_taken_out_however_it_is_written():
    words = ["train", "--run-dir", "a", "--resume=last", "--lr", "1"]
    assert launch._value(words, "--run_dir") == "a"
    assert launch._value(words, "--resume") == "last"
    assert launch._without(words, "--resume") == ["train", "--run-dir", "a", "--lr", "1"]
    assert launch._without(["--resume", "last", "x"], "--resume") == ["x"]
