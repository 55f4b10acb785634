"""Real signals at random moments of a real training; what is left must be what none would leave.

``KERAS_BACKEND=jax python tests/soak --kills 50 --terms 20 --ints 20 --seed 0 --output FILE``

One training is never stopped. The others are killed (SIGKILL), terminated (SIGTERM) and interrupted
(SIGINT) wherever it hits them, resumed until they are done, and compared with the first: every
array of the last and of the best checkpoint, the weights in model.keras, metrics.jsonl and
metrics.csv apart from times, the evaluation. A third of the terminations and interruptions are
followed by a second signal, which ends the process at once. A run that is done makes place for a
new one as long as signals are left; two are under way at a time.

Moments: *starting* is Python's start, imports, data and compilation; *writing* a checkpoint or
pointer being written, in the background of whatever; *finishing* all after the last step, with the
evaluation and the report; *ended* Python's own end. Some runs write at their natural pace, the
others slowly, see victim.py. The exit codes after two signals are counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.data import idx, synthetic
from fmnist_keras3.ground.files import _TEMPORARY
from fmnist_keras3.runs import checkpoint, checkpoints, rundir

VICTIM = Path(__file__).parent / "victim.py"
MOMENTS = ("starting", "training", "writing", "validation", "finishing", "ended")
TIMES = {"seconds", "images_per_second"}
SECOND = "a second one"  # of the signals: SIGTERM or SIGINT after SIGTERM or SIGINT
RESUME = "--resume last --run_dir"
PATIENCE = 180  # seconds after which a process hangs

# Dropout, augmentation, clipping, schedule and a second logger: all that keeps a state or draws.
WORDS = shlex.split(
    "--model lenet --dropout 0.2 --augment flip,crop,erase --clip 1 --schedule cosine --lr 5e-3 "
    "--weight_decay 0.01 --batch_size 16 --validation 0.2 --early_stopping 50 --keep_top 2 "
    "--log_every_n_steps 1 --logger csv"
)


class Failure(AssertionError):
    """Something was lost, or ended in another way than it has to."""


@dataclass(frozen=True)
class Settings:
    """What is trained; ``pause`` is the longest sleep (seconds) before a step of a slow write."""

    examples: int = 6000
    epochs: int = 4
    checkpoint_every: int = 40  # steps
    pause: float = 0.03
    seed: int = 0

    def words(self, data: Path) -> list[str]:
        """Return the settings of the training as words of the command line."""
        return [
            *WORDS,
            *("--data_dir", str(data), "--epochs", str(self.epochs), "--seed", str(self.seed)),
            *("--checkpoint_every", str(self.checkpoint_every)),
        ]


@dataclass
class Pace:
    """How many seconds the parts of a process' life take, as they were seen last."""

    starting: float = 3.0
    training: float = 2.0  # of the whole training
    finishing: float = 1.0


@dataclass
class Tally:
    """What happened."""

    hits: dict[str, Counter[str]] = field(default_factory=dict)  # moments by signal
    codes: dict[str, Counter[str]] = field(default_factory=dict)  # exit codes by signal
    resumes: int = 0
    runs: int = 0
    by_printed_command: int = 0  # resumes by the command that the stopped process printed
    tracebacks: int = 0  # KeyboardInterrupt in Python's own start or end, outside of `fmnist`
    swallowed: int = 0  # signals that Python let go by, see `without_swallowed`

    def hit(self, name: str, moment: str) -> None:
        self.hits.setdefault(name, Counter())[moment] += 1

    def end(self, name: str, code: int) -> None:
        self.codes.setdefault(name, Counter())[str(code)] += 1


