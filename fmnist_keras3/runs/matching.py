"""The arrays of a checkpoint beside those of the training that it is to go on in."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

import numpy as np

from fmnist_keras3.ground.errors import UserError

State = list[tuple[str, np.ndarray]]
# Keras numbers what is made twice in a process: "adam_2/iteration", "adam_2/dense_3_kernel_m".
_AUTO_NUMBER = re.compile(r"_\d+(?=[_/ ])")
# Keras' counters and seeds have other widths on other backends.
_INTEGER = re.compile(r"u?int\d+$")


def describe(state: list[Any]) -> list[dict[str, Any]]:
    """Return path, shape and dtype of each array, as a manifest lists them."""
    return [
        {"path": name, "shape": list(np.shape(array)), "dtype": str(getattr(array, "dtype", None))}
        for name, array in state
    ]


def check_matches(arrays: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str | None:
    """Compare a checkpoint's arrays with those of the model, optimizer and metrics here, in order.

    Both as by `describe`. Raises UserError, naming the array, for a difference in the model's or
    the metrics'. Returns the first one in the optimizer's, which may be another on a resume, or
    None.
    """
    if difference := _difference(arrays, expected, optimizer=False):
        raise UserError(
            f"The checkpoint does not fit this model: {difference}. Resume with the model, loss, "
            "metrics and averaging of the first run."
        )
    return _difference(arrays, expected, optimizer=True)


def _difference(arrays: list[Any], expected: list[Any], *, optimizer: bool) -> str | None:
    there, here = (
        [
            f"{a['path']} {tuple(a['shape'])} {a['dtype']}"
            for a in described
            if a["path"].startswith("optimizer/") == optimizer
        ]
        for described in (arrays, expected)
    )
    for a, b in zip_longest(there, here, fillvalue="nothing"):
        if _comparable(a) != _comparable(b):
            return f"{a} in the checkpoint is {b} here"
    return None


def _comparable(array: str) -> str:
    return _INTEGER.sub("integer", _AUTO_NUMBER.sub("", array))


def adopt(state: State, expected: State) -> State:
    """Return the arrays of a checkpoint in the dtypes of ``expected``, after `check_matches`.

    An optimizer that differs is left as it stands in ``expected``. Raises UserError for a whole
    number that does not fit.
    """
    fresh = _difference(describe(state), describe(expected), optimizer=True) is not None
    stored = iter([a for n, a in state if not (fresh and n.startswith("optimizer/"))])
    adopted = []
    for name, here in expected:
        if fresh and name.startswith("optimizer/"):
            adopted.append((name, here))
            continue
        there = next(stored)
        if not np.array_equal(there.astype(here.dtype), there, equal_nan=there.dtype.kind == "f"):
            raise UserError(f"{name} of the checkpoint, {there}, does not fit {here.dtype}.")
        adopted.append((name, there.astype(here.dtype)))
    return adopted
