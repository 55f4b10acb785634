"""`fmnist launch`: several processes on this machine that train together, and a watch over them.

JAX ends a process whose partner has died with a C++ stack, or lets it wait. So one process stays
apart from the training: it tells which one died, ends the others, and may start all again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import EXIT_DIVERGED, EXIT_USER, UserError

WATCHED = "WATCHED_BY_FMNIST"  # set for processes that are
FOLLOW_SECONDS = 10.0  # for the others to come to the same end
HOLD_SECONDS = 0.5
HANDED_ON = ("SIGTERM", "SIGINT", "SIGUSR1")
_CHATTER = ("[Gloo]",)
_TROUBLE = re.compile(r"Traceback|[EF]\d{4} \d\d:")  # of Python, or of JAX in C++
_NAMED = re.compile(r"^(?:\S*task:)?(\d+)$", re.MULTILINE)  # a process, on a line of its own
_LEADER = re.compile(r"Socket closed|leader task|CoordinationService/Heartbeat")
TOGETHER = (0, EXIT_USER, EXIT_DIVERGED, 130, 143)  # ends that all processes come to


@dataclass
class Process:
    """One of the processes, and what it said on stderr that was not passed on yet."""

    number: int
    running: subprocess.Popen[str]
    said: list[tuple[float, str]] = field(default_factory=list)  # lines, and when they came
    reader: threading.Thread | None = None

    def read(self) -> None:
        """Collect what it says, in a thread."""

        def collect() -> None:
            assert self.running.stderr is not None
            for line in self.running.stderr:
                if not line.startswith(_CHATTER):
                    self.said.append((time.monotonic(), line))

        self.reader = threading.Thread(target=collect, daemon=True)
        self.reader.start()

    def pass_on(self, until: float = float("inf"), trouble: bool = True) -> None:
        """Print what it said before the time ``until``, or before it came to ``trouble``."""
        while self.said and self.said[0][0] < until:
            if not trouble and _TROUBLE.match(self.said[0][1]):
                break
            sys.stderr.write(self.said.pop(0)[1])
        sys.stderr.flush()


class Death(NamedTuple):
    """The end of the process ``number``, which was the cause of that of all, in words."""

    number: int
    told: str


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.usage = "fmnist launch -n N [--restarts N] -- train [options]"
    text = "processes, each on one device of this machine, that share each batch"
    parser.add_argument("-n", "--processes", metavar="N", default="1", help=text)
    text = (
        "how often all are started again, from the last checkpoint, when one has died; without "
        "one that dies twice in a row [0]"
    )
    parser.add_argument("--restarts", metavar="N", default="0", help=text)
    parser.add_argument("words", metavar="train ...", nargs="*", help="the training, behind --")


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    counts = []
    for name, least in (("processes", 1), ("restarts", 0)):
        value = getattr(given, name)
        if not value.isdecimal() or int(value) < least:
            raise UserError(
                f"{name} is {value!r}; it must be a whole number, at least {least}. Type "
                "fmnist launch -n 2 -- train ..."
            )
        counts.append(int(value))
    return launch(given.words, *counts)


def launch(words: list[str], processes: int, restarts: int) -> int:
    """Run the command ``words`` ("train ...") in ``processes`` and return the exit code of all.

    Where one dies the others are ended, and up to ``restarts`` times all are started again, from
    the last checkpoint. Where the same one dies twice in a row, its place is taken for broken, and
    those that are left go on. Raises UserError for what cannot be launched.
    """
    _check(words, processes, restarts)
    places, before = deal(processes), -1
    for left in range(restarts, -1, -1):
        code, death = _run(words, places)
        if death is None:
            return code
        print(f"fmnist: {death.told}", file=sys.stderr)
        if left:
            if death.number == before:
                places, before = without(places, before, _value(words, "--run_dir") or ""), -1
            else:
                before = death.number
            how = f"with {len(places)} process{'es' * (len(places) > 1)}; {left} restarts left"
            print(f"fmnist: starting again from the last checkpoint ({how})", file=sys.stderr)
            words = [*_without(words, "--resume"), "--resume", "auto"]
    where = _value(words, "--run_dir")
    again = "" if where is None else f" --run_dir {where}"
    print(
        "fmnist: to go on from the last checkpoint, with as many processes as you like:\n"
        f"  fmnist launch -n {processes} -- train --resume last{again}",
        file=sys.stderr,
    )
    return 1


def _check(words: list[str], processes: int, restarts: int) -> None:
    if words[:1] != ["train"]:
        given = f"{words[0]!r}" if words else "nothing"
        raise UserError(f"launch starts train, not {given}. Type fmnist launch -n 2 -- train ...")
    for option in ("--coordinator", "--num_processes", "--process_id"):
        if _value(words, option) is not None:
            raise UserError(f"launch gives {option} to each process itself. Leave it out.")
    runtime.check_joint("launch")
    if restarts and _value(words, "--run_dir") is None:
        raise UserError("restarts go on in the run's folder. Give it: -- train --run_dir DIR ...")
    if restarts and _value(words, "--resume") not in (None, "last", "auto"):
        raise UserError("restarts go on from the last checkpoint. Leave --resume out, or auto.")
    if runtime.has_gpu_driver() and processes > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        raise UserError(
            "On a machine with GPUs one process trains on all of them: fmnist train --devices "
            "auto. To launch several processes all the same, set CUDA_VISIBLE_DEVICES=0,1,... "
            "which are dealt out to them."
        )


def deal(count: int) -> list[str | None]:
    """Return the CUDA_VISIBLE_DEVICES of each of ``count`` processes, None where there is none."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [",".join(gpus.split(",")[i::count]) if gpus else None for i in range(count)]


