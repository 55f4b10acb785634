"""Labels that may be wrong, by confident learning (Northcutt et al. 2021, arXiv:1911.00068)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmnist_keras3.ground.files import write

CLOSE = 1e-6  # by which a probability may miss a threshold, as in cleanlab
COLUMNS = ("number", "label", "likely", "probability_of_label", "probability_of_likely")


class LabelErrors(NamedTuple):
    """Examples whose label may be wrong: ``numbers [E]``, and the classes ``likely [E]`` instead.

    In order of the probability of the label, lowest first.
    """

    numbers: np.ndarray
    likely: np.ndarray


def find(labels: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Return which of the ``labels [N]`` may be wrong.

    ``probabilities [N, K]`` are of a model that was not trained on these examples. It is sure that
    an example is of a class where the probability is as high as on average over the examples that
    have the label; if it is sure of another class only, or more, the label may be wrong. These are
    the off-diagonals of the confident joint: what cleanlab finds by
    ``find_label_issues(filter_by="confident_learning")``; with its version 2.9 the same 182 of the
    10,000 test images, in the same order, for a `baseline` of 92.62 %.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    own = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=classes)
    means = np.bincount(labels, own, classes) / np.maximum(counts, 1)
    sure = probabilities >= np.where(counts > 0, means, np.inf) - CLOSE
    likeliest = probabilities.argmax(axis=1)
    likely = np.where(sure.sum(axis=1) > 1, likeliest, sure.argmax(axis=1))
    wrong = sure.any(axis=1) & (likely != labels) & (likeliest != labels)
    numbers = np.flatnonzero(wrong)
    numbers = numbers[np.argsort(own[numbers], kind="stable")]
    return LabelErrors(numbers, likely[numbers])


def write_csv(
    path: Path,
    found: LabelErrors,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Write what was found as a table, a row an example; its number counts from 0."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for number, likely in zip(found.numbers.tolist(), found.likely.tolist(), strict=True):
        pair = (int(labels[number]), likely)
        shares = (f"{probabilities[number, k]:.6f}" for k in pair)
        table.writerow([number, *(class_names[k] for k in pair), *shares])
    write(path, text.getvalue().encode("utf-8", "replace"))
