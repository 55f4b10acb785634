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

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.runtime import BACKENDS

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contestant:
    """Who trains: one line about it, its backends and precisions; ours, or for --peers only."""

    about: str
    backends: tuple[str, ...] = BACKENDS
    ours: bool = False
    peer: bool = False
    precisions: tuple[str, ...] = ("32", "bf16-mixed", "16-mixed")

    @property
    def bare(self) -> bool:
        """Tell whether it has one backend of its own, whichever backends Keras is to run on."""
        return len(self.backends) == 1


CONTESTANTS = {
    "trainer": Contestant("our Trainer, images on the device", ours=True),
    "trainer-stream": Contestant("our Trainer, images through tf.data", ours=True),
    "fit": Contestant("plain Keras layers, Model.fit, tf.data"),
    "engine": Contestant("our compiled loop without the Trainer", ours=True, peer=True),
    "jax": Contestant(
        "hand-written JAX: a jitted step, native lax ops", ("jax",), peer=True, precisions=("32",)
    ),
    "torch": Contestant("bare PyTorch loop", ("torch",), peer=True),
    "lightning": Contestant("PyTorch Lightning, DataLoader", ("torch",), peer=True),
}
PRECISIONS = {"32": "float32", "bf16-mixed": "mixed_bfloat16", "16-mixed": "mixed_float16"}
DEVICES = {
    "auto": {},
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "gpu": {"JAX_PLATFORMS": "cuda"},
}


@dataclass(frozen=True)
class Settings:
    """What is measured; raises UserError for a value outside its range."""

    models: tuple[str, ...] = ("lenet", "cnn")
    backends: tuple[str, ...] = BACKENDS
    contestants: tuple[str, ...] = ("trainer", "trainer-stream", "fit")
    precisions: tuple[str, ...] = ("32",)
    batch_sizes: tuple[int, ...] = (128,)
    device: str = "auto"
    epochs: int = 5  # timed, after one epoch of warm-up
    rounds: int = 3  # each with a seed of its own
    limit_train: int = 6400  # images an epoch; 0 for all
    data: str = "auto"
    timeout: int = 900  # seconds a cell

    def __post_init__(self) -> None:
        numbers = [(name, getattr(self, name)) for name in ("epochs", "rounds", "timeout")]
        for name, value in [*numbers, ("batch_sizes", min(self.batch_sizes))]:
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if 0 != self.limit_train < max(self.batch_sizes):
            raise UserError(
                f"limit_train is {self.limit_train}; it must be at least {max(self.batch_sizes)} "
                "(one batch), or 0 for all images."
            )


@dataclass(frozen=True)
class Cell:
    """One measurement: a contestant trains a model on a backend, in a process of its own."""

    contestant: str
    backend: str
    model: str
    seed: int  # also the number of the round
    precision: str = "32"
    batch_size: int = 128

    def __str__(self) -> str:
        return f"{work(self.model, self.precision, self.batch_size)} {self.backend} " + (
            self.contestant
        )


def work(model: str, precision: str, batch_size: int) -> str:
    """Return a name of the work that contestants share; float32 and batch 128 go without saying."""
    parts = [model, precision * (precision != "32"), f"batch {batch_size}" * (batch_size != 128)]
    return " ".join(filter(None, parts))


def plan(settings: Settings) -> list[Cell]:
    """Return the cells of all rounds; every other round runs backwards, against a steady drift."""
    cells = []
    for seed in range(settings.rounds):
        one = [
            Cell(name, backend, model, seed, precision, size)
            for model in settings.models
            for precision in settings.precisions
            for size in settings.batch_sizes
            for name in settings.contestants
            if precision in CONTESTANTS[name].precisions
            for backend in CONTESTANTS[name].backends
            if backend in settings.backends or CONTESTANTS[name].bare
        ]
        cells += one if seed % 2 == 0 else one[::-1]
    return cells


def environment(contestant: str, backend: str, device: str = "auto") -> dict[str, str]:
    """Return a cell's environment; only our Trainer may set XLA flags, as it does for its users."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **DEVICES[device]}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # everybody compiles anew
    if backend in BACKENDS:
        env["KERAS_BACKEND"] = backend
    if flags := env.get("XLA_FLAGS"):
        ours = "--xla_cpu_experimental_ynn_fusion_type"
        env["XLA_FLAGS"] = " ".join(f for f in flags.split() if not f.startswith(ours))
    return env


def prepare(settings: Settings, folder: Path) -> dict[str, Any]:
    """Let a worker write what all cells share into ``folder``; returns what the data is."""
    spec = {**asdict(settings), "contestant": "prepare", "folder": str(folder)}
    env = environment("prepare", settings.backends[0], settings.device)
    dataset = run_worker(spec, env, settings.timeout)
    if "error" in dataset:
        raise UserError(f"The data cannot be prepared: {dataset['error']}")
    return dataset


def measure(cell: Cell, settings: Settings, folder: Path, **more: Any) -> dict[str, Any]:
    """Run ``cell`` on the data and weights in ``folder``; a failure becomes the key ``error``.

    ``more`` is for the worker.
    """
    spec = {**asdict(settings), **asdict(cell), "folder": str(folder), **more}
    env = environment(cell.contestant, cell.backend, settings.device)
    started = time.perf_counter()
    answer = run_worker(spec, env, settings.timeout)
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
    work: str
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        if CONTESTANTS[self.contestant].bare:
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

    def outside(self, what: str) -> float:
        """Return images/s of "evaluate" or "predict", the median over all rounds; NaN if none."""
        rates = [r["images"] / seconds for r in self.results for seconds in r.get(what, [])]
        return float(np.median(rates)) if rates else np.nan

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
        of = work(cell["model"], cell.get("precision", "32"), cell.get("batch_size", 128))
        key = cell["contestant"], cell["backend"], of
        row = rows.setdefault(key, Row(*key))
        if "error" in cell:
            row.errors.append(cell["error"])
        else:
            row.results.append(cell)
    return list(rows.values())
