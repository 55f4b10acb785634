"""What a service has been sent, for those that cannot go back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.files import write_json
from fmnist_keras3.training.logger import scalars


class Ledger:
    """Keeps ``id``, under which a service knows the run, and the last step sent of each scalar.

    It lies in the run directory, so that a resumed run goes on in the same place of the service
    and sends no point twice. A file that is damaged counts as none: the service begins another run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = json.loads(path.read_text())
            self.id, self._steps = str(kept["id"]), {k: int(v) for k, v in kept["steps"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.id, self._steps = None, {}

    def open(self, id: str) -> None:
        """Keep the run's ``id``; with another one than before, nothing has been sent."""
        if id != self.id:
            self.id, self._steps = id, {}
        self._write()

    def unsent(self, record: dict[str, Any]) -> dict[str, float]:
        """Return the scalars of a record that were not sent at its step or later, and count them.

        They are counted before they are sent: what a kill in between loses is one record, while
        one that is there twice could not be removed.
        """
        step = record["step"]
        values = {k: v for k, v in scalars(record).items() if self._steps.get(k, -1) < step}
        if values:
            self._steps |= dict.fromkeys(values, step)
            self._write()
        return values

    def _write(self) -> None:
        write_json(self._path, {"id": self.id, "steps": self._steps})