class Victim:
    """One process of `fmnist`, its moments and its output."""

    def __init__(self, folder: Path, words: list[str], pause: float, backend: str) -> None:
        folder.mkdir(exist_ok=True)
        self._moments, self._output = folder / "moments", folder / "output.txt"
        self._moments.write_text("")
        env = {**os.environ, "KERAS_BACKEND": backend, "FMNIST_OFFLINE": "1"}
        env.pop("FMNIST_DATA_DIR", None)
        command = [sys.executable, str(VICTIM), str(self._moments), str(pause), *words]
        self.started = time.monotonic()
        with open(self._output, "wb") as file:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def lines(self) -> list[tuple[float, str, str]]:
        """Return the moments that began (+) and ended (-) until now."""
        lines = [line.split() for line in self._moments.read_text().splitlines()]
        return [(float(seconds), word[0], word[1:]) for seconds, word in lines]

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def at(self, moment: str) -> float | None:
        """Return when ``moment`` began first, or None."""
        return next((t for t, sign, name in self.lines() if (sign, name) == ("+", moment)), None)

    def during(self, seconds: float) -> set[str]:
        """Return what the process was at, at that time."""
        now: Counter[str] = Counter()
        for t, sign, name in self.lines():
            if t <= seconds:
                now[name] += 1 if sign == "+" else -1
        return {name for name, count in now.items() if count > 0}

    def moment(self, seconds: float) -> str:
        """Return what the process was at, at that time, in one word of MOMENTS."""
        now = self.during(seconds)
        order = ("ended", "writing", "finishing", "validation", "training")
        return next((name for name in order if name in now), "starting")

    def wait_for(self, moment: str) -> None:
        """Wait until ``moment`` begins or the process ends."""
        while self.at(moment) is None and self.process.poll() is None:
            time.sleep(0.01)

    def ends_before(self, seconds: float) -> bool:
        """Wait so many seconds, or until the process ends, and tell which it was."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> int:
        """Wait for the process' end and return its exit code; raises Failure where it hangs."""
        if not self.ends_before(PATIENCE):
            self.process.kill()
            self.process.wait()
            raise Failure(f"The process hung:\n{self.output()}")
        return self.process.returncode


def write_data(folder: Path, examples: int) -> Path:
    """Write generated garments as IDX files, which load faster than they are drawn."""
    idx.write_folder(folder, synthetic.generate(0, train=examples, test=300))
    return folder


