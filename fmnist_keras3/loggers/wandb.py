"""Weights & Biases: a run of a project."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.loggers.ledger import Ledger
from fmnist_keras3.training.logger import Logger, require


class WandbLogger(Logger):
    """Logs metrics and settings to a run of the W&B project ``project``.

    ``name`` is the run directory's unless given, ``id`` that of a run to go on with. ``offline``
    keeps everything in ``save_dir/wandb`` (default: in the run directory), for ``wandb sync``;
    further arguments are those of `wandb.init`. The x axis is ``trainer/global_step``. W&B cannot
    go back: a resumed run goes on in the same W&B run (``RUN/wandb.json`` keeps its id) behind its
    last point. Raises UserError without the package ``wandb``.

    Example: ``Trainer(logger=WandbLogger(project="garments", offline=True))``
    """

    @explained
    def __init__(
        self,
        name: str | None = None,
        save_dir: str | Path | None = None,
        offline: bool = False,
        id: str | None = None,
        project: str = "fmnist-keras3",
        **kwargs: Any,
    ) -> None:
        require("wandb")
        self.name, self.save_dir, self.offline = name, save_dir, offline
        self.id, self.project, self.kwargs = id, project, kwargs

    def begin(self, run_dir: Path) -> None:
        self._ledger = Ledger(run_dir / "wandb.json")
        if self.save_dir is not None:
            Path(self.save_dir).mkdir(parents=True, exist_ok=True)
        options = {
            "project": self.project,
            "name": self.name or run_dir.name,
            "dir": str(self.save_dir or run_dir),
            "id": self.id or self._ledger.id,
            "resume": "allow",
            "mode": "offline" if self.offline else None,
        }
        self.experiment = import_module("wandb").init(**options | self.kwargs)
        self._ledger.open(self.experiment.id)
        self.experiment.define_metric("trainer/global_step")
        self.experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.experiment.config.update(params, allow_val_change=True)

    def replay(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        if values := self._ledger.unsent(record):
            self.experiment.log({**values, "trainer/global_step": record["step"]})

    def finalize(self, status: str) -> None:
        self.experiment.finish(exit_code=int(status not in ("completed", "stopped")))
