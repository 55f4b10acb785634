"""What the page of several runs shows: their differences, curves over one another, tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.evaluation import charts
from fmnist_keras3.evaluation.curves import Points, panels
from fmnist_keras3.evaluation.paired import paired, sentence
from fmnist_keras3.evaluation.results import read_predictions

if TYPE_CHECKING:
    from fmnist_keras3.evaluation.report import Run

# What differs between any two runs, and says nothing.
UNTOLD = ("run_dir", "resume", "config", "print_config")
HIDES = 0.006  # of a chart's height: lines that are no further apart cover one another


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the settings that differ, the charts, and what tests on the same images say."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNTOLD)
    rows = {key: [run.config.get(key) for run in runs] for key in keys}
    differing = {key: values for key, values in rows.items() if any(v != values[0] for v in values)}
    return {
        "differing": differing,
        "equal_settings": len(rows) - len(differing),
        "charts": curves(runs),
        "words": verdicts(runs),
    }


def curves(runs: Sequence[Run]) -> dict[str, charts.Chart]:
    """Return the charts of validation accuracy and loss, or of the training's without any.

    The first line is drawn through, the others dashed, so that one which lies below shows; of such
    ones the chart's text speaks.
    """
    names = [run.name + " (generated)" * run.synthetic for run in runs]
    records = dict(zip(names, (run.records for run in runs), strict=True))
    kind = "validation"
    found = panels({name: (records[name], kind, "") for name in names})
    if not found:
        kind = "training"
        found = panels({name: (records[name], "train", "") for name in names})
    made = {}
    for key, lines in found.items():
        show = charts.percent if key == "accuracy" else charts.number
        drawn = [
            charts.Line(name, lines[name], number, number)
            for number, name in enumerate(names)
            if name in lines
        ]
        title = f"{kind.capitalize()} {key}"
        made[key] = charts.lines(title, drawn, show, text=_hidden(lines))
    return made


def _hidden(lines: dict[str, Points]) -> str:
    """Say which lines cannot be told apart."""
    values = [v for points in lines.values() for v in points.values() if math.isfinite(v)]
    limit = HIDES * (max(values) - min(values))
    said, names = [], list(lines)
    for k, name in enumerate(names):
        for earlier in names[:k]:
            apart = _apart(lines[name], lines[earlier])
            if apart is not None and apart <= limit:
                how = "equal to" if apart == 0 else f"within {apart:.2g} of"
                said.append(f"{name} is {how} {earlier}: the lines cover one another.")
                break
    return " ".join(said)


def _apart(a: Points, b: Points) -> float | None:
    if a.keys() != b.keys():
        return None
    both = [(a[at], b[at]) for at in a if math.isfinite(a[at]) and math.isfinite(b[at])]
    return max((abs(x - y) for x, y in both), default=None)


def verdicts(runs: Sequence[Run]) -> list[str]:
    """Return a sentence on each run beside the first: which is better on the same test images."""
    said, first = [], None
    for run in runs:
        found = _tested(run)
        if isinstance(found, str):
            said.append(found)
            continue
        labels, predicted = found
        if first is None:
            first = run, labels, predicted
        elif not np.array_equal(first[1], labels):
            said.append(f"{run.name} was tested on other images than {first[0].name}.")
        else:
            result = paired(labels, first[2], predicted)
            said.append(sentence(first[0].name, run.name, result))
    if first is not None and len(runs) > 1 and any("interval" in one for one in said):
        said.append(
            "Intervals and p speak of these trained models on images like these; another seed "
            "trains another model."
        )
    return said


def _tested(run: Run) -> tuple[np.ndarray, np.ndarray] | str:
    """Return the labels and predicted classes of a run's test, or why there are none."""
    try:
        found = read_predictions(run.folder)
    except ValueError as error:
        return f"{run.name} cannot be compared by image: {error}."
    if found is None:
        return (
            f"{run.name} cannot be compared by image: it has no predictions.npz, which the test "
            "of a run writes."
        )
    labels, predicted = found[0], found[1].argmax(axis=1)
    stored = run.summary.get("test_accuracy")
    if not isinstance(stored, float) or abs(np.mean(labels == predicted) - stored) > 1e-3:
        return (
            f"{run.name} cannot be compared by image: predictions.npz is of another test than "
            "its summary."
        )
    return labels, predicted
