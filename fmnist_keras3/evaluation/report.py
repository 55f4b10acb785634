"""One self-contained HTML page about a run, or about several side by side."""

from __future__ import annotations

import base64
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import save

PLOTS = {
    "curves": "Learning curves",
    "confusion_matrix": "Confusion matrix",
    "mistakes": "Most confident mistakes",
    "calibration": "Calibration",
}
NOTHING = "—"
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclass
class Run:
    """What could be read from a run directory; ``notes`` says what could not."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)  # name -> data URI
    notes: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def dataset(self) -> dict[str, Any]:
        """Where the data came from; empty where the summary does not say."""
        dataset = self.summary.get("dataset")
        return dataset if isinstance(dataset, dict) else {}

    @property
    def synthetic(self) -> bool:
        """Whether the run was trained on generated garments."""
        return self.dataset.get("name") == "synthetic"


def build(run_dirs: Sequence[Path | str] | Path | str, path: Path | str | None = None) -> Path:
    """Write the report of one run directory, or the comparison of several; return its path.

    ``path``: by default ``report.html`` in the run, or ``comparison.html`` beside the first run.
    Files that are missing or damaged become notes in the page. UserError: a folder is no run.
    """
    from fmnist_keras3.evaluation import plots

    given = [run_dirs] if isinstance(run_dirs, str | Path) else run_dirs
    folders = list(dict.fromkeys(Path(folder) for folder in given))
    if not folders:
        raise UserError("No run directory given; type: fmnist report runs/NAME [runs/NAME ...]")
    runs = [_read(folder) for folder in folders]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)

    single = runs[0] if len(runs) == 1 else None
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "curves.png"
        if single is None:
            lines = {run.name + " (generated)" * run.synthetic: run.records for run in runs}
            plots.compare(lines, picture, "Curves", all(run.synthetic for run in runs))
        else:
            _read_plots(single)
            if "curves" not in single.plots:  # a run that was stopped draws none
                plots.curves(single.records, picture, single.name, single.synthetic)
        curves = single.plots.get("curves") if single else None
        curves = curves or data_uri(picture)

    template = Path(__file__).parent / "report.html"
    page = render(template, runs=runs, run=single, curves=curves, titles=PLOTS)
    if path is None:
        home = runs[0].folder
        path = home / "report.html" if single else home.resolve().parent / "comparison.html"
    save(Path(path), page)
    return Path(path)


def render(template: Path, **values: Any) -> bytes:
    """Return the page that a Jinja template makes of ``values``, with the look of all pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters.update(figure=figure, percent=percent, duration=duration, text=text)
    # "replace": a lone surrogate from a damaged JSON file has no UTF-8 form.
    return environment.get_template(template.name).render(**values).encode("utf-8", "replace")


def _read(folder: Path) -> Run:
    if not any((folder / name).is_file() for name in RUN_FILES):
        what = "holds none of them" if folder.is_dir() else "is no folder"
        raise UserError(
            f"{str(folder)!r} is not a run directory: a run has {', '.join(RUN_FILES)}; "
            f"this {what}. Give the folder that `fmnist train` wrote, such as runs/NAME."
        )
    run = Run(folder, name=folder.resolve().name)
    run.config = flat(_load(run, "config.yaml"))
    run.summary = _load(run, "summary.json")
    run.records = _records(run)
    if (folder / "evaluation.json").exists():
        run.scores = _scores(run, _load(run, "evaluation.json"))
    return run


def _read_plots(run: Run) -> None:
    found = {name: data_uri(run.folder / "plots" / f"{name}.png") for name in PLOTS}
    run.plots = {name: uri for name, uri in found.items() if uri}
    if missing := [f"plots/{name}.png" for name in PLOTS if name not in run.plots]:
        run.notes.append(f"Missing or damaged: {', '.join(missing)}.")


def _load(run: Run, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file; a note and an empty one where there is none."""
    import yaml

    try:
        content = (run.folder / name).read_text(encoding="utf-8")
        value = yaml.safe_load(content) if name.endswith("yaml") else json.loads(content)
        if isinstance(value, dict):
            return value
        run.notes.append(f"{name} is damaged: it holds no mapping.")
    except FileNotFoundError:
        run.notes.append(f"{name} is missing.")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        run.notes.append(f"{name} is damaged: {str(error).splitlines()[0]}.")
    return {}


def _records(run: Run) -> list[dict[str, Any]]:
    from fmnist_keras3.runs.jsonl import parsed

    try:
        content = (run.folder / "metrics.jsonl").read_bytes()
    except OSError:
        run.notes.append("metrics.jsonl is missing.")
        return []
    records = parsed(content)
    if broken := sum(bool(line.strip()) for line in content.splitlines()) - len(records):
        lines = "line" if broken == 1 else "lines"
        run.notes.append(f"metrics.jsonl: {broken} damaged {lines} left out.")
    return records


def _scores(run: Run, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the per-class table, the macro average last."""
    columns = ("name", "precision", "recall", "f1", "support")
    try:
        rows = [*evaluation["per_class"], evaluation["macro"]]
        return [{column: row[column] for column in columns} for row in rows]
    except (KeyError, TypeError):
        run.notes.append("evaluation.json is damaged: it holds no per-class scores.")
        return []


def data_uri(path: Path) -> str | None:
    """Return a whole PNG file as a data URI."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[-8:-4] != b"IEND":
        return None
    return "data:image/png;base64," + base64.b64encode(content).decode()


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level with dotted keys."""
    rows: dict[str, Any] = {}
    for key, value in mapping.items():
        nested = isinstance(value, dict) and value
        rows |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return rows


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 0) -> str:
    """Format a number with thousands separators; a dash for anything else."""
    return f"{value:,.{digits}f}" if _finite(value) else NOTHING


def percent(value: Any, digits: int = 2) -> str:
    """Format a share 0..1 in per cent; a dash for anything else."""
    return f"{100 * value:.{digits}f} %" if _finite(value) else NOTHING


def duration(seconds: Any) -> str:
    """Format seconds as a person says them; a dash for anything else."""
    if not _finite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def text(value: Any) -> str:
    """Format any value of a config or summary: lists joined, nothing as a dash."""
    if value is None or value in ("", [], {}):
        return NOTHING
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(item)}" for key, item in flat(value).items())
    return str(value)
