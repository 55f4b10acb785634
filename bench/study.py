"""`python -m bench study RECIPE`: a recipe over several seeds, and what each of its parts is worth.

Every run is a `fmnist train` in a process of its own, and is stored as soon as it ends:
``RECIPE/BACKEND-SEED/{summary.json,metrics.jsonl,config.yaml}``, those of an ablation below
``RECIPE/ablation/PART``. A study that was stopped goes on where it was, within a run, too.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cells import ROOT
from fmnist_keras3 import recipes
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.files import write, write_json
from fmnist_keras3.settings import OWN_VARIABLES, SETTINGS, TrainConfig, mapping

FILES = ("summary.json", "metrics.jsonl", "config.yaml")
FULL = "full"  # the recipe itself, among the runs of its ablation
# Of an ablation, which is to choose by: no look at the test set.
HELD_OUT = {"validation": 0.1, "limit_test_batches": 0}
# Two runs with the same seed differ in these.
TIMES = ("seconds", "images_per_second", "time")
HERE = ("data_dir",)  # of a configuration: where, not what
GENUINE = "fashion_mnist"


@dataclass(frozen=True)
class Job:
    """One run of a study; ``given`` are the settings that rule over the recipe's."""

    recipe: str
    backend: str
    seed: int
    part: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """Where its files lie below the study's folder."""
        folder = Path("ablation", self.part.replace(" ", "-")) if self.part else Path()
        return folder / f"{self.backend}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.recipe}{f', {self.part}' if self.part else ''}, {self.backend} {self.seed}"

    @property
    def words(self) -> list[str]:
        """The arguments of `fmnist train`."""
        given = {"recipe": self.recipe, "seed": self.seed, **self.given}
        return [
            word
            for name, value in given.items()
            for word in (f"--{name}", "none" if value is None else str(value))
        ]

    @property
    def command(self) -> str:
        return f"KERAS_BACKEND={self.backend} fmnist train {shlex.join(self.words)}"

    def config(self) -> dict[str, Any]:
        """Return what the run's config.yaml has to hold."""
        _, settings = recipes.read(self.recipe)
        given = {name: SETTINGS[name].read(value) for name, value in self.given.items()}
        return TrainConfig(**{**settings, "seed": self.seed, **given}).to_dict()


def parts(recipe: str) -> dict[str, dict[str, Any]]:
    """Return the settings with which each part of a recipe is off; raises UserError for none."""
    header, _ = recipes.read(recipe)
    found = header.get("parts", {})
    if not found:
        raise UserError(f"The recipe {recipe} names no parts in its header; there is no ablation.")
    return found


def plan(
    recipe: str,
    backends: Sequence[str],
    seeds: int,
    ablation: Sequence[str] | None = None,
    given: dict[str, Any] | None = None,
) -> list[Job]:
    """Return the runs in order: all of one seed before the next.

    ``ablation``: parts to switch off one by one beside the full recipe, on the validation split;
    an empty list is all of them. Raises UserError for a part that the recipe does not have.
    """
    given = {"data": GENUINE, **(given or {})}
    variants: dict[str | None, dict[str, Any]] = {None: {}}
    if ablation is not None:
        known = parts(recipe)
        for name in ablation:
            if name not in known:
                raise UserError(
                    f"The recipe {recipe} has no part {name!r}.{nearest(name, known)} "
                    f"Parts: {', '.join(known)}."
                )
        variants = {FULL: {}, **{name: known[name] for name in ablation or known}}
        given = {**HELD_OUT, **given}
    return [
        Job(recipe, backend, seed, part, {**given, **off})
        for seed in range(seeds)
        for part, off in variants.items()
        for backend in backends
    ]


