"""``metrics.csv``: one row an epoch, for spreadsheets and pandas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from fmnist_keras3.files import whole
from fmnist_keras3.training.loggers.base import Logger


class CSVLogger(Logger):
    """Keeps a row an epoch in ``RUN/metrics.csv``: train and validation side by side.

    The file is written anew at each record: the columns are not known before the last of them. A
    resumed run begins anew with the records it goes on from.

    Example: ``Trainer(logger=CSVLogger())``
    """

    def begin(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] not in ("train", "validation"):
            return
        prefix = "val_" if record["event"] == "validation" else ""
        row = self._rows.setdefault(record["epoch"], {"epoch": record["epoch"]})
        values = {k: v for k, v in record.items() if k not in ("event", "epoch", "step")}
        row.update({"step": record["step"], **{prefix + k: v for k, v in values.items()}})
        self._write()

    def replay(self, records: list[dict[str, Any]]) -> None:
        self._rows = {}
        for record in records:
            self.log(record)

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self._rows.values() for key in row))
        columns.sort(key=lambda column: column.startswith("val_"))
        with whole(self.path) as beside, open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows.values())
