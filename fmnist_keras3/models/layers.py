"""Conv2D and MaxPooling2D with Keras' arguments and results, and gradients XLA:CPU likes.

Two facts make the ordinary layers slow in a compiled loop on a CPU. XLA:CPU sends a convolution
to its fast kernel only if it is NHWC/HWIO in form, which neither backward convolution of the usual
gradient is (jax-ml/jax#12868); and the gradient of max-pooling, a select-and-scatter, runs on one
thread. Here the backward convolutions are written in the form XLA wants, and a pooling window
that tiles its input is a reshape and a maximum.

The layers hold no state of their own and are written to `.keras` files as the plain Keras layers,
so that a file loads where this package is not installed. Strides, dilation, groups and
channels-first data are delegated to Keras.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras.src import api_export

from fmnist_keras3.models.losses import SparseCategoricalCrossentropy

# Up to this many input channels a convolution is fastest as patches times a matrix: measured
# on two cores, 1 channel 3,026 against 2,635 images/s (`cnn`); from 32 channels on it is slower.
IM2COL_CHANNELS = 8

_xla_cpu = contextvars.ContextVar("_xla_cpu", default=False)


@contextlib.contextmanager
def traced_for_xla_cpu(active: bool = True) -> Iterator[None]:
    """Let the layers take their fast form while an engine traces a program for XLA on a CPU."""
    token = _xla_cpu.set(active)
    try:
        yield
    finally:
        _xla_cpu.reset(token)


def _fast() -> bool:
    if _xla_cpu.get():
        return True
    if keras.backend.backend() != "jax":
        return False  # outside XLA, TensorFlow's own kernels are the faster ones
    import jax

    return jax.default_backend() == "cpu"


def _pads(kernel_size: tuple[int, ...], padding: str) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0) for _ in kernel_size]
    return [((k - 1) // 2, k // 2) for k in kernel_size]


def _conv(x: Any, kernel: Any, pads: list[tuple[int, int]]) -> Any:
    x = ops.pad(x, [(0, 0), *pads, (0, 0)]) if any(map(any, pads)) else x
    return ops.conv(x, kernel, strides=1, padding="valid", data_format="channels_last")


def im2col_conv(x: Any, kernel: Any, padding: str) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``, stride 1, as patches times a matrix."""
    height, width, channels, filters = kernel.shape
    x = ops.pad(x, [(0, 0), *_pads((height, width), padding), (0, 0)])
    rows, cols = x.shape[1] - height + 1, x.shape[2] - width + 1
    spare = (x.shape[1] - rows, x.shape[2] - cols)
    corners = [(i, j) for i in range(height) for j in range(width)]

    @ops.custom_gradient
    def patches_of(x):
        # Left to the backends, the patches' gradients are added up in an order of each one's own.
        def grad(*args, upstream=None):
            g = upstream if upstream is not None else args[0]
            parts = [
                ops.pad(
                    g[..., n * channels : (n + 1) * channels],
                    [(0, 0), (i, spare[0] - i), (j, spare[1] - j), (0, 0)],
                )
                for n, (i, j) in enumerate(corners)
            ]
            return sum(parts[1:], parts[0])

        return ops.concatenate([x[:, i : i + rows, j : j + cols] for i, j in corners], -1), grad

    return ops.matmul(patches_of(x), ops.reshape(kernel, (height * width * channels, filters)))


def canonical_conv(x: Any, kernel: Any, padding: str) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``, stride 1, backward in NHWC/HWIO form."""
    size = tuple(kernel.shape[:2])
    pads = _pads(size, padding)

    @ops.custom_gradient
    def conv(x, kernel):
        def grad(*args, upstream=None):
            g = upstream if upstream is not None else args[0]
            flipped = ops.transpose(ops.flip(kernel, (0, 1)), (0, 1, 3, 2))
            outer = [(k - 1 - a, k - 1 - b) for k, (a, b) in zip(size, pads, strict=True)]
            dx = _conv(g, flipped, outer)
            # The kernel's gradient: channels take the batch's place, and the batch the channels'.
            dk = _conv(ops.transpose(x, (3, 1, 2, 0)), ops.transpose(g, (1, 2, 0, 3)), pads)
            return dx, ops.transpose(dk, (1, 2, 0, 3))

        return _conv(x, kernel, pads), grad

    # Reshaped to what it is: TensorFlow refuses a variable where a gradient is custom.
    return conv(x, ops.reshape(kernel, kernel.shape))


class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`: same arguments, shapes, dtypes and results, faster on XLA:CPU."""

    def convolution_op(self, inputs, kernel):
        plain = (
            self.groups == 1
            and self.strides == (1, 1)
            and self.dilation_rate == (1, 1)
            and self.data_format == "channels_last"
        )
        if not plain or None in inputs.shape[1:] or not _fast():
            return super().convolution_op(inputs, kernel)
        channels = inputs.shape[-1]
        convolve = im2col_conv if channels <= IM2COL_CHANNELS else canonical_conv
        return convolve(inputs, kernel, self.padding)


