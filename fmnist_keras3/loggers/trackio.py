"""Trackio: a run of a project, in a local database or a Hugging Face Space."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from fmnist_keras3.loggers.ledger import Ledger
from fmnist_keras3.training.logger import Logger, require


class TrackioLogger(Logger):
    """Logs metrics and settings to a run of the Trackio project ``project``.

    ``name`` is the run directory's unless given. They lie in Trackio's own folder (TRACKIO_DIR),
    which ``trackio show`` shows; further arguments are those of `trackio.init`, such as
    ``space_id``. Trackio cannot go back: a resumed run goes on in the run of the same name
    (``RUN/trackio.json`` keeps it) behind its last point. Trackio writes twice a second; what a
    SIGKILL cuts off is missing there. Raises UserError without the package ``trackio``.

    Example: ``Trainer(logger=TrackioLogger(project="garments"))``
    """

    def __init__(
        self, name: str | None = None, project: str = "fmnist-keras3", **kwargs: Any
    ) -> None:
        require("trackio")
        self.name, self.project, self.kwargs = name, project, kwargs

    def begin(self, run_dir: Path) -> None:
        self._ledger = Ledger(run_dir / "trackio.json")
        options = {
            "project": self.project,
            "name": self._ledger.id or self.name or run_dir.name,
            "resume": "never" if self._ledger.id is None else "allow",
        }
        self.experiment = import_module("trackio").init(**options | self.kwargs)
        self._ledger.open(self.experiment.name)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.experiment.config.update(params)

    def replay(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        if values := self._ledger.unsent(record):
            self.experiment.log(values, step=record["step"])

    def finalize(self, status: str) -> None:
        self.experiment.finish()
