"""Several real processes that train together, on loopback and as hosts; TEST_KILLS=20: more."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hosts import Hosts

from fmnist_keras3.commands import launch
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.runs import checkpoint, checkpoints

STEPS = 120
# Steps of plain gradient descent, in which what rounding leaves stays small: with Adam the losses
# of one process and of two are 3e-4 apart after a hundred.
TRAIN = ("train", "--data", "synthetic", "--model", "lenet", "--batch_size", "12")
TRAIN += ("--optimizer", "sgd", "--lr", "0.03")
TRAIN += ("--limit_train_batches", "20", "--limit_val_batches", "4", "--limit_test_batches", "0")
TRAIN += ("--log_every_n_steps", "1", "--checkpoint_every", "10", "--epochs", str(STEPS // 20))
KILLS = int(os.environ.get("TEST_KILLS", "3"))  # of processes, at random moments
MANY = 2 if KILLS > 3 else 1  # of other cases
STACK = re.compile(r"Traceback|^[EF]\d{4} \d\d:\d\d", re.MULTILINE)  # of Python, or of C++

# Put before a training by Python itself: its first process kills itself amid the writing of a
# checkpoint of its run, once for each line of the file DEATHS.
SITE = """
import os, pathlib, signal

deaths = pathlib.Path(os.environ["DEATHS"])
run, *lines = deaths.read_text().splitlines()

def dying(name, path_of):
    function = getattr(os, name)
    def call(*arguments, **options):
        path = path_of(*arguments)
        if lines and path.startswith(run):
            moment, step = lines[0].split()
            here = {
                "fsync": name == "fsync" and step in path and path.endswith("state.safetensors"),
                "rename": name == "rename" and path.endswith(step),
                "point": path.endswith("last.json") and os.path.exists(f"{run}/checkpoints/{step}"),
            }
            if here[moment]:
                deaths.write_text("\\n".join([run, *lines[1:]]))
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(os, name, call)

dying("fsync", lambda number: os.readlink(f"/proc/self/fd/{number}"))
dying("rename", lambda before, after: str(after))
dying("replace", lambda before, after: str(after))
"""


def started(processes, *words, restarts=0, **environment):
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
        env={**os.environ, "KERAS_BACKEND": "jax", **environment},
    )


def by_hand(address, count, number, *words, before=()):
    """Start one of ``count`` processes that find each other at ``address``."""
    together = ("--coordinator", address, "--num_processes", str(count))
    command = (sys.executable, "-m", "fmnist_keras3", *TRAIN, *together, "--process_id")
    return subprocess.Popen(
        [*before, *command, str(number), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )


def trained(processes, run, *words):
    """Train to the end; return the losses of the steps, each of which was recorded once."""
    process = started(processes, "--run_dir", str(run), *words)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("run directory") == 1  # one of them prints
    assert "damaged" not in said + errors
    return losses(run)


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    return [record["loss"] for record in steps]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The losses of one process that nobody stops."""
    return trained(1, tmp_path_factory.mktemp("straight") / "run")


def wait_for_step(run, step, process):
    """Wait until the record of ``step`` was written."""
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def children_of(process, count):
    """Return the numbers of the ``count`` processes that are started, in their order."""
    while process.poll() is None:
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        )
        if len(numbers := found.stdout.split()) == count:
            return sorted(map(int, numbers))
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("processes", [3, 2][:MANY])
def test_several_processes_train_as_one_does(tmp_path, straight, processes):
    np.testing.assert_allclose(trained(processes, tmp_path / "run"), straight, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.processes
def test_sigterm_to_one_that_is_launched_stops_all(tmp_path):
    run = tmp_path / "run"
    process = started(2, "--run_dir", str(run), "--epochs", "500")
    wait_for_step(run, 25, process)
    os.kill(children_of(process, 2)[1], signal.SIGTERM)
    said, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Stopped by SIGTERM after step" in said
    check_stopped(run)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("which", [0, 2][:MANY])
def test_sigterm_to_one_of_three_by_hand_stops_all_at_one_step_with_one_checkpoint(tmp_path, which):
    run, address = tmp_path / "run", f"127.0.0.1:{launch._free_port()}"
    words = ("--epochs", "500", "--run_dir", str(run))
    processes = [by_hand(address, 3, i, *words) for i in range(3)]
    wait_for_step(run, 25, processes[0])
    processes[which].send_signal(signal.SIGTERM)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [143] * 3, errors
    check_stopped(run)


def check_stopped(run):
    """Check that the run ended at the step of its last checkpoint, and wrote no other after."""
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "checkpoints/last.json").read_text())["checkpoint"]
    assert summary["status"] == "interrupted"
    assert int(re.search(r"\d+", last)[0]) == summary["steps"]
    assert checkpoints.saved(run / "checkpoints")[0].name == last


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("kill", range(KILLS))
def test_one_that_is_killed_ends_the_others_and_the_run_goes_on(tmp_path, straight, kill):
    """Killed at a random moment from the start to the end, and resumed by 1, 2 or 3 processes."""
    dice, run, processes = random.Random(kill), tmp_path / "run", 2 + kill % 2
    process = started(processes, "--run_dir", str(run))
    victim = dice.randrange(processes)
    children = children_of(process, processes)
    if kill % 4 < 3:
        wait_for_step(run, dice.randrange(1, STEPS), process)
        time.sleep(dice.uniform(0, 0.1))
    else:  # amid imports, the coming together, the data, compilation
        time.sleep(dice.uniform(0, 10))
    os.kill(children[victim], signal.SIGKILL)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 1, said + errors
    told = [line for line in errors.splitlines() if "was killed by" in line]
    assert told == [
        f"fmnist: process {victim} of {processes} (number {children[victim]} of the system) was "
        "killed by SIGKILL, and the others were ended."
    ]
    assert not STACK.search(errors), errors
    assert "--resume last" in errors
    if checkpoints.saved(run / "checkpoints"):
        *_, problems = checkpoint.find(run / "checkpoints", "last", checkpoint.read_manifest)
        assert not problems
    resumed = trained(1 + kill % 3, run, "--resume", "auto")
    np.testing.assert_allclose(resumed, straight, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.processes
def test_all_start_again_where_the_writer_was_killed_while_it_wrote(tmp_path, straight):
    """The checkpoint before each is good: from there on the run is the straight one.

    The first time by both, and then by the one that is left, for the other died twice.
    """
    run, deaths = tmp_path / "run", tmp_path / "deaths"
    moments = ["fsync step-00000020", "rename step-00000040", "point step-00000060"]
    deaths.write_text("\n".join([str(run), *moments]))
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    places = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(places), "DEATHS": str(deaths)}
    process = started(2, "--run_dir", str(run), restarts=3, **environment)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert deaths.read_text() == str(run)
    assert errors.count("process 0 of 2") == 2
    assert errors.count("process 0 of 1") == 1
    assert errors.count("was killed by SIGKILL") == 3
    assert re.findall(r"the last checkpoint \((.*?);", errors) == [
        "with 2 processes",
        *["with 1 process"] * 2,
    ]
    assert "damaged" not in said + errors
    np.testing.assert_allclose(losses(run), straight, rtol=1e-5)


