"""TensorBoard: event files, ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.training.logger import Logger, require, scalars


class TensorBoardLogger(Logger):
    """Writes scalars and hyperparameters to ``RUN/tensorboard``, or ``save_dir/name``.

    ``name`` is the run directory's unless given. On a resume TensorBoard is told to drop the points
    behind the checkpoint, which come again; those before it keep their times. TensorFlow is not
    imported. Raises UserError without the package ``tensorboard``.

    Example: ``Trainer(logger=TensorBoardLogger(save_dir="tb"))``
    """

    @explained
    def __init__(self, save_dir: str | Path | None = None, name: str | None = None) -> None:
        require("tensorboard")
        self.save_dir, self.name = save_dir, name

    def begin(self, run_dir: Path) -> None:
        folder = run_dir / "tensorboard"
        if self.save_dir is not None:
            folder = Path(self.save_dir) / (self.name or run_dir.name)
        folder.mkdir(parents=True, exist_ok=True)
        # A file of its own, as a kill may have cut the last one short; read in the order of names.
        number = len(list(folder.glob("*.tfevents.*")))
        self._empty = number == 0
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{number:04d}"
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        # Not tensorboard's EventFileWriter: it imports TensorFlow where that is installed.
        records = import_module("tensorboard.summary.writer.record_writer")
        self._writer = records.RecordWriter(open(path, "xb"))  # noqa: SIM115
        self._write(file_version="brain.Event:2")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        hparams = import_module("tensorboard.plugins.hparams.summary_v2")
        kinds = (bool, int, float, str)
        shown = {k: v if isinstance(v, kinds) else str(v) for k, v in params.items()}
        self._write(summary=hparams.hparams_pb(shown))

    def replay(self, records: list[dict[str, Any]]) -> None:
        # All points from this step on are dropped, also those at it that are to stay.
        since = 0 if self._empty else max((record["step"] for record in records), default=0)
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step=since, session_log=start)
        self._empty = False
        for record in records:
            if record["step"] >= since:
                self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        # As simple values: of tensors, TensorBoard drops none behind a restart.
        value, shown = self._summaries.Summary.Value, scalars(record)
        values = [value(tag=name, simple_value=number) for name, number in shown.items()]
        self._write(step=record["step"], summary=self._summaries.Summary(value=values))

    def finalize(self, status: str) -> None:
        self._writer.close()

    def _write(self, **event: Any) -> None:
        made = self._events.Event(wall_time=time.time(), **event)
        self._writer.write(made.SerializeToString())
        self._writer.flush()
