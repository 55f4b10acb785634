"""`fmnist doctor`: what is installed, and whether it computes rightly and fast."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import Any

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import EXIT_USER, UserError

PROBE_SECONDS = 1.0


def report() -> int:
    """Print versions, hardware and a probe of each backend; returns 2 if the chosen one fails."""
    from rich.table import Table

    console = screen.console()
    hardware, table = runtime.hardware(), Table(title="versions", show_header=False)
    facts = runtime.versions() | {
        "processor": f"{hardware['processor']}, {hardware['cores']} cores",
        "memory": f"{hardware['memory_gib']} GiB",
        "NVIDIA driver": "found" if runtime.has_gpu_driver() else "none",
    }
    for fact in facts.items():
        table.add_row(*fact)
    console.print(table)

    try:
        chosen = runtime.choose_backend()
    except UserError as error:
        console.print(str(error), style="bold red", soft_wrap=True)
        chosen = None
    columns = ("backend", "device", "lenet, one second", "compiled = eager", "flags")
    table = Table(*columns, title="backends")
    sound = True
    for backend in runtime.BACKENDS:
        mark = f"{backend} *" if backend == chosen else backend
        if importlib.util.find_spec(backend) is None:
            table.add_row(mark, "not installed", "", "", f"pip install {backend}")
            continue
        found = _probe_in_process(backend)
        sound = sound and (found.get("right", False) or backend != chosen)
        if "error" in found:
            table.add_row(mark, screen.styled(("failed", "red")), "", "", found["error"])
            continue
        right = ("yes", "green") if found["right"] else ("NO: results are wrong", "bold red")
        speed = f"{found['images_per_second']:,.0f} images/s"
        table.add_row(mark, found["device"], speed, screen.styled(right), found["flags"])
    console.print(table)
    if chosen:
        console.print(f"* the backend that `fmnist train` takes here: {chosen}")
    return 0 if chosen and sound else EXIT_USER


def _probe_in_process(backend: str) -> dict[str, Any]:
    # A process each: a backend cannot be changed, and a broken one may end its process.
    code = f"from {__name__} import probe; probe()"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command, said = [sys.executable, "-c", code], ""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        said = done.stderr
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        *_, last = ["no answer within 180 seconds", *said.strip().splitlines()]
        return {"error": last}


def probe() -> None:
    """Train `lenet` for a second on this process's backend and print what was found as JSON."""
    import numpy as np

    runtime.prepare()
    from fmnist_keras3.data.dataset import Split
    from fmnist_keras3.data.plan import epoch_plan
    from fmnist_keras3.engines import make_engine
    from fmnist_keras3.engines.chunk import StepPlan
    from fmnist_keras3.models import build_model
    from fmnist_keras3.training.feeds import ResidentFeed

    steps, batch = 16, 128
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * batch, 28, 28, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    engine = make_engine(build_model("lenet"), chunk_steps=steps)
    feed = ResidentFeed(Split(images, labels), engine)
    plan = epoch_plan(0, 0, examples=len(images), batch_size=batch)
    step_plan = StepPlan(np.full(steps, 1e-3, np.float32))

    def chunk() -> None:
        feed.open(plan)
        engine.train(feed.take(steps), step_plan)

    chunk()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < PROBE_SECONDS:
        chunk()
        done += len(images)
    found = {
        "device": engine.device.name,
        "images_per_second": done / (time.perf_counter() - started),
        "right": compiled_equals_eager(engine),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }
    print(json.dumps(found))


def compiled_equals_eager(engine: Any) -> bool:
    """Tell whether a compiled reduction over 40,000 products is what eager arithmetic gives.

    jaxlib 0.10.2 fails this on CPUs without the flag that `runtime.prepare` sets
    (jax-ml/jax#39103).
    """
    import numpy as np
    from keras import ops

    n = 40_000
    a, b = np.full((n, 1, 1), 128, np.float32), np.full((n, 1), 256, np.float32)

    def total(a, b):
        return ops.sum(ops.sum(ops.squeeze(a, 1) * b, axis=1))

    a, b = engine.place((a, b))
    return float(engine.jit(total)(a, b)) == float(total(a, b)) == n * 128 * 256