@pytest.fixture
def hosts(request):
    made = Hosts(request.param)
    try:
        if not made.make():
            pytest.skip("network namespaces need root, and ip")
        yield made
    finally:
        made.remove()


def on_hosts(hosts, *words):
    """Start a training of a process on each of the machines."""
    address, count = "10.93.0.1:12321", len(hosts.names)
    inside = [("ip", "netns", "exec", name) for name in hosts.names]
    return [by_hand(address, count, i, *words, before=inside[i]) for i in range(count)]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("hosts", "cut"), [(2, 1), (3, 2)][:MANY], indirect=["hosts"])
def test_hosts_end_where_a_cable_is_cut_and_go_on_when_it_is_mended(hosts, cut, tmp_path, straight):
    run, others = tmp_path / "run", set(range(len(hosts.names))) - {cut}
    processes = on_hosts(hosts, "--run_dir", str(run))
    wait_for_step(run, 25, processes[0])
    hosts.cable(cut, "down")
    began = time.monotonic()
    ended = [process.communicate(timeout=60) for process in processes]
    assert time.monotonic() - began < 30
    for i, (process, (_, errors)) in enumerate(zip(processes, ended, strict=True)):
        assert process.returncode == 1, errors
        assert not STACK.search(errors), errors
        (told,) = [line for line in errors.splitlines() if line.startswith("fmnist: ")]
        assert f"process {cut if i in others else 0}" in told
        assert "was lost" in told
    hosts.cable(cut, "up")
    for process in on_hosts(hosts, "--run_dir", str(run), "--resume", "auto"):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    np.testing.assert_allclose(losses(run), straight, rtol=1e-5)


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


UNHEALTHY = """F1130 22:52:09.316153 11459 client.h:80] Terminating process because the JAX
distributed service detected fatal errors. absl::Status: UNAVAILABLE:
The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed."""


@pytest.mark.parametrize(
    ("said", "who"),
    [
        (UNHEALTHY, "process 1"),
        (UNHEALTHY.replace("\n1\n", "\n2\n10\n"), "process 2 and 10"),
        ("UNAVAILABLE: Either the leader task was preempted ...", "process 0, the coordinator,"),
        (
            "DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/Heartbeat",
            "process 0, ",
        ),
        ("ValueError: Gloo AllGather failed", "another process"),
    ],
)
def test_a_lost_process_is_named(said, who):
    told = launch.lost_one(said)
    assert told.startswith(who)
    assert "of this training was lost" in told


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ("batch_size: 12", ["0", "2", "3"]),
        ("{batch_size: 12, devices: '2'}", ["0", "2", "3"]),
        ("{batch_size: 10, devices: auto}", ["0", "2"]),
        ("{batch_size: 9, devices: 2}", ["0", "1", "2", "3"]),
        (None, ["0", "1", "2", "3"]),
    ],
)
def test_those_that_are_left_share_the_batches(monkeypatch, tmp_path, settings, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    if settings:
        (tmp_path / "config.yaml").write_text(settings)
    places = launch.deal(4)
    assert places == ["0", "1", "2", "3"]
    assert launch.without(places, 1, str(tmp_path)) == left
    assert launch.without(["0"], 0, str(tmp_path)) == ["0"]
    assert launch.deal(2) == ["0,2", "1,3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch.deal(2) == [None, None]


def test_an_option_is_found_and_taken_out_however_it_is_written():
    words = ["train", "--run-dir", "a", "--resume=last", "--lr", "1"]
    assert launch._value(words, "--run_dir") == "a"
    assert launch._value(words, "--resume") == "last"
    assert launch._without(words, "--resume") == ["train", "--run-dir", "a", "--lr", "1"]
    assert launch._without(["--resume", "last", "x"], "--resume") == ["x"]
