"""The run directory: the files a run leaves, and reading them back."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime
from fmnist_keras3.errors import UserError
from fmnist_keras3.training.files import whole, write_json

CONFIG, METRICS, SUMMARY, MODEL = "config.yaml", "metrics.jsonl", "summary.json", "model.keras"
CHECKPOINTS, PLOTS = "checkpoints", "plots"


def new_run_path(root: Path, model: str, backend: str, synthetic: bool = False) -> Path:
    """Return a folder name below ``root`` that nobody has: time, model, backend."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{model}-{backend}" + ("-synthetic" if synthetic else "")
    path, n = root / name, 1
    while path.exists():
        n += 1
        path = root / f"{name}-{n}"
    return path


def check_new(path: Path) -> None:
    """Raise UserError if ``path`` cannot become a run directory: a run is in it, or unwritable."""
    if path.exists() and not path.is_dir():
        raise UserError(f"The run directory {path} is a file. Give another --run_dir.")
    if any((path / name).exists() for name in (CONFIG, METRICS, SUMMARY, CHECKPOINTS)):
        raise UserError(
            f"{path} already holds a run, and runs are never overwritten. Type --resume last "
            f"--run_dir {path} to continue it, or give another --run_dir."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The run directory {path} cannot be written ({error.strerror}). "
            "Give another --run_dir."
        ) from error


class RunDirectory:
    """Writes one run's files; ``summary`` is rewritten atomically at each `update`."""

    def __init__(self, path: Path, config: dict[str, Any], *, resumed: bool = False) -> None:
        self.path, self.config = path, config
        self.checkpoints, self.plots = path / CHECKPOINTS, path / PLOTS
        if not resumed:
            check_new(path)
        self.summary: dict[str, Any] = {}
        if resumed:
            self.summary = read_json(path / SUMMARY) or {}
        self.write_config()

    def write_config(self) -> None:
        """Write ``config.yaml``, with which the run can be repeated."""
        import yaml

        with whole(self.path / CONFIG) as beside:
            beside.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def update(self, **values: Any) -> None:
        """Set keys of the summary and write it."""
        self.summary.update(values)
        write_json(self.path / SUMMARY, self.summary)

    def write_model(self, model: Any) -> Path:
        """Write ``model.keras``, which plain `keras.saving.load_model` reads."""
        with whole(self.path / MODEL) as beside, runtime.keras_without_tensorflow():
            model.save(beside)
        return self.path / MODEL


def command_line() -> str:
    """Return the command of this process as it was typed, with the backend it ran on."""
    program = Path(sys.argv[0])
    module = program.name == "__main__.py"
    words = [*(["python", "-m", program.parent.name] if module else [program.name]), *sys.argv[1:]]
    backend = os.environ.get("KERAS_BACKEND", "")
    return f"KERAS_BACKEND={backend} " * bool(backend) + shlex.join(words)


def environment() -> dict[str, Any]:
    """Return what a summary says of the machine: versions, flags, hardware, command."""
    return {
        "command": command_line(),
        "versions": runtime.versions(),
        "hardware": {**runtime.hardware(), "xla_flags": os.environ.get("XLA_FLAGS", "")},
    }


def read_json(path: Path) -> Any:
    """Return the JSON value in ``path``, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``; a last line cut short by a crash is left out."""
    records = []
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return records
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def find_run(path: Path) -> Path:
    """Return the run directory that ``path`` is or lies in; raises UserError without one."""
    for folder in (path, *path.parents[:2]):
        if (folder / CONFIG).exists() or (folder / CHECKPOINTS).is_dir():
            return folder
    raise UserError(
        f"{path} is no run directory (there is no {CONFIG} in it). "
        "Give a folder that `fmnist train` wrote, such as runs/20261122-231500-baseline-jax."
    )


def newest_run(root: Path) -> Path:
    """Return the run below ``root`` that was started last; raises UserError where there is none."""
    runs = sorted(p.parent for p in root.glob(f"*/{CONFIG}"))
    if not runs:
        raise UserError(f"There is no run in {root} to resume. Give --run_dir DIR.")
    return max(runs, key=lambda run: (run / CONFIG).stat().st_mtime)
