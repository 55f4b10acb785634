"""The curves in the records of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

Records = Sequence[Mapping[str, Any]]
Points = dict[int, float]  # by epoch
KEYS = ("accuracy", "loss")
# By label: whose records' values, and what is put before their names.
CURVES = {
    "train": ("train", ""),
    "validation": ("validation", ""),
    "validation, averaged weights": ("validation", "averaged_"),
    "test": ("test", ""),
}


def number(value: Any) -> float:
    """Return a finite float, or NaN, which lines leave out, for anything else."""
    finite = isinstance(value, Real) and abs(float(value)) < math.inf
    return float(value) if finite else math.nan


def series(records: Records, event: str, key: str) -> Points:
    """Map epochs to ``key``, the last of each epoch; empty where no value is finite."""
    values = {
        int(record["epoch"]): number(record.get(key))
        for record in records
        if record.get("event") == event and number(record.get("epoch")) >= 0
    }
    return dict(sorted(values.items())) if any(map(math.isfinite, values.values())) else {}


def panels(sources: Mapping[str, tuple[Records, str, str]]) -> dict[str, dict[str, Points]]:
    """Return the points by quantity and label, without those that have none.

    ``sources``: by label, the records, their event and what is put before the quantity's name.
    """
    made = {}
    for key in KEYS:
        found = {at: series(run, event, p + key) for at, (run, event, p) in sources.items()}
        if lines := {label: points for label, points in found.items() if points}:
            made[key] = lines
    return made
