"""What a fit gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.runs.history import History, shown, summary_html


@dataclass(frozen=True)
class FitResult:
    """What `Trainer.fit` returns.

    ``status``: "completed", "stopped" (by a callback) or "interrupted" (by a signal, named in
    ``reason``). ``run_dir``: the run directory, None where none was kept. ``history``: the records
    of metrics.jsonl, see `History`. ``last_checkpoint`` and ``best_checkpoint`` are folders; there
    is no best without validation. ``summary``: the content of summary.json. ``profile``: see
    `Profiler.results`, None without ``profiler="simple"``.

    Example: ``trainer.fit(model, data).summary["validation_accuracy"]``
    """

    status: str
    reason: str | None
    run_dir: Path | None
    history: History
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    summary: dict[str, Any]
    profile: list[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        keys = ("epochs", "steps", "validation_loss", "validation_accuracy", "best_epoch")
        values = [f"{k}={shown(v)}" for k in keys if (v := self.summary.get(k)) is not None]
        reason = f" ({self.reason})" * bool(self.reason)
        where = [] if self.run_dir is None else [f"run_dir={str(self.run_dir)!r}"]
        return f"FitResult({', '.join([self.status + reason, *values, *where])})"

    def report(self) -> Path:
        """Write report.html into the run, and return its path; `Trainer.test` comes before it.

        Raises UserError where no run was kept.
        """
        if self.run_dir is None:
            raise UserError("There is no run to report on: fast_dev_run and barebones keep none.")
        return leaf("report")(self.run_dir)

    def _repr_html_(self) -> str:
        return summary_html(self.summary, self.run_dir)
