"""Cells: who trains what on which backend, in which order, and the process that measures one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.errors import UserError
from fmnist_keras3.runtime import BACKENDS

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contestant:
    """Who trains: one line about it, the backends it has, whether it is ours or needs --peers."""

    about: str
    backends: tuple[str, ...] = BACKENDS
    ours: bool = False
    peer: bool = False


CONTESTANTS = {
    "trainer": Contestant("our Trainer, images on the device", ours=True),
    "trainer-stream": Contestant("our Trainer, images through tf.data", ours=True),
    "fit": Contestant("plain Keras layers, Model.fit, tf.data"),
    "jax": Contestant("hand-written JAX: a jitted step, native lax ops", ("jax",), peer=True),
    "torch": Contestant("bare PyTorch loop", ("torch",), peer=True),
    "lightning": Contestant("PyTorch Lightning, DataLoader", ("torch",), peer=True),
}


@dataclass(frozen=True)
class Settings:
    """What is measured; raises UserError for a value outside its range."""

    models: tuple[str, ...] = ("lenet", "cnn")
    backends: tuple[str, ...] = BACKENDS
    contestants: tuple[str, ...] = ("trainer", "trainer-stream", "fit")
    epochs: int = 3  # timed, after one epoch of warm-up
    rounds: int = 2  # each with a seed of its own
    limit_train: int = 6400  # images an epoch; 0 for all
    batch_size: int = 128
    data: str = "auto"
    timeout: int = 900  # seconds a cell

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("rounds", 1), ("timeout", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if 0 != self.limit_train < self.batch_size:
            raise UserError(
                f"limit_train is {self.limit_train}; it must be at least {self.batch_size} (one "
                "batch), or 0 for all images."
            )


@dataclass(frozen=True)
class Cell:
    """One measurement: a contestant trains a model on a backend, in a process of its own."""

    contestant: str
    backend: str
    model: str
    seed: int  # also the number of the round

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.contestant}"


def plan(settings: Settings) -> list[Cell]:
    """Return the cells of all rounds; every other round runs backwards, against a steady drift."""
    cells = []
    for seed in range(settings.rounds):
        one = [
            Cell(name, backend, model, seed)
            for model in settings.models
            for name in settings.contestants
            for backend in CONTESTANTS[name].backends
            if backend in settings.backends or CONTESTANTS[name].peer
        ]
        cells += one if seed % 2 == 0 else one[::-1]
    return cells


def environment(contestant: str, backend: str) -> dict[str, str]:
    """Return a cell's environment; only our Trainer may set XLA flags, as it does for its users."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # everybody compiles anew
    if backend in BACKENDS:
        env["KERAS_BACKEND"] = backend
    if flags := env.get("XLA_FLAGS"):
        ours = "--xla_cpu_experimental_ynn_fusion_type"
        env["XLA_FLAGS"] = " ".join(f for f in flags.split() if not f.startswith(ours))
    return env


def measure(cell: Cell, settings: Settings, folder: Path) -> dict[str, Any]:
    """Run ``cell`` on the data and weights in ``folder``; a failure becomes the key ``error``."""
    spec = {**asdict(settings), **asdict(cell), "folder": str(folder)}
    started = time.perf_counter()
    answer = run_worker(spec, environment(cell.contestant, cell.backend), settings.timeout)
    return {**asdict(cell), "wall_seconds": round(time.perf_counter() - started, 2), **answer}


def run_worker(spec: dict[str, Any], env: dict[str, str], timeout: float) -> dict[str, Any]:
    """Run one worker process for at most ``timeout`` seconds and return its answer."""
    command = [sys.executable, "-m", "bench.worker", json.dumps(spec)]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout:g} seconds (--timeout)"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"error": f"the process ended with {done.returncode}: {said[-1]}"}


@dataclass
class Row:
    """A cell's measurements, pooled over the rounds."""

    contestant: str
    backend: str
    model: str
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        if CONTESTANTS[self.contestant].peer:
            return f"bare {self.backend}" if self.contestant == self.backend else self.contestant
        return f"{self.contestant} ({self.backend})"

    @property
    def ours(self) -> bool:
        return CONTESTANTS[self.contestant].ours

    @property
    def rates(self) -> list[np.ndarray]:
        """Images/s of each timed epoch, one array a round."""
        return [
            result["images"] / np.array([epoch["seconds"] for epoch in result["epochs"][1:]])
            for result in self.results
        ]

    def rate(self, percentile: float = 50) -> float:
        """Return a percentile of images/s over the epochs of all rounds; NaN if none succeeded."""
        return float(np.percentile(np.concatenate(self.rates), percentile)) if self else np.nan

    def median(self, key: str) -> float:
        """Return the median of a result's key over the rounds; NaN where it is missing."""
        values = [r[key] for r in self.results if r.get(key) is not None]
        return float(np.median(values)) if values else np.nan

    def final(self, key: str) -> float:
        """Return the mean over the rounds of the last epoch's "loss" or "accuracy"."""
        return float(np.mean([r["epochs"][-1][key] for r in self.results])) if self else np.nan

    def __bool__(self) -> bool:
        return bool(self.results)


def pool(cells: list[dict[str, Any]]) -> list[Row]:
    """Gather measured cells into rows, in the order of the first round."""
    rows: dict[tuple[str, str, str], Row] = {}
    for cell in cells:
        key = cell["contestant"], cell["backend"], cell["model"]
        row = rows.setdefault(key, Row(*key))
        if "error" in cell:
            row.errors.append(cell["error"])
        else:
            row.results.append(cell)
    return list(rows.values())
