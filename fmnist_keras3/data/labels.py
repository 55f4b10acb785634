"""Labels of any kind, made into the classes 0, 1, 2, ... with their names."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.ground.errors import UserError

SHOWN = 8  # classes in a note
WHOLE = re.compile(r"[+-]?\d{1,18}")


def readable(path: str | Path) -> str:
    """Return a name of the file system as it can be printed in a line, whatever it is made of."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def natural(text: str) -> list[Any]:
    """Return a key by which "img10" comes after "img9"."""
    return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", text))]


def classes_of(
    given: dict[str, Any], names: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], tuple[str, ...], str]:
    """Return the labels of each split as int32 ``[N]``, the classes' names, and a note or "".

    Labels may be texts, whole numbers of any type, ``[N, 1]`` or one-hot rows. ``names`` are those
    that the source has for 0, 1, 2, ... Raises UserError, with the example, for a missing label,
    several at once, a fraction, and one of another split that no training example has.
    """
    plain = {split: _plain(labels, split) for split, labels in given.items()}
    if len({labels.dtype.kind for labels in plain.values()}) > 1:
        plain = {split: labels.astype(str) for split, labels in plain.items()}
    values: list[Any] = np.unique(plain["train"]).tolist()
    if values and isinstance(values[0], str):
        values.sort(key=natural)
    elif names and values and values[0] >= 0 and values[-1] < len(names):
        values = list(range(len(names)))
    if len(values) < 2:
        only = f"one class, {values[0]!r}" if values else "no example"
        raise UserError(f"The training examples are of {only}. A classifier needs two classes.")
    numbers, found = {value: i for i, value in enumerate(values)}, {}
    for split, labels in plain.items():
        there, which = np.unique(labels, return_inverse=True)
        codes = np.array([numbers.get(value, -1) for value in there.tolist()], np.int32)
        found[split] = codes[which]
        if (unknown := found[split] < 0).any():
            row = int(unknown.argmax())
            raise UserError(
                f"The {split} examples have the label {labels[row].item()!r} (at example {row}), "
                "which no training example has. Leave these out, or train on some of them."
            )
    if values == list(range(len(values))):
        return found, names or tuple(map(str, values)), ""
    what = "texts" if isinstance(values[0], str) else "numbers with gaps, or not from 0 on"
    shown = ", ".join(f"{i} {value}" for i, value in enumerate(values[:SHOWN]))
    more = ", ..." * (len(values) > SHOWN)
    note = f"The labels are {what}; their classes are {shown}{more}."
    return found, tuple(map(str, values)), note


def _plain(labels: Any, split: str) -> np.ndarray:
    """Return ``labels`` as integers or texts ``[N]``."""
    y = np.asarray(labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2):
        raise UserError(f"The {split} labels have the shape {list(y.shape)}; [N] is expected.")
    if y.dtype.kind not in "biuf":
        if y.ndim == 2:
            raise UserError(f"The {split} labels have {y.shape[1]} texts each; one is expected.")
        return _of_texts(y.tolist(), split)
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise _missing(split, np.isnan(y))
    if y.ndim == 2:
        hot = ((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)
        if not hot.all():
            row = int(hot.argmin())
            raise UserError(
                f"Example {row} of {split} is of several classes or none: "
                f"{y[row].tolist()[:SHOWN]}. Labels must name one class each."
            )
        return y.argmax(1)
    if y.dtype.kind == "f" and (broken := (y != np.rint(y)) | (abs(y) >= 2.0**63)).any():
        row = int(broken.argmax())
        raise UserError(
            f"The {split} labels hold {y[row]:g} (at example {row}); a class is a whole number or "
            "a text. Regression is not done here."
        )
    large = y.dtype == np.uint64 and y.size and y.max() > np.iinfo(np.int64).max
    return y.astype(str) if large else y.astype(np.int64)


def _of_texts(values: list[Any], split: str) -> np.ndarray:
    values = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values]
    gone = [v is None or (isinstance(v, float) and math.isnan(v)) or v == "" for v in values]
    if any(gone):
        raise _missing(split, np.array(gone))
    texts = [str(value).strip() for value in values]
    if all(map(WHOLE.fullmatch, texts)):
        return np.array(texts, np.int64) if texts else np.zeros(0, np.int64)
    return np.array(texts)


def _missing(split: str, gone: np.ndarray) -> UserError:
    rows = np.flatnonzero(gone.reshape(len(gone), -1).any(1))
    return UserError(
        f"{len(rows):,} of the {split} examples have no label (first at example {rows[0]}). Leave "
        "them out."
    )
