"""Which classes a model confuses, and small pictures of its mistakes for the report."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from fmnist_keras3.evaluation.label_errors import LabelErrors
from fmnist_keras3.evaluation.metrics import Evaluation

PAIRS = 5  # of classes
EXAMPLES = 8  # of a pair
SUREST = 24
SIDE = 64  # pixels of a picture, at most


def confused(confusion: Any) -> list[tuple[int, int]]:
    """Return pairs of classes (a, b) that are taken for one another most often, most first.

    ``confusion [K, K]``: counts by true and predicted class. Of a and b, a is taken for b more
    often than b for a.
    """
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    both = np.triu(counts + counts.T)
    order = np.argsort(-both, axis=None, kind="stable")[:PAIRS]
    pairs = (tuple(map(int, np.unravel_index(at, both.shape))) for at in order)
    return [(a, b) if counts[a, b] >= counts[b, a] else (b, a) for a, b in pairs if both[a, b]]


def pictures(
    images: np.ndarray, labels: np.ndarray, evaluation: Evaluation, doubtful: LabelErrors
) -> dict[str, Any]:
    """Return the surest mistakes, and examples of the most confused pairs, ready for JSON.

    ``images [N, H, W, 1|3]`` and ``labels [N]`` are in the order of ``evaluation``. Lists
    ``doubtful`` (the first of the labels that may be wrong), ``mistakes`` (others) and
    ``confused`` of objects ``number`` (of the image), ``true``, ``predicted`` (class numbers),
    ``probability`` and ``image``, a PNG as data URI; and how many are ``doubtful_labels``.
    """
    shares = evaluation.probabilities
    predicted, sure = shares.argmax(axis=1), shares.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    shown = doubtful.numbers[:SUREST]
    others = wrong[~np.isin(wrong, shown)][:SUREST]
    chosen: list[int] = []
    for a, b in confused(evaluation.confusion):
        of_pair = [
            wrong[(labels[wrong] == true) & (predicted[wrong] == taken)]
            for true, taken in ((a, b), (b, a))
        ]
        second = min(len(of_pair[1]), EXAMPLES // 2)
        chosen += [*of_pair[0][: EXAMPLES - second], *of_pair[1][:second]]

    def example(index: int, taken: int | None = None) -> dict[str, Any]:
        taken = int(predicted[index] if taken is None else taken)
        return {
            "number": int(index),
            "true": int(labels[index]),
            "predicted": taken,
            "probability": round(float(shares[index, taken]), 4),
            "image": thumbnail(images[index]),
        }

    return {
        "doubtful_labels": len(doubtful.numbers),
        "doubtful": [example(*pair) for pair in zip(shown, doubtful.likely, strict=False)],
        "mistakes": [example(index) for index in others],
        "confused": [example(index) for index in chosen],
    }


def thumbnail(image: np.ndarray) -> str:
    """Return an image ``[H, W, 1|3]``, uint8, or float in 0..1 or 0..255, as a small PNG's URI."""
    from PIL import Image

    from fmnist_keras3.evaluation.sheets import pixels

    values = np.rint(255 * pixels(image)).astype(np.uint8)
    picture = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