class Soak:
    """Stops, resumes and compares runs in ``folder``; raises Failure at the first flaw."""

    def __init__(self, folder: Path, settings: Settings, seed: int, backend: str) -> None:
        self.folder, self.settings, self.backend = folder, settings, backend
        self.dice, self.pace, self.tally = random.Random(seed), Pace(), Tally()
        self.straight = folder / "straight"
        self.words = settings.words(write_data(folder / "data", settings.examples))
        self.steps = 0  # of a whole training
        self._began, self._lock = time.monotonic(), threading.Lock()

    def run(self, kills: int, terms: int, ints: int, jobs: int = 2) -> None:
        """Send so many signals, in random order, and finish the last runs without.

        ``jobs`` runs are under way at a time. The straight run is made before, unless it is there.
        """
        names = ["SIGKILL"] * kills + ["SIGTERM"] * terms + ["SIGINT"] * ints
        self.dice.shuffle(names)
        with not_ignoring_interrupts():
            if not self.straight.exists():
                self.run_straight()
            self.steps = json.loads((self.straight / rundir.SUMMARY).read_text())["steps"]
            with ThreadPoolExecutor(jobs) as pool:
                started = [pool.submit(self._run_chains, names) for _ in range(jobs)]
                try:
                    for job in as_completed(started):
                        job.result()
                except BaseException:
                    names.clear()  # lets the jobs end soon
                    raise

    def run_straight(self) -> None:
        """Run the training that is never stopped."""
        victim = self._start(self.straight, self.settings.pause)
        code = victim.end()
        check_output(victim.output(), complete=False)
        if code != 0:
            raise Failure(f"The straight run exits with {code}:\n{victim.output()}")
        self._learn(victim, 0)
        self._tell("the straight run is done")

    def _run_chains(self, names: list[str]) -> None:
        while names:
            self.run_chain(names)

    def run_chain(self, names: list[str]) -> None:
        """Run one training to its end, stopped by the signals that are taken from ``names``."""
        with self._lock:
            number = self.tally.runs
            self.tally.runs += 1
        path = self.folder / f"run-{number:03d}"
        pause = 0.0 if number % 3 == 2 else self.settings.pause
        words = None
        for n in itertools.count():
            with self._lock:
                self.tally.resumes += n > 0
                name = names.pop() if names else None
            step = last_step(path)
            victim = self._start(path, pause, words)
            words = None
            if name is None or not self._stop(victim, path, name, step):
                if name is not None:
                    names.append(name)  # for the next one
                code = victim.end()
                check_output(victim.output(), complete=step == self.steps)
                if code != 0:
                    raise Failure(f"Exit code {code} without a signal:\n{victim.output()}")
                self._learn(victim, step)
                break
            check_checkpoints(path, at_least=step)
            words = self._printed_command(victim, path)
        compare(self.straight, path)
        self._tell(f"{path.name} is equal to the bit after {n} resumes; {len(names)} signals left")
        shutil.rmtree(path)

    def _start(self, path: Path, pause: float, words: list[str] | None = None) -> Victim:
        words = words or ["train", "--resume", "auto", "--run_dir", str(path), *self.words]
        return Victim(self.folder / f"{path.name}-process", words, pause, self.backend)

    def _stop(self, victim: Victim, path: Path, name: str, step: int) -> bool:
        """Send the signal at a random moment; return False if the end came first."""
        left = self.pace.training * (1 - step / self.steps)
        if step == self.steps or self.dice.random() < 0.5:
            whole = self.pace.starting + left + self.pace.finishing
            if step == self.steps:
                whole *= 2  # what is left is short; it need not be hit again and again
            delay = self.dice.uniform(0, whole) + victim.started - time.monotonic()
        else:
            victim.wait_for("training")
            delay = self.dice.uniform(0, left)
        if victim.ends_before(delay):
            return False
        twice = name != "SIGKILL" and self.dice.random() < 1 / 3
        before = time.monotonic()
        victim.process.send_signal(getattr(signal, name))
        after = time.monotonic()
        second, second_at = None, 0.0
        if twice and not victim.ends_before(self.dice.uniform(0, 0.3)):
            second, second_at = self.dice.choice(["SIGTERM", "SIGINT"]), time.monotonic()
            victim.process.send_signal(getattr(signal, second))
        code = victim.end()
        moment = victim.moment(before)
        if code == 0 and moment == "ended" and "KeyboardInterrupt" not in victim.output():
            return False  # the process was gone, but for its number
        if "training" in victim.during(before):
            self.pace.starting = (victim.at("training") or 0.0) - victim.started
        with self._lock:
            self.tally.hit(name, moment)
            self.tally.end(SECOND if second else name, code)
            if second:
                self.tally.hit(SECOND, victim.moment(second_at))
        handled = "training" in victim.during(before) & victim.during(after)
        self._check_stop(victim, path, name, second, code, moment, handled, step)
        then = f", then {second} in {victim.moment(second_at)}" * bool(second)
        self._tell(f"{path.name}: {name} in {moment}{then}: exit {code}, step {last_step(path)}")
        return True

    def _check_stop(
        self,
        victim: Victim,
        path: Path,
        name: str,
        second: str | None,
        code: int,
        moment: str,
        handled: bool,
        step: int,
    ) -> None:
        """Raise Failure unless the process ended as it has to.

        ``handled``: the signal surely came while the training handles signals.
        """
        output = victim.output()
        told = f"{name}{f' and {second}' * bool(second)} in {moment}: exit code {code}.\n{output}"
        output, swallowed = without_swallowed(output)
        traceback = check_output(output, complete=step == self.steps, may_be_interrupted=True)
        with self._lock:
            self.tally.tracebacks += traceback
            self.tally.swallowed += swallowed
        # Outside of `fmnist`: the signal may come a little later than it was sent.
        ended = moment == "ended" or (moment == "finishing" and victim.at("ended") is not None)
        if (traceback and "SIGINT" not in (name, second)) or (
            swallowed and not (ended or moment == "starting")
        ):
            raise Failure(f"A traceback. {told}")
        numbers = [signal.Signals[sent].value for sent in (name, second) if sent]
        if name == "SIGKILL":
            allowed = {-numbers[0]}
        elif handled and second is None:
            allowed = {128 + numbers[0]}
        else:
            # Python itself dies of SIGINT after a traceback, or exits with 1 if it reads `site`.
            allowed = {128 + n for n in numbers} | {-n for n in numbers}
            allowed |= {1} if traceback else set()
        if ended or swallowed:
            allowed.add(0)
        if code not in allowed:
            raise Failure(f"Expected exit code {allowed}. {told}")
        if name == "SIGKILL" or not handled:
            return
        if second is None and f"Stopped by {name}" not in output:
            raise Failure(f"The stop is not told. {told}")
        if checkpoints.pointed(path / rundir.CHECKPOINTS, "last") and RESUME not in output:
            raise Failure(f"There is no command to go on with. {told}")
        stopped = re.search(r"Stopped by \w+ after step (\d+)", output)
        if stopped and int(stopped[1]) != last_step(path):
            raise Failure(f"The last checkpoint is of step {last_step(path)}. {told}")

    def _printed_command(self, victim: Victim, path: Path) -> list[str] | None:
        """Return the words of the command to go on with, if one was printed; every other time."""
        found = re.search(r"KERAS_BACKEND=(\S+) fmnist (train .*)$", victim.output(), re.MULTILINE)
        if found is None or self.dice.random() < 0.5:
            return None
        words = shlex.split(found[2])
        if found[1] != self.backend or words != ["train", *RESUME.split(), str(path)]:
            raise Failure(f"The command to go on with is another run's: {found[0]}")
        with self._lock:
            self.tally.by_printed_command += 1
        return words

    def _learn(self, victim: Victim, step: int) -> None:
        """Take over how long the parts of a whole life took."""
        training, finishing, ended = (victim.at(m) for m in ("training", "finishing", "ended"))
        if training is None or finishing is None or ended is None:
            raise Failure(f"The process trained nothing:\n{victim.output()}")
        self.pace.starting = training - victim.started
        self.pace.finishing = ended - finishing
        if step == 0:
            self.pace.training = finishing - training

    def _tell(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)


