"""Nothing is lost: damaged files, full, vanished and read-only disks, a second process."""

import contextlib
import errno
import functools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fmnist_keras3 import Callback, UserError, experiment
from fmnist_keras3.cli import main
from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.files import read_json
from fmnist_keras3.runs import checkpoint
from fmnist_keras3.runs.history import read_metrics
from fmnist_keras3.runs.lock import locked
from fmnist_keras3.runs.rundir import OF_A_TEST

# The command line prints warnings by itself; that they are errors in tests is not its usual life.
pytestmark = pytest.mark.filterwarnings("always::UserWarning")

ROOT = Path(__file__).parents[2]
NOBODY = 65534
STATE, MANIFEST = "state.safetensors", "manifest.json"
LAST, BEFORE = "checkpoints/step-00000012", "checkpoints/step-00000008"
MINE = ("notes.txt", ".notes.txt.swp", "checkpoints/notes.txt", "plots/notes.txt")


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_data):
    """A training of two epochs of six steps, with a checkpoint after steps 4, 6, 8 and 12."""
    folder = tmp_path_factory.mktemp("idx")
    x, y = tiny_data
    idx.write_folder(
        folder, ImageData("idx", "", Split(x, y), Split(x[:60], y[:60]), FASHION_CLASSES)
    )
    small = "--model lenet --batch_size 32 --augment none --schedule constant --warmup 0 --lr 1e-2"
    often = "--epochs 2 --checkpoint_every 4steps"
    return ["train", "--data_dir", str(folder), *small.split(), *often.split()]


def nothing(*_):
    """Stands for the conclusion of a training."""
    return experiment.Conclusion({}, None, Path("report.html"))


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """A finished run of two epochs, in which the user has left some notes."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*words, "--run_dir", str(run)]) == 0
    for name in MINE:
        (run / name).write_text("mine")
    return run


@pytest.fixture
def unfinished(monkeypatch):
    """Leave out the test evaluation, the plots and the report, which take most of the time."""
    monkeypatch.setattr(experiment, "conclude", nothing)


@pytest.fixture(scope="module")
def straight(words, tmp_path_factory):
    """The arrays that a training of three epochs ends with."""
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "conclude", nothing)
        assert main([*words, "--epochs", "3", "--run_dir", str(run)]) == 0
    return bits(last(run))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def go_on(run, epochs=3):
    return main(["train", "--resume", "last", "--run_dir", str(run), "--epochs", str(epochs)])


def last(run):
    """The checkpoint that "last" points to, which must be sound."""
    found, problems = checkpoint.find(run / "checkpoints", "last", checkpoint.load)
    assert not problems
    return found


def bits(found):
    return [array.tobytes() for _, array in found.state]


def content(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


HARMS = ["emptied", "truncated", "flipped", "removed", "a folder"]


def harm(file, how, at=None):
    """Damage a file, or one byte of it, or put a folder with somebody's work in its place."""
    old = file.read_bytes()
    at = len(old) // 2 if at is None else at
    if how == "emptied":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(old[:at])
    elif how == "flipped":
        file.write_bytes(old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :])
    else:
        file.unlink()
        if how == "a folder":
            file.mkdir()
            (file / "mine.txt").write_text("mine")


def told(capsys):
    """Return the warnings and the message of the command before, which says nothing twice."""
    out, message = capsys.readouterr()
    assert "Traceback" not in out + message
    assert message.count("fmnist: ") == message.startswith("fmnist: ")
    named = re.findall(r"(\S+) cannot be written", message)
    assert len(named) == len(set(named)), message
    return [line for line in out.splitlines() if "Warning:" in line], message


def assert_nothing_is_lost(run, before):
    """Check that only what a newer sound checkpoint replaces is gone, and nothing half is left."""
    after = content(run)
    gone = before.keys() - after.keys()
    assert all(name.startswith("checkpoints/step-") or name in OF_A_TEST for name in gone), gone
    assert not gone or last(run).manifest["step"] > 12
    for name in before.keys() & after.keys():
        if name.startswith("checkpoints/step-") or name in MINE or name.endswith("mine.txt"):
            assert after[name] == before[name], name
    assert_nothing_is_left_over(run)


def assert_nothing_is_left_over(run):
    assert not [p for p in run.rglob("*") if ".tmp" in p.name or p.name == ".lock"]


def assert_each_once(run):
    records = [(r["event"], r["step"]) for r in read_metrics(run / "metrics.jsonl")]
    assert len(records) == len(set(records)), records


