"""Data that does not suit a model, told before anything is compiled: what it is and what to type.

What is not known of a model (a subclassed one has no shapes) is not checked; nothing is refused
that Keras would train rightly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.dataset import Split, fits
from fmnist_keras3.engines.check_model import computes_loss
from fmnist_keras3.engines.filling import exported_name
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves
from fmnist_keras3.layers.keras_private import all_layers

SHOWN = 5  # rows in a message
STANDARDISED = 16  # deviations from the mean that a pixel may be above it
FIRST = 16  # examples of a split that is read when it is needed
SPARSE = {"SparseCategoricalCrossentropy", "sparse_categorical_crossentropy"}
CATEGORICAL = {
    *("CategoricalCrossentropy", "categorical_crossentropy"),
    *("CategoricalFocalCrossentropy", "categorical_focal_crossentropy"),
}


def check_examples(model: keras.Model, data: DataModule, *, goes_around: bool) -> None:
    """Raise UserError for training or validation data that does not suit the model or holds NaN.

    NaN is only warned of where the training ``goes_around`` it. Of what is read when it is needed
    the first examples are looked at; the others, as they come.
    """
    train = beginning(data.train)
    check_split(model, train, "training")
    found = not_finite(train, "training")
    if data.validation is not None:
        validation = beginning(data.validation)
        check_split(model, validation, "validation", train)
        found = found or not_finite(validation, "validation")
    if found and goes_around:
        warnings.warn(f"{found} Their steps will be left out.", stacklevel=4)
    elif found:
        raise UserError(
            f"{found} Leave these examples out, mend them with np.nan_to_num, or train around "
            "them: on_nonfinite='rollback'."
        )


def beginning(split: Split) -> Split:
    """Return ``split``, or its first examples where it has to be read."""
    return split if split.in_memory else split.read(slice(FIRST))


def check_split(model: keras.Model, split: Split, name: str, like: Split | None = None) -> None:
    """Raise UserError unless the examples of the ``name`` split suit ``model`` and its loss.

    ``like`` is the training split, whose shapes the others must have.
    """
    if split.y is None and model.loss is not None and not computes_loss(model):
        raise UserError(
            "The data has no targets, which the model's loss compares the outputs with. Give "
            "(x, y), for an autoencoder (x, x), or a model with a compute_loss of its own."
        )
    for what, array in _arrays(split, name):
        _check_numbers(array, what)
    check_inputs(model, split.x, name)
    _check_labels(model, split.y, name)
    if like is not None:
        _check_alike(split, like, name)


def not_finite(split: Split, name: str) -> str | None:
    """Return where the examples of the ``name`` split hold NaN or infinity, or None."""
    for what, array in _arrays(split, name):
        if array.dtype.kind == "f":
            bad = np.asarray(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if bad.any():
                return (
                    f"The {what} hold values that are not finite (NaN or infinite) in {_rows(bad)}."
                )
    return None


def check_inputs(model: keras.Model, x: Any, name: str = "") -> None:
    """Raise UserError unless ``x`` has the shape and range of the model's one input, if known."""
    takes = getattr(model, "input_shape", None)
    if not isinstance(x, np.ndarray) or not isinstance(takes, tuple):
        return
    what = f"{name} images".strip() if len(takes) == 4 else f"{name} inputs".strip()
    if not len(x):
        raise UserError(f"There are no {what}; give at least one.")
    if not fits(x.shape[1:], takes[1:]):
        raise UserError(
            f"The {what} have the shape {_shape(x.shape[1:], len(x))}; the model takes "
            f"{_shape(takes[1:])}. {_how_to_reshape(x.shape[1:], takes[1:])}"
        )
    if x.dtype != np.uint8 and x.dtype.kind in "iuf" and _rescales(model):
        _check_range(x, what)


def _check_range(x: np.ndarray, what: str) -> None:
    """Raise UserError for what is clearly not 0..255, which a model brings to 0..1 itself."""
    low, high = float(x.min()), float(x.max())
    broken = x.dtype.kind == "f" and bool(np.any(x != np.round(x)))
    if not math.isfinite(low + high):
        return  # said elsewhere, with the rows
    if high <= 1 and broken:
        how = "Leave out `/ 255`"
        how += "." if low >= 0 else ", or what else was done to the pixels."
    elif low < 0 and (not broken or high <= STANDARDISED):
        how = "Leave out what was done to the pixels."
    elif high >= 2**14:
        how = "Of 16 bits they seem: type (x // 257).astype('uint8')."
    elif high > 2 * 255:
        how = "Bring them to 0..255."
    else:
        return
    raise UserError(
        f"The {what} are numbers in {low:.5g}..{high:.5g}, but the model divides by 255 itself: it "
        f"takes raw pixels, 0..255. {how}"
    )