@contextlib.contextmanager
def not_ignoring_interrupts() -> Iterator[None]:
    """Let child processes begin with SIGINT as in a terminal.

    A shell lets what it starts in the background ignore SIGINT, which processes inherit.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_output(output: str, *, complete: bool, may_be_interrupted: bool = False) -> bool:
    """Raise Failure for warnings and tracebacks; return whether there is an allowed traceback.

    That is one of KeyboardInterrupt, while Python itself starts or ends. ``complete``: there was
    nothing left to train, which is told.
    """
    for line in output.splitlines():
        expected = complete and "Nothing is left to train" in line
        if re.search(r"\bW?\w*[Ww]arning:", line) and not expected:
            raise Failure(f"A warning:\n{output}")
    if "Traceback" not in output:
        return False
    inside = re.search(r'cli\.py", line \d+, in (main|_dispatch)', output)
    if not may_be_interrupted or inside or "KeyboardInterrupt" not in output:
        raise Failure(f"A traceback:\n{output}")
    return True


def without_swallowed(output: str) -> tuple[str, int]:
    """Return the output without the signals that had no effect, and their number.

    What a handler raises while Python calls a finalizer is printed and forgotten. `fmnist` mends
    that (`signals.terminable`), but Python's own start and end are not in its hands.
    """
    first, last = "Exception ignored in: .*", r"[\w.]*(?:KeyboardInterrupt|Interrupted)\b.*"
    block = rf"^{first}\n(?:Traceback .*\n(?: .*\n|\n)*)?{last}\n?"
    return re.subn(block, "", output, flags=re.MULTILINE)


def last_step(run: Path) -> int:
    """Return the step of the checkpoint that "last" points to, 0 where there is none."""
    path = checkpoints.pointed(run / rundir.CHECKPOINTS, "last")
    return 0 if path is None else checkpoint.read_manifest(path)["step"]


def check_checkpoints(run: Path, at_least: int) -> None:
    """Raise Failure unless what the pointers show to is whole, and not older than it was."""
    folder = run / rundir.CHECKPOINTS
    for name in ("last", "best"):
        pointer = folder / f"{name}.json"
        if not pointer.exists():
            continue
        path = checkpoints.pointed(folder, name)
        if path is None:
            raise Failure(f"{pointer} is damaged: {pointer.read_bytes()!r}")
        checkpoint.load(path)
    if last_step(run) < at_least:
        raise Failure(f"{run} went back from step {at_least} to {last_step(run)}.")


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl without times; raises Failure for one there twice."""
    lines = (run / rundir.METRICS).read_text().splitlines()
    found = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    twice = [key for key, n in Counter((r["event"], r["step"]) for r in found).items() if n > 1]
    if twice:
        raise Failure(f"{run / rundir.METRICS} has more than once: {twice}")
    return found


def facts(run: Path) -> dict[str, Any]:
    """Return all of a run that stops must not change, by names; arrays as dtype, shape, bytes."""
    found: dict[str, Any] = {"metrics.jsonl": records(run)}
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found["metrics.csv"] = [{k: v for k, v in r.items() if k not in TIMES} for r in rows]
    found["evaluation.json"] = json.loads((run / "evaluation.json").read_text())
    summary = json.loads((run / rundir.SUMMARY).read_text())
    names = ("status", "reason", "epochs", "steps", "best_epoch")
    found |= {f"summary.json {name}": summary.get(name) for name in names}
    for name in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy"):
        found[f"summary.json {name}"] = summary[name]
    for name in ("last", "best"):
        path = checkpoints.pointed(run / rundir.CHECKPOINTS, name)
        if path is None:
            raise Failure(f"{run} has no checkpoint {name!r}.")
        loaded = checkpoint.load(path)
        for i, (key, array) in enumerate(loaded.state):
            found[f"{name} checkpoint, {i}: {key}"] = exactly(array)
        manifest = loaded.manifest
        position = {k: v for k, v in manifest["position"].items() if k not in TIMES}
        found |= {f"{name} checkpoint, position": position, f"{name}, logs": manifest["logs"]}
        callbacks = manifest["callbacks"]
        # A checkpoint's name tells how many of the same step there were; value and epoch count.
        best = [(value, epoch) for value, _, epoch in callbacks["ModelCheckpoint"]["best"]]
        found[f"{name} checkpoint, best"] = best
        found[f"{name} checkpoint, early stopping"] = callbacks["EarlyStopping"]
    pointer = json.loads((run / rundir.CHECKPOINTS / "best.json").read_text())
    found["best.json"] = {k: v for k, v in pointer.items() if k != "checkpoint"}
    found |= weights(run / rundir.MODEL)
    return found


