"""One self-contained HTML page about a run, or about several side by side."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_keras3.evaluation import charts
from fmnist_keras3.evaluation.curves import CURVES, panels, series
from fmnist_keras3.evaluation.mistakes import confused
from fmnist_keras3.evaluation.words import findings
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import save
from fmnist_keras3.runs.rundir import LABEL_ERRORS, ROBUSTNESS, TEMPERATURE

NOTHING = "—"
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclass
class Run:
    """What could be read from a run directory; ``notes`` says what could not."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
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
    from fmnist_keras3.evaluation.comparison import comparison

    given = [run_dirs] if isinstance(run_dirs, str | Path) else run_dirs
    folders = list(dict.fromkeys(Path(folder) for folder in given))
    if not folders:
        raise UserError("No run directory given; type: fmnist report runs/NAME [runs/NAME ...]")
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)

    single = runs[0] if len(runs) == 1 else None
    values: dict[str, Any] = {"runs": runs, "run": single}
    if single is None:
        values |= comparison(runs)
    else:
        values |= _about(single)
    page = render(Path(__file__).parent / "report.html", **values)
    if path is None:
        home = runs[0].folder
        path = home / "report.html" if single else home.resolve().parent / "comparison.html"
    save(Path(path), page)
    return Path(path)


def _about(run: Run) -> dict[str, Any]:
    """Return what the page of one run shows beside its summary."""
    evaluation = run.evaluation
    names, matrix, pairs = [], [], []
    try:
        names = [str(name) for name in evaluation["class_names"]]
        matrix = [[int(count) for count in row] for row in evaluation["confusion"]]
        if [len(row) for row in matrix] != [len(names)] * len(names):
            raise ValueError
        pairs = [_pair(a, b, names, matrix, evaluation) for a, b in confused(matrix)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        names, matrix, pairs = [], [], []
        if evaluation:
            run.notes.append("evaluation.json is damaged: it holds no confusion matrix.")
    drawn = curves(run.records)
    if evaluation.get("calibration"):
        try:
            drawn["calibration"] = charts.calibration(evaluation["calibration"])
        except (KeyError, TypeError, ValueError):
            run.notes.append("evaluation.json is damaged: it holds no calibration.")
    words = findings(run.records, run.dataset.get("validation"))
    if (run.folder / ROBUSTNESS).exists():
        _spoiled(run, drawn)
    if (run.folder / TEMPERATURE).exists():
        words += _calibrated(run, drawn)
    return {
        "charts": drawn,
        "words": words,
        "names": names,
        "confusion": matrix,
        "pairs": pairs,
        "doubtful": _examples(evaluation.get("doubtful"), names),
        "doubtful_text": _doubtful(evaluation),
        "mistakes": _examples(evaluation.get("mistakes"), names),
        "old_mistakes": data_uri(run.folder / "plots/mistakes.png"),  # of an earlier version
    }


def _spoiled(run: Run, drawn: dict[str, charts.Chart]) -> None:
    """Add the chart of a run's accuracy on spoiled images."""
    try:
        lines = [
            charts.Line(name, {k: float(v) for k, v in enumerate(row, 1)}, n, n // charts.COLOURS)
            for n, (name, row) in enumerate(_load(run, ROBUSTNESS).items())
        ]
        show, x = charts.percent, "strength"
        drawn["robustness"] = charts.lines("Accuracy on spoiled images", lines, show, x=x)
    except (IndexError, TypeError, ValueError):
        run.notes.append(f"{ROBUSTNESS} is damaged.")


def _calibrated(run: Run, drawn: dict[str, charts.Chart]) -> list[str]:
    """Add the chart of a run's calibration with its temperature, and return what it changed."""
    stored = _load(run, TEMPERATURE)
    try:
        after = charts.calibration(stored["calibration_after"])
        names = ("calibration_error_before", "calibration_error_after")
        gaps = [f"{100 * stored[name]:.2f}" for name in names]
        warmth, images = f"{stored['temperature']:.3f}", f"{stored['validation_images']:,}"
    except (KeyError, TypeError, ValueError):
        run.notes.append(f"{TEMPERATURE} is damaged.")
        return []
    drawn["calibrated"] = dataclasses.replace(after, title="Calibration with the temperature")
    return [
        f"The temperature {warmth}, fitted on {images} validation images, moves the test's "
        f"calibration error from {gaps[0]} to {gaps[1]} points; predict and export use it."
    ]


def _pair(
    a: int, b: int, names: list[str], matrix: list[list[int]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Return what is said and shown of two classes that are confused."""
    images = [sum(matrix[k]) for k in (a, b)]
    shares = [matrix[a][b] / max(images[0], 1), matrix[b][a] / max(images[1], 1)]
    shown = [
        one
        for one in evaluation.get("confused", [])
        if {one.get("true"), one.get("predicted")} == {a, b}
    ]
    text = (
        f"{names[a]} is taken for {names[b]} in {percent(shares[0], 1)} ({matrix[a][b]:,} of "
        f"{images[0]:,}), {names[b]} for {names[a]} in {percent(shares[1], 1)} "
        f"({matrix[b][a]:,} of {images[1]:,})."
    )
    return {"names": (names[a], names[b]), "text": text, "examples": _examples(shown, names)}


def _doubtful(evaluation: dict[str, Any]) -> str:
    count, images = (figure(evaluation.get(name)) for name in ("doubtful_labels", "examples"))
    return (
        f"{count} of {images} test labels may be wrong: the model is as sure of another class as "
        "it is, on average, of the images with that label (confident learning). Some are hard "
        f"pictures, which it gets wrong itself. All are listed in {LABEL_ERRORS}."
    )


def _examples(found: Any, names: list[str]) -> list[dict[str, Any]]:
    """Return pictures of mistakes with names in the place of numbers; none that is damaged."""
    made = []
    for one in found if isinstance(found, list) else []:
        try:
            labels = {key: names[one[key]] for key in ("true", "predicted")}
            if _PNG.fullmatch(one["image"]):
                kept = {key: one.get(key) for key in ("image", "probability", "number")}
                made.append(labels | kept)
        except (KeyError, TypeError, IndexError):
            continue
    return made


_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")


def curves(records: list[dict[str, Any]]) -> dict[str, charts.Chart]:
    """Return the charts of a training: accuracy, loss, learning rate, speed, as recorded."""
    looks = {"train": 1, "validation": 0, "validation, averaged weights": 2, "test": 6}
    sources = {at: (records, event, p) for at, (event, p) in CURVES.items()}
    found = panels(sources)
    marked: Any = None
    for key in ("loss", "accuracy"):
        points = found.get(key, {}).get("validation", {})
        scores = {e: v if key == "accuracy" else -v for e, v in points.items() if _finite(v)}
        marked = max(scores, key=scores.__getitem__) if scores else marked
    made = {}
    for key, lines in found.items():
        show = charts.percent if key == "accuracy" else charts.number
        epochs = [e for at, points in lines.items() if at != "test" for e in points]
        drawn = []
        for at, points in lines.items():
            dot = at == "test"
            points = {max(epochs or points): points[max(points)]} if dot else points
            drawn.append(charts.Line(at, points, looks[at], 0, dot))
        value = lines.get("validation", {}).get(marked)
        text = percent(value) if key == "accuracy" else figure(value, 4)
        mark = None if value is None else (marked, f"best epoch {marked}: {text}")
        made[key] = charts.lines(key.capitalize(), drawn, show, mark)
    for key, name in (("lr", "Learning rate"), ("images_per_second", "Images per second")):
        points = series(records, "train", key)
        if len(points) > 1:
            made[key] = charts.lines(name, [charts.Line(name.lower(), points)])
    return made


def render(template: Path, **values: Any) -> bytes:
    """Return the page that a Jinja template makes of ``values``, with the look of all pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters.update(
        figure=figure, percent=percent, duration=duration, text=text, sure=sure
    )
    # "replace": a lone surrogate from a damaged JSON file has no UTF-8 form.
    return environment.get_template(template.name).render(**values).encode("utf-8", "replace")


def read_run(folder: Path) -> Run:
    """Return what can be read from a run directory; raises UserError for a folder that is none."""
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
        run.evaluation = _load(run, "evaluation.json")
        run.scores = _scores(run, run.evaluation)
    return run


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


def sure(share: Any) -> str:
    """Format a probability in per cent, three digits and never 100: that would be a false one."""
    return f"{min(100 * share, 99.9):#.3g}\u00a0%" if _finite(share) else NOTHING


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
