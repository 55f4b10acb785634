"""``metrics.csv``: one row an epoch, for spreadsheets and pandas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.files import whole
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.training.logger import Logger


class CSVLogger(Logger):
    """Keeps a row an epoch in ``RUN/metrics.csv``: train and validation side by side.

    Or in ``save_dir/name/metrics.csv``; ``name`` is the run directory's unless given. The file is
    written anew at each record: the columns are not known before the last of them. A resumed run
    begins anew with the records it goes on from. Raises UserError where the file system refuses.

    Example: ``Trainer(logger=CSVLogger("logs", name="garments"))``
    """

    @explained
    def __init__(self, save_dir: str | Path | None = None, name: str | None = None) -> None:
        self.save_dir, self.name = save_dir, name

    def begin(self, run_dir: Path) -> None:
        folder = run_dir
        if self.save_dir is not None:
            folder = Path(self.save_dir) / (self.name or run_dir.name)
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}

    def log(self, record: dict[str, Any]) -> None:
        if merge(self._rows, record):
            self._write()

    def replay(self, records: list[dict[str, Any]]) -> None:
        self._rows = {}
        for record in records:
            self.log(record)

    def _write(self) -> None:
        with whole(self.path) as beside, open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, columns(self._rows))
            writer.writeheader()
            writer.writerows(self._rows.values())


def merge(rows: dict[int, dict[str, Any]], record: dict[str, Any]) -> bool:
    """Add a "train" or "validation" record to its epoch's row; False for one of another kind."""
    if record["event"] not in ("train", "validation"):
        return False
    prefix = "val_" if record["event"] == "validation" else ""
    row = rows.setdefault(record["epoch"], {"epoch": record["epoch"]})
    values = {k: v for k, v in record.items() if k not in ("event", "epoch", "step")}
    row.update({"step": record["step"], **{prefix + k: v for k, v in values.items()}})
    return True


def columns(rows: dict[int, dict[str, Any]]) -> list[str]:
    """Return the columns of all rows, those of the validation last."""
    found = dict.fromkeys(key for row in rows.values() for key in row)
    return sorted(found, key=lambda column: column.startswith("val_"))
