"""Gradients that are written out, for layers that know a faster one than the usual."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from keras import ops


def with_gradient(function: Callable[..., tuple[Any, Callable[[Any], Any]]]) -> Callable[..., Any]:
    """Let ``function``, which returns its value and a gradient, be differentiated by the latter.

    The gradient takes the incoming one: Keras hands that over as ``upstream=`` on TensorFlow and
    torch, as the only argument on JAX. TensorFlow refuses variables here: see `plain`.
    """

    @ops.custom_gradient
    def differentiable(*inputs: Any) -> tuple[Any, Callable[..., Any]]:
        value, gradient = function(*inputs)
        return value, lambda *g, upstream=None: gradient(g[0] if upstream is None else upstream)

    return differentiable


def plain(variable: Any) -> Any:
    """Return a variable's value."""
    return ops.reshape(variable, variable.shape)


def add_up(parts: Iterable[Any], height: int, width: int) -> Any:
    """Return the sum of arrays ``[N,H,W,C]``, one for each place of a kernel, row by row.

    Each is moved by its place, into ``[N,H+height-1,W+width-1,C]``, and they are added in that
    order, so that the sum has equal bits on every backend.
    """
    moved = [
        ops.pad(part, [(0, 0), (i, height - 1 - i), (j, width - 1 - j), (0, 0)])
        for part, (i, j) in zip(parts, product(range(height), range(width)), strict=True)
    ]
    return sum(moved[1:], moved[0])