FILES = [
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "evaluation.json",
    "model.keras",
    "report.html",
    "plots/curves.png",
    "plots/confusion_matrix.png",
    "plots/mistakes.png",
    "plots/calibration.png",
    "predictions.npz",
    "label_errors.csv",
    "checkpoints/last.json",
    "checkpoints/best.json",
    *(f"{step}/{name}" for step in (LAST, BEFORE) for name in (STATE, MANIFEST)),
]
READ = {
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "checkpoints/last.json",
    f"{LAST}/{STATE}",
    f"{LAST}/{MANIFEST}",
}
WRITTEN = {*FILES[:3], "model.keras", "checkpoints/last.json", "checkpoints/best.json"}
# What is left may be another sound text; it is written anew all the same.
UNSEEN = {("config.yaml", "flipped"), ("config.yaml", "truncated"), ("summary.json", "flipped")}


def test_these_are_the_files_of_a_run(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    best = {name for name in names if name.startswith("checkpoints/step-00000006/")}
    assert names - best - set(MINE) == set(FILES)


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_once_or_does_not_matter(
    run, straight, unfinished, capsys, name, how
):
    harm(run / name, how)
    before = content(run)
    capsys.readouterr()
    code = go_on(run)
    warned, message = told(capsys)
    if how == "a folder" and name in WRITTEN:
        assert code == 2
        assert not warned
        assert message.count(str(run / name)) == 1
        assert "move" in message.lower()
    else:
        assert (code, message) == (0, "")
        assert len(warned) == (name in READ) or (name, how) in UNSEEN
        assert all(part in line for part in name.split("/") for line in warned)
        assert bits(last(run)) == straight
        assert [r["epoch"] for r in read_metrics(run / "metrics.jsonl")][-2:] == [3, 3]
    assert_each_once(run)
    assert_nothing_is_lost(run, before)


@pytest.mark.parametrize("how", HARMS[:4])
def test_damaged_results_are_made_anew(run, capsys, how):
    results = ["model.keras", "evaluation.json", "report.html", *FILES[6:10]]
    before = content(run)
    for name in results:
        harm(run / name, how)
    assert go_on(run, 2) == 0
    warned, message = told(capsys)
    assert ["Nothing is left to train" in line for line in warned] == [True]
    assert not message
    after = content(run)
    assert before.keys() == after.keys()
    assert before["evaluation.json"] == after["evaluation.json"]
    assert all(len(after[name]) > 0.9 * len(before[name]) for name in results)
    assert_each_once(run)


@pytest.mark.parametrize("name", ["evaluation.json", "plots/curves.png", "report.html", "plots"])
def test_what_is_in_the_place_of_a_result_is_told_and_left_alone(run, capsys, name):
    if name == "plots":
        shutil.rmtree(run / name)
        (run / name).write_text("mine")
    else:
        harm(run / name, "a folder")
    before = content(run)
    assert go_on(run) == 2
    warned, message = told(capsys)
    assert not warned
    assert message.count(str(run / name)) == 1
    assert "move it away" in message
    assert read_json(run / "summary.json")["status"] == "completed"
    assert_nothing_is_lost(run, before)


@pytest.mark.parametrize("how", HARMS)
def test_where_no_checkpoint_is_sound_all_are_named_and_kept(run, capsys, how):
    damaged = sorted(run.glob("checkpoints/step-*"))
    for path in damaged:
        harm(path / STATE, how)
    before = content(run)
    assert go_on(run) == 2
    warned, message = told(capsys)
    assert not warned
    assert all(message.count(str(path)) == 1 for path in damaged)
    assert "Nothing was deleted" in message
    assert content(run) == before


def test_a_flipped_bit_in_the_pointer_loses_nothing(run):
    pointer = run / "checkpoints/last.json"
    whole = pointer.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            pointer.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            found, problems = checkpoint.find(run / "checkpoints", "last", checkpoint.read_manifest)
            assert found["step"] == 12, (at, bit, problems)
            assert len(problems) <= 1


class Once(Callback):
    """Does something after a step, when no checkpoint is being written."""

    every_n_train_steps = 1  # a boundary at each step

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_chunk_end(self, fit):
        if fit.position.step == self.step:
            fit.keeper.wait()
            self.action()


@contextlib.contextmanager
def deleted(run):
    """Somebody deletes the run directory."""
    shutil.rmtree(run)
    yield


def give(*paths):
    """Let paths belong to the user that `as_user` makes of root."""
    for path in paths:
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)


@contextlib.contextmanager
def as_user():
    """Become a user without root's rights for a while; nothing happens to somebody who is one."""
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@contextlib.contextmanager
def read_only(run):
    """The run directory becomes read-only, and root, whom that does not stop, another user."""
    paths = [run, *run.rglob("*")]
    give(*paths)
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_user():
        yield
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def full(run, left=0):
    """The disk fills up, but for ``left`` bytes."""
    ballast = run.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - left)
    yield
    ballast.unlink()