def _check_numbers(array: np.ndarray, what: str) -> None:
    if array.dtype.kind in "biuf" or array.dtype.name == "bfloat16":
        return
    example = array.ravel()[0] if array.size else None
    how = "Give numbers: np.asarray(..., dtype='float32')."
    if what.endswith("labels"):
        how = "Give numbers: classes, y = np.unique(labels, return_inverse=True)."
    raise UserError(
        f"The {what} are of dtype {array.dtype}, as {str(example)[:40]!r}, which a model cannot "
        f"compute with. {how}"
    )


def _arrays(split: Split, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a split with what they are: "training labels"."""
    for what, part in (("inputs", split.x), ("labels", split.y), ("sample weights", split.weight)):
        for array in leaves(part):
            yield f"{name} {what}", array


def _check_alike(split: Split, like: Split, name: str) -> None:
    for what, here, there in (("inputs", split.x, like.x), ("labels", split.y, like.y)):
        shapes = [[array.shape[1:] for array in leaves(part)] for part in (here, there)]
        if shapes[0] != shapes[1]:
            given, expected = (", ".join(map(_shape, found)) or "none" for found in shapes)
            raise UserError(
                f"The {name} {what} have the shape {given}, those of the training {expected}. "
                "Give both alike."
            )


def _check_labels(model: keras.Model, y: Any, name: str) -> None:
    """Check classes, one-hot or whole numbers, where loss and number of classes are known."""
    shape, kind = getattr(model, "output_shape", None), exported_name(model.loss)
    if not isinstance(y, np.ndarray) or not isinstance(shape, tuple) or computes_loss(model):
        return
    classes = shape[-1]
    if classes is None or classes < 2:
        return
    if kind in CATEGORICAL:
        if y.ndim < len(shape) or y.shape[-1] != classes:
            raise UserError(
                f"The {name} labels have the shape {_shape(y.shape[1:], len(y))}, but {kind} wants "
                f"{_shape(shape[1:])}: one-hot rows, or probabilities. Type "
                f"keras.utils.to_categorical(y, {classes}), or compile with "
                "SparseCategoricalCrossentropy, which takes whole numbers."
            )
    elif kind in SPARSE:
        if y.ndim == len(shape) and y.shape[-1] == classes:
            raise UserError(
                f"The {name} labels have the shape {_shape(y.shape[1:], len(y))}, one-hot rows, "
                f"but {kind} wants whole numbers {_shape(shape[1:-1])}. Type y.argmax(-1), or "
                "compile with CategoricalCrossentropy."
            )
        _check_classes(y, classes, getattr(model.loss, "ignore_class", None), name)


def _check_classes(y: np.ndarray, classes: int, ignored: int | None, name: str) -> None:
    outside = (y < 0) | (y >= classes) | (y != np.round(y))
    if ignored is not None:
        outside &= y != ignored
    if not outside.any():
        return
    values = np.unique(y[outside])
    shown = ", ".join(f"{value:g}" for value in values[:SHOWN]) + ", ..." * (len(values) > SHOWN)
    how = "Mend or leave out these examples, or give the model more outputs."
    if y.min() == 1 and y.max() == classes:
        how = f"They count from 1: type y - 1, for 0..{classes - 1}."
    rows = outside.reshape(len(y), -1).any(axis=1)
    raise UserError(
        f"The {name} labels hold {shown} in {_rows(rows)}; the model has {classes} outputs, for "
        f"the classes 0..{classes - 1}. {how}"
    )


def _how_to_reshape(given: tuple[int, ...], takes: tuple[int | None, ...]) -> str:
    if None not in takes and math.prod(given) == math.prod(n or 0 for n in takes):
        return f"Type x.reshape(-1, {', '.join(map(str, takes))})."
    if len(given) == len(takes) == 3 and given[2] != takes[2]:
        grey = "x.mean(-1, keepdims=True), or " if takes[2] == 1 else ""
        return f"Type {grey}build_model(..., input_shape={given})."
    if len(given) == 3:
        return f"Type build_model(..., input_shape={given}), or change the images' size."
    return "Give one of these shapes, or a model for the other."


def _rescales(model: keras.Model) -> bool:
    """Tell whether the first thing a model does is to bring 0..255 to 0..1."""
    passed = (keras.layers.InputLayer, keras.Model)
    layers = all_layers(model, itself=False)
    first: Any = next((layer for layer in layers if not isinstance(layer, passed)), None)
    if not isinstance(first, keras.layers.Rescaling):
        return False
    scale = np.asarray(first.scale)
    return bool(scale.ndim == 0 and 250 <= 1 / max(float(scale), 1e-9) <= 260)


def _rows(bad: np.ndarray) -> str:
    """Return how many examples are meant, and the first of them: "2 of 90 examples (rows 3, 8)"."""
    rows = np.flatnonzero(bad)
    shown = ", ".join(map(str, rows[:SHOWN].tolist())) + ", ..." * (len(rows) > SHOWN)
    return f"{len(rows):,} of {len(bad):,} examples (row{'s' * (len(rows) > 1)} {shown})"


def _shape(shape: tuple[int | None, ...], count: int | str = "N") -> str:
    return f"[{', '.join(str(n) for n in (count, *shape))}]"