@ops.custom_gradient
def _window_max(x: Any) -> Any:
    """Return the maximum over axes 2 and 4 of ``x [N,rows,h,cols,w,C]``."""
    top = ops.max(x, axis=(2, 4), keepdims=True)

    def grad(*args, upstream=None):
        g = upstream if upstream is not None else args[0]
        # A share in thirds is inexact; the backends' own gradients round it at different places.
        is_top = ops.cast(ops.equal(x, top), x.dtype)
        share = ops.reshape(g, top.shape) / ops.sum(is_top, axis=(2, 4), keepdims=True)
        return is_top * share

    return ops.squeeze(top, (2, 4)), grad


class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D`: same arguments and results, faster where windows tile the input.

    Where two pixels of a window are equal, the gradient is shared between them (Keras sends it to
    the first); both are subgradients of the maximum.
    """

    def call(self, inputs):
        (height, width), shape = self.pool_size, inputs.shape
        tiles = (
            self.strides == self.pool_size
            and self.data_format == "channels_last"
            and None not in shape[1:]
            and (self.padding == "valid" or (shape[1] % height == 0 and shape[2] % width == 0))
        )
        if not tiles or not _fast():
            return super().call(inputs)
        rows, cols = shape[1] // height, shape[2] // width
        x = inputs[:, : rows * height, : cols * width]
        return _window_max(ops.reshape(x, (-1, rows, height, cols, width, shape[3])))


def _scramble(x: Any) -> Any:
    """Hash uint32 values to uniform ones (Wellons 2018, Prospecting for Hash Functions)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ops.bitwise_xor(x, ops.right_shift(x, ops.cast(shift, "uint32")))
        x = x * ops.cast(factor, "uint32")
    return ops.bitwise_xor(x, ops.right_shift(x, ops.cast(16, "uint32")))


class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with a mask hashed from seed state and position while compiled.

    The backends' own generators cost more than the layers around them on a CPU (TensorFlow's, for
    `baseline`: 918 images/s with dropout, 4,484 without), and no two draw the same mask.
    """

    def call(self, inputs, training=False):
        fast = _xla_cpu.get() and self.noise_shape is None and None not in inputs.shape
        if not (training and self.rate > 0 and fast):
            return super().call(inputs, training=training)
        seed = ops.cast(self.seed_generator.next(), "uint32")
        key = _scramble(_scramble(seed[0]) ^ seed[1])
        position = ops.cast(ops.arange(math.prod(inputs.shape), dtype="int32"), "uint32")
        drawn = ops.reshape(_scramble(position ^ key), inputs.shape)
        keep = drawn >= ops.cast(round(self.rate * 2**32), "uint32")
        return ops.where(keep, inputs * (1 / (1 - self.rate)), ops.zeros_like(inputs))


# A `.keras` file names a layer by this table. With these lines our layers are written as the
# plain ones they stand for, and a reader needs Keras only; a test holds Keras to it.
api_export.REGISTERED_OBJS_TO_NAMES[Conv2D] = "keras.layers.Conv2D"
api_export.REGISTERED_OBJS_TO_NAMES[MaxPooling2D] = "keras.layers.MaxPooling2D"
api_export.REGISTERED_OBJS_TO_NAMES[Dropout] = "keras.layers.Dropout"

_FAST_CLASS = {
    keras.layers.Conv2D: Conv2D,
    keras.layers.MaxPooling2D: MaxPooling2D,
    keras.layers.Dropout: Dropout,
}


def accelerate(model: keras.Model) -> keras.Model:
    """Give the plain Conv2D and MaxPooling2D layers of ``model`` their fast form; returns it.

    In place: weights, names and results stay. For models that were loaded from a `.keras` file.
    The plain cross-entropy becomes ours (see losses.py).
    """
    if type(getattr(model, "loss", None)) is keras.losses.SparseCategoricalCrossentropy:
        model.loss.__class__ = SparseCategoricalCrossentropy
    for layer in model._flatten_layers():
        fast = _FAST_CLASS.get(type(layer))
        if fast is not None:
            layer.__class__ = fast  # the classes differ in methods only
    return model