@contextlib.contextmanager
def limited(run, size=5000):
    """Files may not grow beyond ``size`` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def disk():
    """A folder that every user can reach, unlike pytest's."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def small_disk(disk):
    """The same with a file system of 4 MiB; the test is skipped where none can be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that takes root's rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


BROKEN = {
    "deleted": (deleted, "was it moved or deleted"),
    "read-only": (read_only, "Make it writable"),
    "full": (full, "Free some space"),
    "almost full": (functools.partial(full, left=2**16), "Free some space"),
    "limited": (limited, "ulimit -f"),
}


@pytest.mark.parametrize("step", [5, 8, 12])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_disk_that_fails_on_the_way_is_told_and_the_run_goes_on_to_the_same_bits(
    request, words, finished, unfinished, monkeypatch, capsys, kind, step
):
    run = request.getfixturevalue("small_disk" if "full" in kind else "disk") / "run"
    breaks, cure = BROKEN[kind]
    callbacks = experiment._callbacks
    with contextlib.ExitStack() as broken:
        act = Once(step, lambda: broken.enter_context(breaks(run)))
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "_callbacks", lambda config: [act, *callbacks(config)])
            assert main([*words, "--run_dir", str(run)]) == 2
    warned, message = told(capsys)
    assert not warned
    assert str(run) in message.splitlines()[0]
    assert cure in message.splitlines()[0]
    found = last(run)
    if kind == "deleted":
        assert found.manifest["step"] >= step  # what was in memory is saved once more
    else:
        assert found.manifest["step"] == {5: 4, 8: 6, 12: 8}[step]
    if kind in ("deleted", "almost full", "limited"):
        assert read_json(run / "summary.json")["status"] == "failed"
    assert read_json(run / "summary.json")["status"] != "completed"
    assert str(found.path) in message
    if kind == "read-only":
        (run / ".lock").unlink()  # nobody holds it, and it could not be removed
    assert_nothing_is_left_over(run)
    assert go_on(run, 2) == 0
    warned, message = told(capsys)
    lost = [f"{run / name} is damaged or missing" for name in ("config.yaml", "metrics.jsonl")]
    assert all(any(text in line for text in lost) for line in warned)
    assert kind == "deleted" or not warned
    assert bits(last(run)) == bits(last(finished))
    assert_each_once(run)
    assert_nothing_is_left_over(run)


@pytest.mark.parametrize(
    ("name", "share"),
    [("config.yaml", 0.5), ("summary.json", 0.6), (f"{LAST}/{STATE}", 0.5), ("model.keras", 0.97)],
)
def test_what_cannot_be_written_is_named_and_a_resume_makes_it(
    words, finished, unfinished, tmp_path, monkeypatch, capsys, name, share
):
    run = tmp_path / "run"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Keras leaves an empty folder there
    with limited(run, round(share * (finished / name).stat().st_size)):
        assert main([*words, "--run_dir", str(run)]) == 2
    warned, message = told(capsys)
    assert not warned
    shown = "checkpoints/step-00000004" if name.endswith(STATE) else name
    assert message.startswith(f"fmnist: {run / shown} cannot be written: File too large.")
    assert not (run / name).exists()
    if name in ("model.keras", f"{LAST}/{STATE}"):
        assert read_json(run / "summary.json")["status"] == "failed"
    assert_nothing_is_left_over(run)
    assert main([*words, "--run_dir", str(run), "--resume", "auto"]) == 0
    assert told(capsys)[1] == ""
    assert bits(last(run)) == bits(last(finished))
    assert_each_once(run)


@pytest.mark.parametrize("name", ["evaluation.json", "plots/curves.png"])
def test_a_result_that_cannot_be_written_is_named_and_the_training_counts(
    run, monkeypatch, capsys, name
):
    conclude, size = experiment.conclude, (run / name).stat().st_size
    before = content(run)
    with monkeypatch.context() as patch, contextlib.ExitStack() as broken:
        limit = lambda *_: broken.enter_context(limited(run, round(0.9 * size)))  # noqa: E731
        patch.setattr(experiment, "conclude", lambda *args: (limit(), conclude(*args))[1])
        assert go_on(run) == 2
    warned, message = told(capsys)
    assert not warned
    assert message.startswith(f"fmnist: {run / name} cannot be written: File too large.")
    assert "The training is complete" in message
    assert read_json(run / "summary.json")["status"] == "completed"
    kept = content(run).get(name)
    assert kept == (None if name in OF_A_TEST else before[name])  # none is better than an old one
    assert_nothing_is_lost(run, before)


def test_a_record_that_is_cut_short_by_a_full_disk_is_written_once(
    run, straight, unfinished, monkeypatch, capsys
):
    size = (run / "metrics.jsonl").stat().st_size
    callbacks = experiment._callbacks
    with contextlib.ExitStack() as broken, monkeypatch.context() as patch:
        act = Once(17, lambda: broken.enter_context(limited(run, size + 20)))
        patch.setattr(experiment, "_callbacks", lambda config: [act, *callbacks(config)])
        assert go_on(run) == 2
    _, message = told(capsys)
    assert message.startswith(f"fmnist: {run / 'metrics.jsonl'} cannot be written")
    cut = (run / "metrics.jsonl").read_bytes().splitlines()[-1]
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(cut)
    assert go_on(run) == 0
    assert told(capsys) == ([], "")
    assert bits(last(run)) == straight
    assert len(read_metrics(run / "metrics.jsonl")) == 6
    assert_each_once(run)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_new_run_directory_without_permission_is_told(disk, words, capsys, mode):
    give(disk)
    disk.chmod(mode)
    with as_user():
        code = main([*words, "--run_dir", str(disk / "run")])
    disk.chmod(0o755)
    warned, message = told(capsys)
    assert code == 2
    assert not warned
    assert f"{disk / 'run'} cannot be written (Permission denied)" in message
    assert "Give another --run_dir" in message
    assert not list(disk.iterdir())


@pytest.mark.parametrize(("name", "mode"), [("", 0), ("", 0o555), ("checkpoints", 0)])
def test_a_run_without_permission_is_told_and_left_alone(disk, finished, capsys, name, mode):
    run = shutil.copytree(finished, disk / "run")
    give(run, *run.rglob("*"))
    before = content(run)
    (run / name).chmod(mode)
    with as_user():
        code = go_on(run)
    (run / name).chmod(0o755)
    warned, message = told(capsys)
    assert code == 2
    assert not warned
    assert str(run / name) in message
    assert "Permission denied" in message
    assert content(run) == before


@pytest.mark.parametrize("how", ["unreadable", "deleted", "a file"])
def test_auto_does_not_begin_anew_over_a_run_whose_checkpoints_cannot_be_found(
    disk, finished, words, unfinished, capsys, how
):
    run = shutil.copytree(finished, disk / "run")
    folder = run / "checkpoints"
    give(run, *run.rglob("*"))
    if how != "unreadable":
        shutil.rmtree(folder)
    if how == "a file":
        folder.write_text("mine")
    before = content(run)
    if how == "unreadable":
        folder.chmod(0)
    with as_user():
        code = main([*words, "--run_dir", str(run), "--resume", "auto"])
    if how == "unreadable":
        folder.chmod(0o755)
    _, message = told(capsys)
    assert code == 2
    assert str(run) in message
    assert content(run) == before


HOLDER = """
import sys
from pathlib import Path
from fmnist_keras3.runs.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start a process that holds a folder's lock until its input ends."""
    holders = []

    def start(folder):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.communicate()