def without(places: list[str | None], number: int, run: str) -> list[str | None]:
    """Return ``places`` without that of the process ``number``.

    Only so many as can share the batches of the ``run``, and all where there was one only, or the
    run has not begun.
    """
    import yaml

    from fmnist_keras3.runs import rundir

    try:
        settings = yaml.safe_load((Path(run) / rundir.CONFIG).read_text())
    except OSError:
        return places
    each = str(settings.get("devices"))
    each = int(each) if each.isdecimal() else 1
    fit = (n for n in range(len(places) - 1, 0, -1) if settings["batch_size"] % (n * each) == 0)
    count = next(fit, len(places))
    left = [place for i, place in enumerate(places) if i != number]
    return left[:count] if count < len(places) else places


def _run(words: list[str], places: list[str | None]) -> tuple[int, Death | None]:
    """Run a process at each of ``places``; return the exit code, and of which one that died."""
    with _processes() as (everyone, work):
        address = f"127.0.0.1:{_free_port()}"
        everyone += [_start(words, address, places, number, work) for number in range(len(places))]
        return _watch(everyone)


def watch(words: list[str]) -> int:
    """Run the command ``words``, one process of many on several machines; return its exit code.

    JAX ends it in C++ when another one is lost; here that comes to be one message, and code 1.
    """
    with _processes() as (everyone, work):
        process = _process(0, words, {**os.environ, "TMPDIR": work}, None)
        everyone.append(process)
        while process.running.poll() is None:
            time.sleep(0.1)
            process.pass_on(trouble=False)
        assert process.reader is not None
        process.reader.join(timeout=2)
        code = process.running.returncode
        lost = "".join(line for _, line in process.said)
        if code in TOGETHER or not runtime.LOST.search(lost):
            process.pass_on()
            if code < 0:
                print(f"fmnist: this process {_death(process)}.", file=sys.stderr)
            return code if code in TOGETHER else 1
        print(f"fmnist: {lost_one(lost)}", file=sys.stderr)
        return 1


def lost_one(said: str) -> str:
    """Return what is to be told of what JAX ``said`` in C++ when it lost another process."""
    named = sorted(set(_NAMED.findall(said)), key=int)
    if not named and _LEADER.search(said):
        named = ["0, the coordinator,"]
    who = f"process {' and '.join(named)}" if named else "another process"
    return (
        f"{who} of this training was lost: it ended, or its machine or the network did. So this "
        "one was ended. To go on from the last checkpoint, start all again with --resume auto and "
        "--run_dir."
    )


