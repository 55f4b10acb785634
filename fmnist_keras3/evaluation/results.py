"""Writes what a test found into the run that it is a test of."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.source import Rows
from fmnist_keras3.evaluation import label_errors, plots
from fmnist_keras3.evaluation.metrics import Evaluation, as_logits, evaluate_logits
from fmnist_keras3.evaluation.mistakes import pictures
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import atomic, write_errors, write_json
from fmnist_keras3.runs import rundir
from fmnist_keras3.runs.history import read_metrics
from fmnist_keras3.runs.jsonl import JSONLLogger

KINDS = ("{}", "raw_{}", "{}_tta")  # of the figures: the model's, of the weights before averaging


def write_test(
    run: Path, logs: dict[str, float], tested: Split, outputs: Any, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Write record, summary, evaluation.json and plots of a test; return the record.

    ``logs`` are its figures and ``outputs [N, ...]`` the model's for the examples ``tested``. The
    figures of an earlier test are replaced. What is no classification, or cannot be scored or
    drawn, leaves the figures alone: of a failure there is a warning. Raises UserError where the
    file system refuses. The caller holds the run's lock.
    """
    if isinstance(tested.y, Rows):  # labels that come with the images are read once
        tested = dataclasses.replace(tested, y=np.asarray(tested.y))
    summary = rundir.without_test(json.loads((run / rundir.SUMMARY).read_text()))
    names = [kind.format(name) for name in ("loss", "accuracy") for kind in KINDS]
    summary |= {f"test_{name}": logs[name] for name in names if name in logs}
    record = {"event": "test", "epoch": summary["epochs"], "step": summary["steps"], **logs}
    metrics = JSONLLogger(run)
    metrics.drop("test")
    metrics.log(record)
    write_json(run / rundir.SUMMARY, summary)
    rundir.forget_test(run)  # not each test writes all of its files
    evaluation = None
    try:
        evaluation = classified(tested.y, outputs, class_names)
    except UserError as error:  # such as a class that the model rules out by a logit of -inf
        warnings.warn(f"There are no scores of the classes in {run}. {error}", stacklevel=5)
    try:
        if evaluation is not None:
            labels = np.reshape(tested.y, -1)
            shares = evaluation.probabilities
            doubtful = label_errors.find(labels, shares)
            shown = _are_images(tested.x)
            examples = pictures(tested.x, labels, evaluation, doubtful) if shown else {}
            write_json(run / rundir.EVALUATION, evaluation.to_dict() | examples)
            write_predictions(run, labels, outputs)
            path, names = run / rundir.LABEL_ERRORS, evaluation.class_names
            label_errors.write_csv(path, doubtful, labels, shares, names)
        _draw(run, summary, tested, evaluation)
    except UserError:
        raise
    except Exception as error:  # pictures of a stranger's data: the figures must not be lost
        warnings.warn(f"The plots of {run} could not be drawn: {error!r}.", stacklevel=5)
    return record


def classified(y: Any, outputs: Any, class_names: tuple[str, ...]) -> Evaluation | None:
    """Return the scores of a classification; None where labels or outputs are of something else.

    ``y [N]`` or ``[N, 1]`` are whole numbers and ``outputs [N, K]`` logits or probabilities.
    Without K ``class_names`` the classes are called by their numbers. Raises UserError for outputs
    that are not finite.
    """
    y = np.asarray(y) if isinstance(y, Rows) else y
    arrays = isinstance(y, np.ndarray) and isinstance(outputs, np.ndarray)
    if not arrays or outputs.ndim != 2 or outputs.shape[1] < 2 or y.size != len(outputs):
        return None
    labels, classes = y.reshape(-1), outputs.shape[1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        return None
    names = class_names if len(class_names) == classes else tuple(map(str, range(classes)))
    return evaluate_logits(labels, as_logits(outputs), names)


def _draw(run: Path, summary: dict[str, Any], tested: Split, evaluation: Evaluation | None) -> None:
    synthetic = summary["dataset"]["name"] == "synthetic"
    title = f"{summary['model']} on {summary['backend']}, seed {summary['seed']}"
    folder = run / rundir.PLOTS
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
    records = read_metrics(run / rundir.METRICS)
    plots.curves(records, folder / "curves.png", title, synthetic)
    if evaluation is None:
        return
    plots.confusion_matrix(evaluation, folder / "confusion_matrix.png", title, synthetic)
    plots.calibration(evaluation, folder / "calibration.png", title, synthetic)
    if _are_images(tested.x):
        images, labels, path = tested.x, np.reshape(tested.y, -1), folder / "mistakes.png"
        plots.mistakes(images, labels, evaluation, path, title, synthetic=synthetic)


def _are_images(x: Any) -> bool:
    return isinstance(x, np.ndarray | Rows) and x.ndim == 4 and x.shape[3] in (1, 3)


def write_predictions(run: Path, labels: np.ndarray, outputs: np.ndarray) -> None:
    """Write what the model made of each test image, for comparisons with other runs."""
    with atomic(run / rundir.PREDICTIONS) as beside, open(beside, "wb") as file:
        np.savez_compressed(file, labels=labels, logits=as_logits(outputs).astype(np.float32))


def read_predictions(run: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the labels ``[N]`` and logits ``[N, K]`` of a run's test; None where there are none.

    Raises ValueError for a damaged file.
    """
    try:
        with np.load(run / rundir.PREDICTIONS) as file:
            labels, logits = file["labels"], file["logits"]
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise ValueError(f"{rundir.PREDICTIONS} is damaged: {error}") from error
    if labels.ndim != 1 or logits.ndim != 2 or len(labels) != len(logits) or not len(labels):
        raise ValueError(f"{rundir.PREDICTIONS} holds {labels.shape} labels, {logits.shape} logits")
    return labels, logits