def weights(path: Path) -> dict[str, Any]:
    """Return the arrays in a `.keras` file, by names."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[f"model.keras {name}"] = exactly(np.asarray(item))

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as file:
        file.visititems(visit)
    if not found:
        raise Failure(f"There are no weights in {path}.")
    return found


def exactly(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Return what is equal for arrays that are equal to the bit."""
    return str(array.dtype), array.shape, array.tobytes()


def compare(straight: Path, other: Path) -> None:
    """Raise Failure, naming what, unless two finished runs are equal apart from times."""
    a, b = facts(straight), facts(other)
    if differing := [name for name in {**a, **b} if a.get(name) != b.get(name)]:
        shown = [name for name in differing if isinstance(a.get(name), (list, dict, float, int))]
        details = "".join(f"\n{n}: {first_difference(a[n], b.get(n))}" for n in shown)
        raise Failure(f"{other} differs from {straight}: {', '.join(differing)}{details}")
    if left := [p for p in other.rglob("*") if _TEMPORARY.fullmatch(p.name) or p.name == ".lock"]:
        raise Failure(f"{other} still has {left}.")
    kept = {p.name for p in checkpoints.saved(other / rundir.CHECKPOINTS)}
    # The last, the one before it, two best; and two that a killed process did not come to remove.
    if len(kept) > 6:
        raise Failure(f"{other} keeps too many checkpoints: {sorted(kept)}.")


def first_difference(a: Any, b: Any) -> str:
    """Show where two lists differ first, or both values."""
    if isinstance(a, list) and isinstance(b, list):
        for i, (one, other) in enumerate(zip(a, b, strict=False)):
            if one != other:
                return f"entry {i} is {one} and {other}"
        return f"{len(a)} and {len(b)} entries"
    return f"{a} and {b}"


def result(soak: Soak, command: str) -> dict[str, Any]:
    """Return what the result file holds of a soak that found everything equal."""
    tally = soak.tally
    return {
        "command": command,
        "backend": soak.backend,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "equal": True,
        "signals": {
            name: {
                "sent": sum(hits.values()),
                "moments": {moment: hits[moment] for moment in MOMENTS},
                "exit_codes": dict(sorted(tally.codes.get(name, {}).items())),
            }
            for name, hits in sorted(tally.hits.items())
        },
        "runs": tally.runs,
        "resumes": tally.resumes,
        "resumes_by_the_printed_command": tally.by_printed_command,
        "interrupts_outside_of_fmnist": tally.tracebacks,
        "signals_that_python_swallowed": tally.swallowed,
        "steps_of_a_run": soak.steps,
        "training": shlex.join(["fmnist", "train", *soak.settings.words(Path("DATA"))]),
        "seconds": round(time.monotonic() - soak._began),
    }


def table(found: dict[str, Any]) -> str:
    """Return the result as lines for people."""
    lines = [f"{'':14}" + "".join(f"{moment:>12}" for moment in MOMENTS) + "   exit codes"]
    for name, row in found["signals"].items():
        counts = "".join(f"{row['moments'][moment]:>12}" for moment in MOMENTS)
        codes = ", ".join(f"{code}: {n}" for code, n in row["exit_codes"].items())
        lines.append(f"{name:14}{counts}   {codes}")
    lines.append(
        f"{found['runs']} runs, {found['resumes']} resumes, all equal to the bit to the straight "
        f"one on {found['backend']}; {found['seconds']} s"
    )
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python tests/soak", description=__doc__.split("\n")[0])
    for name, default in (("kills", 50), ("terms", 20), ("ints", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the result")
    options = parser.parse_args()
    backend = runtime.choose_backend()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, Settings(), options.seed, backend)
    try:
        soak.run(options.kills, options.terms, options.ints)
    except BaseException:
        print(f"What is left lies in {folder}", flush=True)
        raise
    shutil.rmtree(folder)
    words = shlex.join(["python", "tests/soak", *sys.argv[1:]])
    found = result(soak, f"KERAS_BACKEND={backend} {words}")
    print(table(found))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