def check(job: Job, folder: Path) -> None:
    """Raise UserError if a run in ``folder`` was made with other settings than ``job``'s."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    found, expected = mapping(path), job.config()
    for name, value in expected.items():
        if name not in HERE and found.get(name, value) != value:
            raise UserError(
                f"{folder} was made with {name} {found[name]!r}; {job.recipe} has {value!r} now. "
                "Move that folder away, or give another --output."
            )


def run(
    jobs: Sequence[Job],
    results: Path,
    work: Path,
    minutes: float | None,
    say: Callable[[str], None],
) -> bool:
    """Run what is not stored yet; returns whether all is there within ``minutes``."""
    deadline = time.monotonic() + 60 * minutes if minutes else None
    for job in jobs:
        check(job, results / job.place)
        check(job, work / job.place)
    for number, job in enumerate(jobs, 1):
        if (results / job.place / FILES[0]).exists():
            continue
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        say(f"{number:3}/{len(jobs)} {job}: {job.command}")
        if not train(job, work / job.place, left):
            return False
        summary = store(job, work / job.place, results / job.place)
        say(f"{' ' * 8}{told(summary)}, {summary['total_seconds'] / 60:.1f} minutes")
    return True


def told(summary: dict[str, Any]) -> str:
    """Return the accuracies of a run in words."""
    names = ("test_accuracy", "test_accuracy_tta", "validation_accuracy", "validation_accuracy_tta")
    kept = [(name, summary[name]) for name in names if summary.get(name) is not None]
    return ", ".join(f"{name.replace('_', ' ')} {100 * value:.2f} %" for name, value in kept)


def train(job: Job, folder: Path, seconds: float | None) -> bool:
    """Train to the end, or for so many seconds to a checkpoint; returns whether it is complete.

    Raises UserError if the training fails, and KeyboardInterrupt for a signal to the study, which
    stops the training at a checkpoint, too.
    """
    own = {f"FMNIST_{name}" for name in OWN_VARIABLES}
    # Settings in the environment would rule over the recipe.
    env = {k: v for k, v in os.environ.items() if not k.startswith("FMNIST_") or k in own}
    env["KERAS_BACKEND"] = job.backend
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = ["--run_dir", str(folder), "--resume", "auto"]
    command = [sys.executable, "-m", "fmnist_keras3", "train", *job.words, *place]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("a") as output:
        # A session of its own: Ctrl-C must reach it once, from here; a second one would kill it.
        process = subprocess.Popen(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.kill()
                raise
            if isinstance(reason, KeyboardInterrupt):
                raise
    if code in (130, 143, -signal.SIGTERM):
        return False
    if code:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{job} ended with {code}: {last} (all of it in {log})")
    return True


def store(job: Job, folder: Path, target: Path) -> dict[str, Any]:
    """Keep what a run wrote, with the command that makes it again; returns the summary."""
    summary = json.loads((folder / FILES[0]).read_text())
    summary["command"] = job.command
    data = os.environ.get("FMNIST_DATA_DIR")
    if data and Path(summary["dataset"]["source"]).resolve() == Path(data).resolve():
        summary["dataset"]["source"] = "$FMNIST_DATA_DIR"  # not a path of this machine
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES[1:]:
        write(target / name, (folder / name).read_bytes())
    write_json(target / FILES[0], summary)  # last: it says that the run is stored
    return summary


def again(jobs: Sequence[Job], results: Path, work: Path, say: Callable[[str], None]) -> list[str]:
    """Run stored jobs once more; returns what differs, times apart. Raises UserError for none."""
    stored = [job for job in jobs if (results / job.place / FILES[0]).exists()]
    if not stored:
        raise UserError(f"{results} has no stored run to repeat. Leave --again out.")
    differences = []
    for job in stored:
        check(job, results / job.place)
        folder = work / "again" / job.place
        shutil.rmtree(folder, ignore_errors=True)  # a finished run would only be read once more
        say(f"{job}: {job.command}")
        if not train(job, folder, None):
            raise KeyboardInterrupt
        old, new = (list(values(path / "metrics.jsonl")) for path in (results / job.place, folder))
        pairs = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
        if len(old) != len(new):
            differences.append(f"{job}: {len(old)} records stored, {len(new)} now")
        differences += [f"{job}: {a} stored, {b} now" for a, b in pairs[:1]]
        say(f"{' ' * 8}{len(old)} records, {len(pairs)} differ")
        kept = json.loads((results / job.place / FILES[0]).read_text())
        made = json.loads((folder / FILES[0]).read_text())
        for name, then, now in _elsewhere(kept, made) if pairs else ():
            say(f"{' ' * 8}{name}: {then} then, {now} now; equal bits are promised for equal ones")
    return differences


def _elsewhere(kept: dict[str, Any], made: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield processor and versions that are others in the second summary."""
    for then, now in ((kept["hardware"], made["hardware"]), (kept["versions"], made["versions"])):
        for name in then.keys() & now.keys() - {"cores", "memory_gib", "xla_flags"}:
            if then[name] != now[name]:
                yield name, then[name], now[name]


def values(path: Path) -> Iterator[dict[str, Any]]:
    """Give the records of a metrics.jsonl without times."""
    for line in path.read_text().splitlines():
        yield {k: v for k, v in json.loads(line).items() if k not in TIMES}


def stored(results: Path) -> dict[str | None, list[dict[str, Any]]]:
    """Return the summaries below ``results``, with their records, by part (None: the recipe)."""
    found: dict[str | None, list[dict[str, Any]]] = {}
    for path in sorted(results.glob(f"**/{FILES[0]}")):
        place = path.relative_to(results).parts
        part = place[1].replace("-", " ") if place[0] == "ablation" else None
        lines = (path.parent / FILES[1]).read_text().splitlines()
        summary = json.loads(path.read_text()) | {"records": [json.loads(line) for line in lines]}
        found.setdefault(part, []).append(summary)
    return found
