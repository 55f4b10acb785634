"""Gradients that are written out, for layers that know a faster one than the usual."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from keras import ops


def with_gradient(function: Callable[..., tuple[Any, Callable[[Any], Any]]]) -> Callable[..., Any]:
    """Let ``function``, which returns its value and a gradient, be differentiated by the latter.

    The gradient takes the incoming one: Keras hands that over as ``upstream=`` on TensorFlow and
    torch, as the only argument on JAX.
    """

    @ops.custom_gradient
    def differentiable(*inputs: Any) -> tuple[Any, Callable[..., Any]]:
        value, gradient = function(*inputs)
        return value, lambda *g, upstream=None: gradient(g[0] if upstream is None else upstream)

    return differentiable


def plain(variable: Any) -> Any:
    """Return a variable's value: TensorFlow refuses a variable where a gradient is custom."""
    return ops.reshape(variable, variable.shape)


def add_up(parts: Iterable[Any]) -> Any:
    """Return the sum of arrays, in their order, so that it has equal bits on every backend."""
    return reduce(operator.add, parts)


def placed(part: Any, corner: tuple[int, int], spare: tuple[int, int]) -> Any:
    """Return ``part [N,H,W,C]`` within zeros, ``spare`` more rows and columns, at ``corner``."""
    pads = [(at, more - at) for at, more in zip(corner, spare, strict=True)]
    return ops.pad(part, [(0, 0), *pads, (0, 0)])
