"""``metrics.csv``: one row an epoch, for spreadsheets and pandas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.files import atomic
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.runs.history import EPOCH_EVENTS, History
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
        self._history = History()

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] in EPOCH_EVENTS:
            self._history.append(record)
            self._write()

    def replay(self, records: list[dict[str, Any]]) -> None:
        self._history = History(record for record in records if record["event"] in EPOCH_EVENTS)
        self._write()

    def _write(self) -> None:
        if rows := self._history.rows():
            with atomic(self.path) as beside, open(beside, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
