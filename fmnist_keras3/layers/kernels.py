"""Convolution and max-pooling in `keras.ops`, written the way XLA makes them fast on a CPU.

Five facts decide (XLA of JAX 0.10 and TensorFlow 2.21; two cores, batch 128, float32):

- A convolution reaches XLA:CPU's fast kernel only if it is NHWC/HWIO in form, which neither
  backward convolution of the usual gradient is (jax-ml/jax#12868).
- The input's gradient is a convolution of a gradient with zeros around it; a product for each
  position of the kernel leaves the zeros out (`cnn`: 16 ms a step with the one, 13.5 the other).
- With few channels, patches times a matrix are faster still; and if 2x2 max-pooling follows, one
  matrix for all four positions of a window is, because it is four times as wide (`lenet`: 13,600
  images/s pooled position by position, 31,000 so).
- The gradient of max-pooling, a select-and-scatter, runs on one thread.
- XLA fuses cheap operations into each of their consumers and so computes them again for each, but
  never a reduction. What the backward pass needs of a window is therefore made by two reductions,
  its maximum and the place of it (`cnn`: 5,200 images/s with comparisons, 7,700 so).

Sums are written out in one order, so that they have equal bits on every backend.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.layers.gradients import add_up, plain, with_gradient
from fmnist_keras3.layers.winograd import winograd_conv

# Up to this many input channels a convolution is fastest as patches times a matrix: measured
# on two cores, 1 channel 3,026 against 2,635 images/s (`cnn`); from 32 channels on it is slower.
IM2COL_CHANNELS = 8
# From so many channels on, in and out, Winograd's algorithm wins: measured forward and backward on
# 64 maps of 14x14, 24 channels 11.6 ms against 9.5 by definition, 32 equal, 64 39 against 51.
WINOGRAD_CHANNELS = 32


def convolve(x: Any, kernel: Any, padding: str) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``, stride 1; padding "same" or "valid"."""
    x = _padded(x, kernel, padding)
    if x.shape[-1] <= IM2COL_CHANNELS:
        return im2col_conv(x, kernel)
    height, width = x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1
    rows, cols = (height + 1) // 2, (width + 1) // 2
    if not _suits_winograd(kernel) or height * width < 0.7 * 4 * rows * cols:
        return canonical_conv(x, kernel)
    x = ops.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)])
    y = ops.reshape(winograd_conv(x, kernel), (-1, rows, cols, 2, 2, kernel.shape[-1]))
    y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 2 * rows, 2 * cols, y.shape[-1]))
    return y[:, :height, :width]


def convolve_and_pool(x: Any, kernel: Any, padding: str, windows: tuple[int, int]) -> Any:
    """Return the maxima of ``convolve(x, kernel, padding)`` over 2x2 windows, stride 2.

    Of the first ``windows`` (rows, columns) only; nothing else is computed.
    """
    x = _padded(x, kernel, padding)
    height, width, channels, filters = kernel.shape
    rows, cols = windows
    x = x[:, : 2 * rows + height - 1, : 2 * cols + width - 1]
    if channels <= IM2COL_CHANNELS and height % 2 and width % 2:
        y = im2col_conv(_space_to_depth(x), _windowed_kernel(kernel))
        return window_max(ops.reshape(y, (-1, rows, cols, 4, filters)), (3,))
    if _suits_winograd(kernel):
        return window_max(winograd_conv(x, kernel), (3,))
    y = canonical_conv(x, kernel)
    return window_max(ops.reshape(y, (-1, rows, 2, cols, 2, filters)), (2, 4))


def window_max(x: Any, axes: tuple[int, ...]) -> Any:
    """Return the maximum of ``x`` over ``axes``; its gradient goes to the first of equal maxima."""
    sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    count = math.prod(sizes)
    place = np.arange(count, dtype=np.uint8 if count < 256 else np.int32).reshape(sizes)

    @with_gradient
    def maximum(x):
        top = ops.max(x, axis=axes, keepdims=True)
        no_place = np.asarray(count - 1, place.dtype)
        first = ops.min(ops.where(ops.equal(x, top), place, no_place), axis=axes, keepdims=True)

        def grad(g):
            g = ops.expand_dims(g, axes)
            return ops.where(ops.equal(first, place), g, ops.zeros_like(g))

        return ops.squeeze(top, axes), grad

    return maximum(x)


