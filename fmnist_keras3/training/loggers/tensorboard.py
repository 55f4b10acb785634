"""TensorBoard: event files, ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fmnist_keras3.training.loggers.base import Logger, require, scalars


class TensorBoardLogger(Logger):
    """Writes scalars and hyperparameters to ``RUN/tensorboard``, or ``save_dir/name``.

    ``name`` is the run directory's unless given. On a resume TensorBoard is told to drop the points
    behind the checkpoint, which come again; those before it keep their times. TensorFlow is not
    imported. Raises UserError without the package ``tensorboard``.

    Example: ``Trainer(logger=TensorBoardLogger(save_dir="tb"))``
    """

    def __init__(self, save_dir: str | Path | None = None, name: str | None = None) -> None:
        require("tensorboard")
        self.save_dir, self.name = save_dir, name

    def begin(self, run_dir: Path) -> None:
        # tensorboard's own EventFileWriter imports TensorFlow where it is installed.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run_dir / "tensorboard"
        if self.save_dir is not None:
            folder = Path(self.save_dir) / (self.name or run_dir.name)
        folder.mkdir(parents=True, exist_ok=True)
        # A file of its own, as a kill may have cut the last one short; read in the order of names.
        number = len(list(folder.glob("*.tfevents.*")))
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{number:04d}"
        self._event, self._writer = Event, RecordWriter(open(path, "xb"))  # noqa: SIM115
        self._write(file_version="brain.Event:2")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        kinds = (bool, int, float, str)
        shown = {k: v if isinstance(v, kinds) else str(v) for k, v in params.items()}
        self._write(summary=hparams_pb(shown))

    def replay(self, records: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        # All points from this step on are dropped; at it there may be some that are to stay.
        last = max((record["step"] for record in records), default=0)
        self._write(step=last, session_log=SessionLog(status=SessionLog.START))
        for record in records:
            if record["step"] == last:
                self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # As simple values: of tensors, TensorBoard drops none behind a restart.
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars(record).items()]
        self._write(step=record["step"], summary=Summary(value=values))

    def finalize(self, status: str) -> None:
        self._writer.close()

    def _write(self, **event: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()
