"""How speed grows with devices: one batch that they share, and a batch of the same size for each.

Each cell is a training by `fmnist train` in a process of its own. On a machine without GPUs the CPU
is cut into devices, which tells what sharing costs and nothing about gains: the cores are the same.

The kind "mesh" is one device that is treated as several are, beside the plain programs of one:
chunk by chunk in turn, in one process (``python -m bench.devices MODEL BATCH_SIZE CHUNKS``).
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime

COLUMNS = ("model", "batch", "devices", "batch size", "images/s", "beside one", "exchange")
CHUNK_STEPS, EXAMPLES, MESH_CHUNKS = 32, 8192, 20
EXCHANGES = re.compile(r"all-?reduce|all-?gather|collective|nccl|rendezvous", re.IGNORECASE)


def measure(
    models: Sequence[str], counts: Sequence[int], batch_size: int, epochs: int, rounds: int
) -> list[dict[str, Any]]:
    """Measure each cell in each round, interleaved; one that fails says why."""
    found = []
    with tempfile.TemporaryDirectory(prefix="devices-") as work:
        for number, (_, model, kind, count) in enumerate(
            itertools.product(range(rounds), models, ("mesh", "shared", "each"), counts)
        ):
            if kind != "shared" and (count == 1) != (kind == "mesh"):
                continue  # a batch for each of one is the shared one, and a mesh is of one
            size = batch_size * (count if kind == "each" else 1)
            cell = {"model": model, "kind": kind, "devices": count, "batch_size": size}
            run = Path(work) / str(number)
            found.append({**cell, **(_mesh(cell) if kind == "mesh" else _run(cell, epochs, run))})
    return found


def _mesh(cell: dict[str, Any]) -> dict[str, Any]:
    words = ["-m", "bench.devices", cell["model"], str(cell["batch_size"]), str(MESH_CHUNKS)]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip() or "no message").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def mesh_of_one(name: str, batch_size: int, chunks: int) -> dict[str, Any]:
    """Return images/s of ``chunks`` on a mesh of one device, and of the plain programs beside."""
    import numpy as np

    from fmnist_keras3 import build_model
    from fmnist_keras3.data.augment import parse_augment
    from fmnist_keras3.data.dataset import Split
    from fmnist_keras3.data.plan import epoch_plan
    from fmnist_keras3.engines.chunk import StepPlan
    from fmnist_keras3.engines.jax import JaxEngine
    from fmnist_keras3.engines.mesh import Mesh, choose_devices
    from fmnist_keras3.training.feeds import ResidentFeed

    class Meshed(JaxEngine):
        def find_device(self):
            device = super().find_device()
            self._mesh = Mesh(choose_devices(1))
            return device

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (EXAMPLES, 28, 28, 1), dtype=np.uint8)
    split = Split(x, (np.arange(EXAMPLES) % 10).astype(np.int32))
    augment = parse_augment("flip,crop")
    plan = epoch_plan(
        0, 0, examples=EXAMPLES, batch_size=batch_size, image_shape=x.shape[1:], augment=augment
    )
    steps = min(CHUNK_STEPS, EXAMPLES // batch_size)
    rates = StepPlan(np.full(steps, 1e-3, np.float32), np.arange(steps, dtype=np.int32))
    engines = [kind(build_model(name, seed=0), chunk_steps=steps) for kind in (JaxEngine, Meshed)]
    feeds = [ResidentFeed(split, engine, augment, training=True) for engine in engines]
    speeds: tuple[list[float], list[float]] = ([], [])
    for turn in range(chunks + 1):  # the first compiles
        for i in (0, 1) if turn % 2 else (1, 0):
            feeds[i].open(plan)
            began = time.perf_counter()
            engines[i].train(feeds[i].take(steps), rates)
            if turn:
                speeds[i].append(steps * batch_size / (time.perf_counter() - began))
    device = engines[0].device.name
    return {"images_per_second": speeds[1], "plain": speeds[0], "device": device}


def _run(cell: dict[str, Any], epochs: int, run: Path) -> dict[str, Any]:
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    if not runtime.has_gpu_driver():
        flag = f"--xla_force_host_platform_device_count={cell['devices']}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    settings = {
        "model": cell["model"],
        "devices": cell["devices"],
        "batch_size": cell["batch_size"],
        "epochs": epochs + 1,  # the first warms up, and is traced
        "validation": 0,
        "limit_train_batches": max(20, 12_800 // cell["batch_size"]),
        "limit_test_batches": 0,
        "profile": "trace",
        "run_dir": run,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_keras3", "train", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": (done.stderr.strip() or "no message").splitlines()[-1]}
    summary = json.loads((run / "summary.json").read_text())
    return {
        "images_per_second": summary["epoch_images_per_second"][1:],
        "exchange": exchange(run / "profile"),
        "dataset": summary["dataset"]["name"],
        "device": summary["device"],
    }


def exchange(folder: Path) -> float | None:
    """Return the share of the exchange between devices, and of waiting there, in a trace.

    Of all that the backend's operations took; None where there is no trace.
    """
    files = sorted(folder.rglob("perfetto_trace.json.gz"))
    if not files:
        return None
    with gzip.open(files[-1], "rt") as file:
        events = json.load(file)["traceEvents"]
    # Operations of programs; what encloses them, and Python, has no such argument.
    mine = [e for e in events if e.get("dur") and "hlo_op" in e.get("args", {})]
    total = sum(e["dur"] for e in mine)
    between = sum(e["dur"] for e in mine if EXCHANGES.search(e["name"]))
    return between / total if total else None


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, in the order of `COLUMNS`; failures say so."""
    rows, keys = [], ("model", "kind", "devices", "batch_size")
    pooled: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in found:
        pooled.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    speeds = {
        key: statistics.median([s for c in cells for s in c.get("images_per_second", ())] or [0])
        for key, cells in pooled.items()
    }
    for key, cells in pooled.items():
        model, kind, count, size = key
        errors = [c["error"] for c in cells if "error" in c]
        row = [model, kind, str(count), str(size)]
        if not speeds[key]:
            rows.append([*row, f"failed: {errors[0]}", "-", "-"])
            continue
        ones = (v for (m, k, n, _), v in speeds.items() if (m, k, n) == (model, "shared", 1))
        alone = next(ones, 0)
        if kind == "mesh":
            alone = statistics.median(s for c in cells for s in c.get("plain", ()))
        shares = [c["exchange"] for c in cells if c.get("exchange") is not None]
        rows.append(
            [
                *row,
                f"{speeds[key]:,.0f}",
                f"{speeds[key] / alone:.2f}" if alone else "-",
                f"{100 * statistics.median(shares):.0f} %" if shares and count > 1 else "-",
            ]
        )
    return rows


if __name__ == "__main__":
    runtime.prepare()
    print(json.dumps(mesh_of_one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