@with_gradient
def global_max(x: Any) -> Any:
    """Return the maximum of each channel ``[N,C]`` of ``x [N,H,W,C]``.

    Equal maxima share its gradient, as with Keras; here the division is the same one everywhere.
    """
    top = ops.max(x, axis=(1, 2), keepdims=True)

    def grad(g):
        there = ops.cast(ops.equal(x, top), x.dtype)
        share = 1 / ops.sum(there, axis=(1, 2), keepdims=True)
        return there * (ops.expand_dims(g, (1, 2)) * share)

    return ops.squeeze(top, (1, 2)), grad


def im2col_conv(x: Any, kernel: Any) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``, unpadded, as patches times a matrix."""
    height, width, channels, filters = kernel.shape
    rows, cols = x.shape[1] - height + 1, x.shape[2] - width + 1
    corners = list(product(range(height), range(width)))

    @with_gradient
    def patches_of(x):
        # Left to the backends, the patches' gradients are added up in an order of each one's own.
        def grad(g):
            parts = [g[..., n * channels : (n + 1) * channels] for n in range(len(corners))]
            return add_up(parts, height, width)

        return ops.concatenate([x[:, i : i + rows, j : j + cols] for i, j in corners], -1), grad

    # Two-dimensional: the gradient of a product of more dimensions copies what it multiplies.
    size = height * width * channels
    y = ops.matmul(ops.reshape(patches_of(x), (-1, size)), ops.reshape(kernel, (size, filters)))
    return ops.reshape(y, (-1, rows, cols, filters))


def canonical_conv(x: Any, kernel: Any) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``, unpadded, backward in NHWC/HWIO form."""
    height, width, channels, filters = kernel.shape

    @with_gradient
    def conv(x, kernel):
        def grad(g):
            # Not a convolution of the padded gradient: that multiplies zeros, and is slower.
            rows, places = ops.reshape(g, (-1, filters)), product(range(height), range(width))
            parts = (ops.matmul(rows, ops.transpose(kernel[place])) for place in places)
            parts = (ops.reshape(part, (*g.shape[:3], channels)) for part in parts)
            dx = add_up(parts, height, width)
            # The kernel's gradient: channels take the batch's place, and the batch the channels'.
            dk = _conv(ops.transpose(x, (3, 1, 2, 0)), ops.transpose(g, (1, 2, 0, 3)))
            return dx, ops.transpose(dk, (1, 2, 0, 3))

        return _conv(x, kernel), grad

    return conv(x, plain(kernel))


def _suits_winograd(kernel: Any) -> bool:
    height, width, channels, filters = kernel.shape
    exact = keras.backend.standardize_dtype(kernel.dtype) in ("float32", "float64")
    return height == width == 3 and min(channels, filters) >= WINOGRAD_CHANNELS and exact


def _conv(x: Any, kernel: Any) -> Any:
    return ops.conv(x, kernel, strides=1, padding="valid", data_format="channels_last")


def _padded(x: Any, kernel: Any, padding: str) -> Any:
    pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:2]]
    if padding == "valid" or not any(map(any, pads)):
        return x
    return ops.pad(x, [(0, 0), *pads, (0, 0)])


def _space_to_depth(x: Any) -> Any:
    """Return ``x [N,2H,2W,C]`` as ``[N,H,W,4C]``: the four pixels of a window side by side."""
    height, width, channels = x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    x = ops.transpose(ops.reshape(x, (-1, height, 2, width, 2, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height, width, 4 * channels))


def _windowed_kernel(kernel: Any) -> Any:
    """Return the kernel ``[h,w,4C,4F]`` on `_space_to_depth` for all four positions of a window.

    ``kernel [2h-1,2w-1,C,F]`` stands at each position, with zeros around it.
    """
    height, width, channels, filters = kernel.shape
    tall, wide = (height + 1) // 2, (width + 1) // 2
    positions = list(product(range(2), range(2)))

    @with_gradient
    def windowed(kernel):
        def grad(g):
            g = ops.reshape(g, (tall, wide, 2, 2, channels, 4, filters))
            g = ops.transpose(g, (0, 2, 1, 3, 4, 5, 6))
            g = ops.reshape(g, (2 * tall, 2 * wide, channels, 4, filters))
            parts = [g[i : i + height, j : j + width, :, n] for n, (i, j) in enumerate(positions)]
            return sum(parts[1:], parts[0])

        moved = [ops.pad(kernel, [(i, 1 - i), (j, 1 - j), (0, 0), (0, 0)]) for i, j in positions]
        all_four = ops.reshape(ops.stack(moved, axis=3), (tall, 2, wide, 2, channels, 4 * filters))
        all_four = ops.transpose(all_four, (0, 2, 1, 3, 4, 5))
        return ops.reshape(all_four, (tall, wide, 4 * channels, 4 * filters)), grad

    return windowed(plain(kernel))
