"""MLflow: a run of an experiment in a tracking store."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from fmnist_keras3.loggers.ledger import Ledger
from fmnist_keras3.training.logger import Logger, require

_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}


class MLFlowLogger(Logger):
    """Logs metrics and parameters to an MLflow run of the experiment ``experiment_name``.

    ``run_name`` is the run directory's unless given. ``tracking_uri`` None is MLflow's own default:
    MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working folder, which ``mlflow ui`` shows.
    ``run_id`` is of a run to go on with. MLflow cannot go back: a resumed run goes on in the same
    MLflow run (``RUN/mlflow.json`` keeps its id) behind its last point, and parameters keep their
    first values. Raises UserError without the package ``mlflow``.

    Example: ``Trainer(logger=MLFlowLogger("garments", tracking_uri="sqlite:///mlflow.db"))``
    """

    def __init__(
        self,
        experiment_name: str = "fmnist-keras3",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        run_id: str | None = None,
    ) -> None:
        require("mlflow")
        self.experiment_name, self.run_name = experiment_name, run_name
        self.tracking_uri, self.run_id = tracking_uri, run_id

    def begin(self, run_dir: Path) -> None:
        mlflow = import_module("mlflow")
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        self._ledger = Ledger(run_dir / "mlflow.json")
        run_id = self.run_id or self._ledger.id
        if run_id is None:
            experiment = self._client.get_experiment_by_name(self.experiment_name)
            if experiment is None:
                experiment_id = self._client.create_experiment(self.experiment_name)
            else:
                experiment_id = experiment.experiment_id
            run = self._client.create_run(experiment_id, run_name=self.run_name or run_dir.name)
            run_id = run.info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._ledger.open(run_id)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        there = self._client.get_run(self._ledger.id).data.params
        new = [self._entities.Param(k, str(v)) for k, v in params.items() if k not in there]
        self._client.log_batch(self._ledger.id, params=new)

    def replay(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(name, value, now, record["step"])
            for name, value in self._ledger.unsent(record).items()
        ]
        if metrics:
            self._client.log_batch(self._ledger.id, metrics=metrics)

    def finalize(self, status: str) -> None:
        self._client.set_terminated(self._ledger.id, _STATUS.get(status, "FAILED"))