@contextlib.contextmanager
def _processes() -> Iterator[tuple[list[Process], str]]:
    """Yield a list for processes, which get signals and are ended at last, and their folder."""
    everyone: list[Process] = []

    def hand_on(number: int, frame: object) -> None:
        for process in everyone:
            with contextlib.suppress(ProcessLookupError):
                process.running.send_signal(number)

    # Windows has no SIGUSR1.
    numbers = [n for name in HANDED_ON if (n := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, hand_on) for number in numbers}
    work = tempfile.mkdtemp(prefix="fmnist-launch-")  # for what one that is killed leaves behind
    try:
        yield everyone, work
    finally:
        _end([process for process in everyone if process.running.poll() is None])
        shutil.rmtree(work, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    words: list[str], address: str, places: list[str | None], number: int, work: str
) -> Process:
    together = {"coordinator": address, "num_processes": len(places), "process_id": number}
    options = [word for name, value in together.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "TMPDIR": work}
    if (gpus := places[number]) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    return _process(number, [*words, *options], environment, subprocess.DEVNULL if number else None)


def _process(
    number: int, words: list[str], environment: dict[str, str], stdout: int | None
) -> Process:
    process = Process(
        number,
        subprocess.Popen(
            [sys.executable, "-m", "fmnist_keras3", *words],
            env={**environment, WATCHED: "1"},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes from here, once
        ),
    )
    process.read()
    return process


def _watch(everyone: list[Process]) -> tuple[int, Death | None]:
    """Wait for all; return their exit code, and the death of the first that died."""
    while all(process.running.poll() is None for process in everyone):
        time.sleep(0.1)
        # Held back: what follows from another's death is not to be told.
        everyone[0].pass_on(time.monotonic() - HOLD_SECONDS)
    ended = [process for process in everyone if process.running.poll() is not None]
    # Of several that ended at once, one that was killed is the cause, and the others follow.
    first = min(ended, key=lambda process: process.running.returncode)
    code = first.running.returncode
    if code in TOGETHER:
        until = time.monotonic() + FOLLOW_SECONDS
        for process in everyone:
            # After the training the first process still writes, as long as it takes.
            wait = None if code == 0 else max(0.0, until - time.monotonic())
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.running.wait(wait)
        others = [p for p in everyone if p.running.poll() not in (None, *TOGETHER)]
        told = code in (EXIT_USER, EXIT_DIVERGED)  # by one or by all; the others end of that
        if told or not others:  # some may have been stopped before they came together
            _end([process for process in everyone if process.running.poll() is None])
            _pass_on_all(everyone[0] if everyone[0].running.returncode == code else first)
            return code, None
        first = min(others, key=lambda process: process.running.returncode)
    _end([process for process in everyone if process.running.poll() is None])
    _pass_on_all(first)
    which = f"process {first.number} of {len(everyone)}"
    return 1, Death(first.number, f"{which} {_death(first)}, and the others were ended.")


def _pass_on_all(process: Process) -> None:
    if process.reader is not None:
        process.reader.join(timeout=2)
    process.pass_on()


def _death(process: Process) -> str:
    code = process.running.returncode
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    return f"(number {process.running.pid} of the system) {how}"


def _end(processes: list[Process]) -> None:
    """End processes that wait for one that is gone; at once, for they write nothing then."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.running.kill()
    for process in processes:
        process.running.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _value(words: list[str], option: str) -> str | None:
    """Return the value of an ``option`` among words, as --option value or --option=value."""
    for spelling in (option, option.replace("_", "-")):
        for i, word in enumerate(words):
            if word == spelling:
                return words[i + 1] if i + 1 < len(words) else ""
            if word.startswith(f"{spelling}="):
                return word.partition("=")[2]
    return None


def _without(words: list[str], option: str) -> list[str]:
    value, kept = _value(words, option), list(words)
    if value is not None and option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return [word for word in kept if not word.startswith(f"{option}=")]
