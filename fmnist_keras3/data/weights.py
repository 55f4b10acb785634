"""How much the examples of each class count in a training."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.settings import mapping

BALANCED = "balanced"


def weighted(data: DataModule, class_weight: Any) -> DataModule:
    """Return ``data`` whose training examples count by their class; itself where that is None.

    ``class_weight``: "balanced", so that all classes count alike (``n / (classes * examples of the
    class)``); a mapping of class names, or of their numbers, to factors, 1 for those it lacks; or a
    YAML file of such. Factors multiply sample weights. Raises UserError.
    """
    if class_weight is None:
        return data
    if data.sampling == "balanced":
        raise UserError(
            "class_weight and sampling 'balanced' would both balance the classes. Leave one out."
        )
    y = data.setup().train.y
    if isinstance(y, np.ndarray) and y.shape[1:] == (1,):
        y = y[:, 0]
    if not isinstance(y, np.ndarray) or y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
        raise UserError(
            "class_weight is for labels that are classes, whole numbers [N] from 0 on. Give "
            "sample_weight instead."
        )
    names = data.source.class_names
    factors = _factors(class_weight, y, names or tuple(map(str, range(int(y.max()) + 1))))
    weight = factors[y] if data.train.weight is None else factors[y] * data.train.weight
    changed = copy.copy(data)
    changed.train = dataclasses.replace(data.train, weight=weight.astype(np.float32))
    changed.class_weight = factors.tolist()
    return changed


def absolute(class_weight: str | None) -> str | None:
    """Return ``class_weight`` as it may be typed in any folder."""
    return class_weight if class_weight in (None, BALANCED) else str(Path(class_weight).resolve())


def _factors(class_weight: Any, y: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if class_weight == BALANCED:
        counts = np.bincount(y, minlength=len(names))
        return len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    where = "class_weight"
    if isinstance(class_weight, (str, Path)):
        where = str(class_weight)
        if not Path(class_weight).is_file():
            raise UserError(
                f"class_weight is {where!r}, which is no file. Type --class_weight balanced, or a "
                "YAML file with a line `class: factor` for each class."
            )
        class_weight = {str(key): value for key, value in mapping(class_weight).items()}
    if not isinstance(class_weight, Mapping):
        raise UserError(
            f"class_weight is a {type(class_weight).__name__}; give 'balanced', a dict of classes "
            "and factors, or a YAML file."
        )
    factors, numbers = np.ones(len(names)), {str(i): i for i in range(len(names))}
    numbers |= {name: i for i, name in enumerate(names)}  # a name, where it is a number, too
    for key, factor in class_weight.items():
        place = key if isinstance(key, (int, np.integer)) else numbers.get(str(key), -1)
        if not 0 <= place < len(names):
            shown = f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}"
            raise UserError(
                f"{where} has no class {key!r}.{nearest(str(key), names)} It has {shown}."
            )
        if not isinstance(factor, Real) or not math.isfinite(factor) or factor < 0:
            raise UserError(f"{where} has {key}: {factor!r}; it must be a number, at least 0.")
        factors[place] = factor
    return factors
