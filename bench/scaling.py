"""How the cost of our Trainer grows: time with twice the images, memory with more epochs."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import cells
from bench.cells import Cell, Settings

IMAGES = (12_800, 25_600)
EARLY = 5  # the epoch by which memory should have reached its peak
COLUMNS = ("model", "backend", "figure", "less work", "more work", "ratio", "expected")


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Measure each model and backend with each number of images, interleaved over rounds."""
    found = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as work:
        for images in IMAGES:
            folder = Path(work) / str(images)
            folder.mkdir()
            cells.prepare(dataclasses.replace(settings, limit_train=images), folder)
        for seed, model, backend, images in itertools.product(
            range(settings.rounds), settings.models, settings.backends, IMAGES
        ):
            each = dataclasses.replace(settings, limit_train=images)
            cell = Cell("trainer", backend, model, seed)
            found.append({"limit": images, **cells.measure(cell, each, Path(work) / str(images))})
    return found


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, in the order of `COLUMNS`; failures say so."""
    rows = []
    for model, backend in dict.fromkeys((c["model"], c["backend"]) for c in found):
        mine = [c for c in found if (c["model"], c["backend"]) == (model, backend)]
        for cell in mine:
            if "error" in cell:
                rows.append([model, backend, f"failed: {cell['error']}", *["-"] * 4])
        good = [c for c in mine if "error" not in c]
        if {c["limit"] for c in good} != set(IMAGES):
            continue
        less, more = (
            np.median([e["seconds"] for c in good if c["limit"] == n for e in c["epochs"][1:]])
            for n in IMAGES
        )
        last = len(good[0]["epochs"])
        early, late = (
            np.median([c["epochs"][epoch - 1]["peak_memory_mb"] for c in good])
            for epoch in (min(EARLY, last), last)
        )
        rows += [
            _row(model, backend, f"seconds an epoch, {IMAGES[0]:,} and {IMAGES[1]:,} images",
                 less, more, "2"),
            _row(model, backend, f"peak MB after {min(EARLY, last)} and {last} epochs",
                 early, late, "1"),
        ]  # fmt: skip
    return rows


def _row(model: str, backend: str, name: str, a: float, b: float, expected: str) -> list[str]:
    return [model, backend, name, f"{a:,.4g}", f"{b:,.4g}", f"{b / a:.2f}", expected]
