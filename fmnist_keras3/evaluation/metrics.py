"""What a classifier's logits are worth: accuracy, loss, per-class scores, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.ground.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class (or their plain mean), each 0..1; ``support``: its examples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against accuracy in equal-width bins of the confidence, lowest first.

    Arrays ``[CALIBRATION_BINS]``; ``confidence`` and ``accuracy`` are means, 0 where ``count`` is.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one model on one split.

    ``loss``: mean cross-entropy in nats. ``confusion``: int64 ``[K, K]``, rows are the true class,
    columns the predicted one. ``probabilities``: float64 ``[N, K]`` in the order of the examples.
    ``macro`` is scikit-learn's: the mean over all K classes, those without examples included.
    ``energy_95_percent``: which free energy, -logsumexp(logits), 95 % of the images do not exceed:
    one with more is unusual (Liu et al. 2020, arXiv:2010.03759). Of probabilities it is about 0.
    """

    class_names: tuple[str, ...]
    accuracy: float
    loss: float
    confusion: np.ndarray
    per_class: tuple[ClassScore, ...]
    macro: ClassScore
    calibration: Calibration
    probabilities: np.ndarray
    energy_95_percent: float

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 bins, 0..1 (Guo et al. 2017, arXiv:1706.04599)."""
        gaps = np.abs(self.calibration.accuracy - self.calibration.confidence)
        return float(np.average(gaps, weights=self.calibration.count))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the probabilities as plain Python values, ready for JSON."""
        return {
            "examples": len(self.probabilities),
            "accuracy": self.accuracy,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "energy_95_percent": self.energy_95_percent,
            "class_names": list(self.class_names),
            "per_class": [asdict(score) for score in self.per_class],
            "macro": asdict(self.macro),
            "confusion": self.confusion.tolist(),
            "calibration": {name: array.tolist() for name, array in vars(self.calibration).items()},
        }


def evaluate_logits(y: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> Evaluation:
    """Score logits against labels; a class may be missing from ``y``.

    ``y``: integer ``[N]``, 0..K-1. ``logits``: any float dtype ``[N, K]``. K names.
    Raises ValueError for shapes or labels that do not fit, UserError for logits that are not
    finite (the model has diverged).
    """
    from scipy.special import log_softmax, logsumexp
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    y, logits = np.asarray(y), np.asarray(logits).astype(np.float64)
    names = tuple(class_names)
    if y.ndim != 1 or not len(y) or logits.shape != (len(y), len(names)):
        raise ValueError(
            f"labels {list(y.shape)}, logits {list(logits.shape)} and {len(names)} class names: "
            "expected [N], [N, K] and K, with N at least 1"
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(names):
        raise ValueError(
            f"labels of {y.dtype} in {y.min()}..{y.max()}: expected integers in 0..{len(names) - 1}"
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise UserError(
            f"The model's output is not finite for {len(bad)} of {len(y)} images "
            f"(the first is number {bad[0]}): it has diverged. Evaluate an earlier checkpoint, "
            "or train again with a lower --lr."
        )

    log_probabilities = log_softmax(logits, axis=1)
    probabilities = np.exp(log_probabilities)
    predicted, labels = logits.argmax(axis=1), range(len(names))
    zero: Any = 0  # scikit-learn's annotation knows only the "warn" that this replaces
    columns = precision_recall_fscore_support(y, predicted, labels=labels, zero_division=zero)
    *scores, support = (np.asarray(column).tolist() for column in columns)
    means = [float(np.mean(column)) for column in columns[:3]]
    return Evaluation(
        class_names=names,
        accuracy=float(np.mean(predicted == y)),
        loss=float(-log_probabilities[np.arange(len(y)), y].mean()),
        confusion=confusion_matrix(y, predicted, labels=labels).astype(np.int64),
        per_class=tuple(map(ClassScore, names, *scores, support)),
        macro=ClassScore("macro average", *means, support=len(y)),
        calibration=_calibration(probabilities.max(axis=1), predicted == y),
        probabilities=probabilities,
        energy_95_percent=float(np.quantile(-logsumexp(logits, axis=1), 0.95)),
    )


def as_logits(outputs: np.ndarray) -> np.ndarray:
    """Return a model's ``outputs [N, K]`` as logits, float64: of probabilities their logarithms.

    Rows that all sum to 1 are probabilities; none counts as less than 1e-7, as in Keras' losses.
    """
    rows = np.asarray(outputs).astype(np.float64)
    return np.log(rows.clip(1e-7)) if are_probabilities(rows) else rows


def are_probabilities(rows: np.ndarray) -> bool:
    """Tell whether all ``rows [N, K]`` sum to 1, without a negative number."""
    # Of a softmax in bfloat16 the sums are about 1 only.
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=0.02))


def _calibration(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    # Bins are (low, high], as in the paper's code; the clip keeps 0 and rounding inside.
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    bins = bins.clip(0, CALIBRATION_BINS - 1)
    count, confidences, hits = (
        np.bincount(bins, weights, minlength=CALIBRATION_BINS)
        for weights in (None, confidence, correct)
    )
    return Calibration(count, confidences / np.maximum(count, 1), hits / np.maximum(count, 1))


def per_class_table(evaluation: Evaluation) -> Table:
    """Return the per-class scores, with each class's commonest mistake, for a `screen.console`."""
    from rich.table import Table

    table = Table(
        caption=f"accuracy {100 * evaluation.accuracy:.2f} %, loss {evaluation.loss:.4f}, "
        f"calibration error {100 * evaluation.calibration_error:.2f} %",
        caption_justify="left",
    )
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "images"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for")

    def row(score: ClassScore, mistake: str = "") -> None:
        scores = (f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        table.add_row(score.name, *scores, f"{score.support:,}", mistake)

    names, wrong = evaluation.class_names, evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    for score, counts in zip(evaluation.per_class, wrong, strict=True):
        share = 100 * counts.max() / max(score.support, 1)
        row(score, f"{names[counts.argmax()]} ({share:.1f} %)" if counts.any() else "")
    table.add_section()
    row(evaluation.macro)
    return table
