"""Batch normalisation and GELU in `keras.ops`, with equal bits on every backend; and for GPUs.

Two things differ between the backends' own: the order in which XLA adds up over the batch (JAX 0.10
and TensorFlow 2.21 split sums differently), and the formula of GELU (by erf or erfc). Here sums are
products of matrices, which both hand to the same kernel, on all cores; and the gradients are
written out, each mean once. A GPU's 16-bit arrays are read and written as such, and as few times as
can be: there, memory is what normalisation waits for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from fmnist_keras3.layers.gradients import with_gradient

# A product of one row is a loop of XLA's own, not the kernel; two rows are enough.
ROWS = 2


def channel_means(x: Any) -> Any:
    """Return the means ``[C]`` of ``x [..., C]`` over all other axes."""
    x = ops.reshape(x, (-1, x.shape[-1]))
    shares = ops.full((ROWS, x.shape[0]), 1 / x.shape[0], dtype=x.dtype)
    return ops.matmul(shares, x)[0]


def channel_moments(x: Any) -> tuple[Any, Any]:
    """Return means and variances ``[C]``, float32, of ``x [..., C]`` over all other axes."""
    means, wide = _means_for(x), ops.cast(x, "float32")
    mean = means(wide)
    if means is channel_means:
        return mean, means(ops.square(wide - mean))
    return mean, ops.maximum(means(ops.square(wide)) - ops.square(mean), 0)  # x is read once


def batch_normalize(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Return ``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` for ``x [..., C]``.

    With the batch's own moments; the gradient is Ioffe and Szegedy's (2015, section 3). Computed in
    float32; arrays of 16 bits come, go and are kept for the gradient as such.
    """
    means = _means_for(x)

    @with_gradient
    def normalize(x, gamma, beta):
        mean, variance = channel_moments(x)
        scale = ops.rsqrt(variance + epsilon)

        def grad(g):
            g = ops.cast(g, "float32")
            whitened = (ops.cast(x, "float32") - mean) * scale
            g_mean, g_along = means(g), means(g * whitened)
            dx = (g - g_mean - whitened * g_along) * (scale * gamma)
            count = math.prod(x.shape[:-1])
            return ops.cast(dx, x.dtype), g_along * count, g_mean * count

        y = (ops.cast(x, "float32") - mean) * (scale * gamma) + beta
        return ops.cast(y, x.dtype), grad

    return normalize(x, gamma, beta)


def _means_for(x: Any) -> Callable[[Any], Any]:
    """Return `channel_means`, or for 16 bits, which only GPUs bring, sums that XLA can fuse."""
    if keras.backend.standardize_dtype(x.dtype) == "float32":
        return channel_means
    return lambda x: ops.mean(x, axis=tuple(range(len(x.shape) - 1)))


@with_gradient
def gelu(x: Any) -> Any:
    """Return ``x`` times the normal distribution function of ``x`` (Hendrycks and Gimpel 2016)."""
    half, scaled = 0.5 * x, x * math.sqrt(0.5)
    # The backends' erf reach 1 at places of their own beyond 3.7, where it is 1 - 1.7e-7.
    erf = ops.where(ops.absolute(scaled) < 3.7, ops.erf(scaled), ops.sign(scaled))

    def grad(g):
        density = ops.exp(-0.5 * ops.square(x)) * (1 / math.sqrt(2 * math.pi))
        return g * ((0.5 + 0.5 * erf) + x * density)

    # A sum, not x * (0.5 + 0.5 * erf): where products are added (by winograd.py), each compiler
    # chooses one of them to fuse with the addition.
    return half + half * erf, grad