def test_a_second_process_is_refused_and_the_holder_is_named(run, words, tmp_path, hold, capsys):
    new = tmp_path / "new"
    new.mkdir()
    for folder, command in (
        (run, ["train", "--resume", "last", "--run_dir", str(run), "--epochs", "3"]),
        (run, ["train", "--resume", f"{run / LAST}", "--epochs", "3"]),
        (new, [*words, "--run_dir", str(new)]),
        (new, [*words, "--run_dir", str(new), "--resume", "auto"]),
    ):
        holder, before = hold(folder), content(folder)
        assert main(command) == 2
        _, message = told(capsys)
        assert str(folder) in message
        assert f"process {holder.pid} on " in message
        assert "Wait until it ends" in message
        assert content(folder) == before
        holder.communicate()
        assert holder.returncode == 0
        assert not (folder / ".lock").exists()


def test_a_killed_process_holds_no_lock(run, straight, unfinished, hold, capsys):
    holder = hold(run)
    holder.kill()
    holder.wait()
    assert (run / ".lock").exists()
    assert go_on(run) == 0
    assert told(capsys) == ([], "")
    assert bits(last(run)) == straight
    assert not (run / ".lock").exists()


def test_a_process_cannot_hold_a_lock_twice(run, capsys):
    with locked(run):
        assert go_on(run) == 2
    assert f"process {os.getpid()} on " in told(capsys)[1]
    assert not (run / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match=r"cannot be locked \(no locks here\)"), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_told_and_not_made_anew(tmp_path):
    with pytest.raises(UserError, match="Its folder is gone"), locked(tmp_path / "gone"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_run_that_another_process_made_meanwhile_is_not_overwritten(
    words, finished, tmp_path, unfinished, monkeypatch, capsys
):
    from fmnist_keras3.runs import rundir

    run, lock = tmp_path / "run", rundir.locked

    def late(folder):
        shutil.copytree(finished, run, dirs_exist_ok=True)  # the other one comes and goes
        return lock(folder)

    monkeypatch.setattr(rundir, "locked", late)
    assert main([*words, "--run_dir", str(run)]) == 2
    assert "already holds a run" in told(capsys)[1]
    assert content(run) == content(finished)
