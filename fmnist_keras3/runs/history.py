"""The records of a run, with what one does with them: a table, curves, a column."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.runs.jsonl import parsed
from fmnist_keras3.runs.rundir import METRICS

EPOCH_EVENTS = {"train": "", "validation": "val_"}  # with the prefix of their columns
SHOWN_ROWS = 20  # of epochs, in a notebook's cell


class History(list[dict[str, Any]]):
    """The records of metrics.jsonl, a list of dicts with the keys event, epoch, step and values.

    ``records`` are such dicts; ``title`` and ``synthetic`` (trained on generated garments) go onto
    the plot. By a name, as in Keras' history, it gives a `column`.

    Example: ``min(trainer.fit(model, data).history["val_loss"])``
    """

    def __init__(
        self, records: Iterable[dict[str, Any]] = (), title: str = "", synthetic: bool = False
    ) -> None:
        super().__init__(records)
        self.title, self.synthetic = title, synthetic

    def __getitem__(self, key: Any) -> Any:
        """Return a record, a slice of them, or the `column` of a name."""
        return self.column(key) if isinstance(key, str) else super().__getitem__(key)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict an epoch: epoch, step, what was trained, and with val_ the validation."""
        rows: dict[int, dict[str, Any]] = {}
        for record in self:
            if record["event"] in EPOCH_EVENTS:
                prefix, epoch = EPOCH_EVENTS[record["event"]], record["epoch"]
                values = {k: v for k, v in record.items() if k not in ("event", "epoch", "step")}
                row = rows.setdefault(epoch, {"epoch": epoch})
                row |= {"step": record["step"], **{prefix + k: v for k, v in values.items()}}
        names = sorted(
            dict.fromkeys(name for row in rows.values() for name in row),
            key=lambda name: name.startswith("val_"),
        )
        return [{name: row.get(name) for name in names} for row in rows.values()]

    def column(self, name: str) -> list[float]:
        """Return ``name`` ("loss", "val_accuracy", ...) of each epoch; NaN where there is none.

        Raises UserError for a name that no epoch has.
        """
        rows = self.rows()
        if not any(name in row for row in rows):
            names = list(rows[0]) if rows else []
            raise UserError(
                f"The history has no column {name!r}.{nearest(name, names)} "
                f"There is: {', '.join(names) or 'nothing, no epoch has ended yet'}."
            )
        return [math.nan if row[name] is None else row[name] for row in rows]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row an epoch (its index), and the columns of `rows`.

        Raises UserError where pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("History.to_pandas needs pandas. Type: pip install pandas") from None
        rows = self.rows()
        if not rows:
            return pandas.DataFrame()
        # None, a value that was not finite, as NaN also where a column has nothing else.
        return pandas.DataFrame(rows).set_index("epoch").apply(pandas.to_numeric)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw accuracy and loss over the epochs.

        Returns the `matplotlib.figure.Figure`, which a notebook shows, or ``path``, a PNG file that
        is written. Raises UserError where it cannot be.
        """
        plots = leaf("plots")
        if path is not None:
            return plots.curves(self, path, self.title, self.synthetic)
        return plots.curves_figure(self, self.title, self.synthetic)

    def _repr_html_(self) -> str:
        rows = self.rows()
        names = list(rows[0]) if rows else ["epoch"]
        left_out = len(rows) - SHOWN_ROWS
        cells = [[shown(row[name]) for name in names] for row in rows[-SHOWN_ROWS:]]
        note = f"the last {SHOWN_ROWS} of {len(rows)} epochs" if left_out > 0 else ""
        return html_table(cells, names, note)


def shown(value: Any) -> str:
    """Return a value of a record or summary as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def html_table(cells: list[list[str]], head: Iterable[str] = (), note: str = "") -> str:
    """Return an HTML table of texts, which are escaped."""

    def row(tag: str, texts: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"

    lines = [row("th", head)] * bool(head) + [row("td", texts) for texts in cells]
    caption = f"<caption>{html.escape(note)}</caption>" * bool(note)
    return f"<table>{caption}{''.join(lines)}</table>"


def summary_html(summary: dict[str, Any], path: Path | None) -> str:
    """Return an HTML table of what one wants to know of a run, from its summary."""
    names = ("status", "reason", "model", "backend", "epochs", "steps", "best_epoch")
    names += ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    names += ("test_loss_tta", "test_accuracy_tta")
    names += ("images_per_second", "total_seconds")
    cells = [[name, shown(summary[name])] for name in names if summary.get(name) is not None]
    return html_table([*cells, ["run directory", str(path) if path else "none was kept"]])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``; a line cut short by a crash is left out."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return []


def read_history(path: Path, summary: dict[str, Any]) -> History:
    """Return the history of the run directory ``path``, with the content of its summary.json."""
    dataset = summary.get("dataset")
    synthetic = isinstance(dataset, dict) and dataset.get("name") == "synthetic"
    return History(read_metrics(path / METRICS), path.resolve().name, synthetic)
