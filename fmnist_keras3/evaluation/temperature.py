"""Temperature scaling: probabilities that are as sure as they are right (arXiv:1706.04599)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.evaluation.metrics import Evaluation
from fmnist_keras3.ground.files import read_json, write_json
from fmnist_keras3.runs.rundir import TEMPERATURE

RANGE = (0.05, 20)


def fit(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return by what to divide ``logits [N, K]`` for the least cross-entropy on ``labels [N]``.

    Of images that the model was not trained on, such as the validation split. In 0.05..20.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, rows = np.asarray(logits, np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), 1)[rows, labels].mean())

    bounds = tuple(map(math.log, RANGE))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return math.exp(float(found.x))


def write(
    run: Path, model: Any, temperature: float, images: int, before: Evaluation, after: Evaluation
) -> None:
    """Store a temperature with a run, for the weights that ``model`` has.

    It was fitted on ``images`` validation images; ``before`` and ``after`` are of the test split.
    """
    stored = {
        "temperature": temperature,
        "validation_images": images,
        "weights": _fingerprint(model),
        **{
            f"{name}_{when}": getattr(evaluation, name)
            for when, evaluation in (("before", before), ("after", after))
            for name in ("loss", "calibration_error")
        },
        "calibration_after": after.to_dict()["calibration"],
    }
    write_json(run / TEMPERATURE, stored)


def read(run: Path, model: Any) -> float:
    """Return the temperature of a run's ``model``; 1 where none is stored for its weights."""
    stored = read_json(run / TEMPERATURE)
    if stored is None:
        return 1.0
    try:
        temperature = float(stored["temperature"])
        mine = RANGE[0] <= temperature <= RANGE[1] and stored["weights"] == _fingerprint(model)
    except (KeyError, TypeError, ValueError):
        return 1.0
    return temperature if mine else 1.0


def _fingerprint(model: Any) -> int:
    from fmnist_keras3.training.evaluator import fingerprint  # which brings Keras

    return fingerprint(model)
