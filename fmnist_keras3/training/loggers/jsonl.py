"""The log that every run has: ``metrics.jsonl``, one object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fmnist_keras3.training.files import whole
from fmnist_keras3.training.rundir import read_metrics


class JSONLLogger:
    """Appends records to ``metrics.jsonl``; values that are not finite are written as null."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def log(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(clean) + "\n")

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop what was logged after ``step``, for a resume there; returns what is left.

        The test's record goes too: it was of a training that had ended.
        """
        kept = [
            record
            for record in read_metrics(self.path)
            if record.get("step", 0) <= step and record.get("event") != "test"
        ]
        with whole(self.path) as beside:
            beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        return kept
