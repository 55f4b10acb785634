"""Keras' layers with the same arguments and results, in forms XLA:CPU likes.

The forms are in kernels.py, winograd.py and normalization.py; here is who takes them. A convolution
that is followed by 2x2 max-pooling is computed together with it where an engine has found the two
to be neighbours (`pooled_convolutions`). The maximum then comes before bias and ReLU, a quarter of
the work for the same bits, because both are monotone.

The layers hold no state of their own and are written to `.keras` files as the plain Keras layers,
so that a file loads where this package is not installed. Dilation, groups and channels-first data
are delegated to Keras.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.layers.keras_private import all_layers, graph_of, nodes_of, stands_for
from fmnist_keras3.layers.kernels import convolve, convolve_and_pool, global_max, window_max
from fmnist_keras3.layers.losses import SparseCategoricalCrossentropy
from fmnist_keras3.layers.normalization import batch_normalize, channel_moments, gelu
from fmnist_keras3.layers.strides import strided_convolve, transposed_convolve

MOST_POSITIONS = 49  # of a kernel; each is an operation of its own, which takes compilers long
Pooled = Mapping[keras.layers.Layer, tuple[int, int]]

_xla_cpu: contextvars.ContextVar[Pooled | None] = contextvars.ContextVar("_xla_cpu", default=None)


@contextlib.contextmanager
def traced_for_xla_cpu(active: bool = True, pooled: Pooled | None = None) -> Iterator[None]:
    """Let the layers take their fast form while an engine traces a program for XLA on a CPU.

    ``pooled``: what `pooled_convolutions` found in the model that is traced.
    """
    token = _xla_cpu.set((pooled or {}) if active else None)
    try:
        yield
    finally:
        _xla_cpu.reset(token)


def _fast() -> bool:
    if _xla_cpu.get() is not None:
        return True
    if not _on_jax():
        return False  # outside XLA, TensorFlow's own kernels are the faster ones
    import jax

    return jax.default_backend() == "cpu"


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


@stands_for("keras.layers.Conv2D")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`: same arguments, shapes, dtypes and results, faster on XLA:CPU."""

    def call(self, inputs):
        windows = (_xla_cpu.get() or {}).get(self)
        if windows is None:
            return super().call(inputs)
        outputs = convolve_and_pool(inputs, self.kernel, self.padding, windows)
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return self.activation(outputs)

    def convolution_op(self, inputs, kernel):
        if not self.has_fast_form(inputs.shape) or not _fast():
            return super().convolution_op(inputs, kernel)
        if self.strides == (1, 1):
            return convolve(inputs, kernel, self.padding)
        return strided_convolve(inputs, kernel, self.padding, self.strides)

    def has_fast_form(self, shape: tuple[int | None, ...]) -> bool:
        """Tell whether inputs of ``shape [N,H,W,C]`` are convolved in a way of ours."""
        return (
            self.groups == 1
            and self.dilation_rate == (1, 1)
            and self.data_format == "channels_last"
            and None not in shape[1:]
            and math.prod(self.kernel_size) <= MOST_POSITIONS
        )


@stands_for("keras.layers.Conv2DTranspose")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`: same arguments and results, faster on XLA:CPU."""

    def call(self, inputs):
        if not self.has_fast_form(inputs.shape) or not _fast():
            return super().call(inputs)
        outputs = transposed_convolve(inputs, self.kernel, self.padding, self.strides)
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def has_fast_form(self, shape: tuple[int | None, ...]) -> bool:
        """Tell whether inputs of ``shape [N,H,W,C]`` are convolved in a way of ours."""
        return (
            self.output_padding is None
            and self.dilation_rate == (1, 1)
            and self.data_format == "channels_last"
            and None not in shape[1:]
            and math.prod(self.kernel_size) <= MOST_POSITIONS
        )


@stands_for("keras.layers.MaxPooling2D")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D`: same arguments and results, faster where windows tile the input.

    As with Keras, the gradient goes to the first of equal maxima. On JAX, GPUs take this form, too:
    Keras' gradient adds by scatter there, in any order.
    """

    def call(self, inputs):
        if self in (_xla_cpu.get() or {}):
            return inputs  # the convolution before has done it
        if not self.has_fast_form(inputs.shape) or not (_fast() or _on_jax()):
            return super().call(inputs)
        (height, width), shape = self.pool_size, inputs.shape
        rows, cols = shape[1] // height, shape[2] // width
        x = inputs[:, : rows * height, : cols * width]
        return window_max(ops.reshape(x, (-1, rows, height, cols, width, shape[3])), (2, 4))

    def has_fast_form(self, shape: tuple[int | None, ...]) -> bool:
        """Tell whether inputs of ``shape [N,H,W,C]`` are pooled in a way of ours."""
        if None in shape[1:] or self.data_format != "channels_last":
            return False
        fits = all(n % size == 0 for n, size in zip(shape[1:3], self.pool_size, strict=True))
        return self.strides == self.pool_size and (self.padding == "valid" or fits)


@stands_for("keras.layers.GlobalMaxPooling2D")
class GlobalMaxPooling2D(keras.layers.GlobalMaxPooling2D):
    """`keras.layers.GlobalMaxPooling2D`: same arguments and results, equal bits everywhere."""

    def call(self, inputs):
        fast = self.data_format == "channels_last" and not self.keepdims and _fast()
        return global_max(inputs) if fast else super().call(inputs)


def pooled_convolutions(model: keras.Model) -> Pooled:
    """Find each Conv2D whose output goes to a 2x2 MaxPooling2D alone, and that pooling.

    Returns for both how many windows (rows, columns) anybody looks at: where the next convolution,
    unpadded, is pooled too, its last row may belong to no window. Found in functional and
    sequential models, also inside others; a layer that is used twice is in no pair.
    """
    graphs: dict[int, Any] = {}
    for layer in all_layers(model):
        if (graph := graph_of(layer)) is not None:
            graphs[id(graph)] = graph
    nodes = [node for graph in graphs.values() for node in nodes_of(graph)]
    uses = Counter(id(node.operation) for node in nodes)
    ends = {id(tensor) for graph in graphs.values() for tensor in graph.outputs}
    takers: dict[int, list[Any]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            takers.setdefault(id(tensor), []).append(node)

    def only_taker(node: Any) -> Any:
        tensor = node.output_tensors[0]
        found = takers.get(id(tensor), [])
        return found[0] if len(found) == 1 and id(tensor) not in ends else None

    pairs = [
        (node, after)
        for node in nodes
        if type(node.operation) is Conv2D
        and (after := only_taker(node)) is not None
        and uses[id(node.operation)] == uses[id(after.operation)] == 1
        and _can_pair(node, after)
    ]
    pooled = {
        node.operation: pool.output_tensors[0].shape[1:3]
        for conv, pool in pairs
        for node in (conv, pool)
    }
    for conv, pool in pairs:
        after = getattr(only_taker(pool), "operation", None)
        if type(after) is Conv2D and after in pooled and after.padding == "valid":
            sizes = zip(pooled[after], after.kernel_size, strict=True)
            rows, cols = (2 * n + k - 1 for n, k in sizes)
            pooled[conv.operation] = pooled[pool.operation] = rows, cols
    return pooled


def _can_pair(first: Any, second: Any) -> bool:
    conv, pool = first.operation, second.operation
    return (
        type(pool) is MaxPooling2D
        and conv.activation in (keras.activations.linear, keras.activations.relu)
        and conv.activity_regularizer is None
        and conv.strides == (1, 1)
        and conv.has_fast_form(first.input_tensors[0].shape)
        and pool.pool_size == (2, 2)
        and pool.has_fast_form(second.input_tensors[0].shape)
    )


def _scramble(x: Any) -> Any:
    """Hash uint32 values to uniform ones (Wellons 2018, Prospecting for Hash Functions)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ops.bitwise_xor(x, ops.right_shift(x, ops.cast(shift, "uint32")))
        x = x * ops.cast(factor, "uint32")
    return ops.bitwise_xor(x, ops.right_shift(x, ops.cast(16, "uint32")))


@stands_for("keras.layers.Dropout")
class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with a mask hashed from seed state and position while compiled.

    The backends' own generators cost more than the layers around them on a CPU (TensorFlow's, for
    `baseline`: 918 images/s with dropout, 4,484 without), and no two draw the same mask.
    """

    traced: tuple[Any, Any] | None = None  # `hash_numbers` of the program that is compiled

    def hash_numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least hash (of 2**32) that is kept, and the factor on what is kept."""
        least = min(round(self.rate * 2**32), 2**32 - 1)
        return np.asarray(least, "uint32"), np.asarray(1 / (1 - self.rate), "float32")

    def call(self, inputs, training=False):
        fast = _xla_cpu.get() is not None and self.noise_shape is None and None not in inputs.shape
        if not (training and self.rate > 0 and fast):
            return super().call(inputs, training=training)
        seed = ops.cast(self.seed_generator.next(), "uint32")
        key = _scramble(_scramble(seed[0]) ^ seed[1])
        position = ops.cast(ops.arange(math.prod(inputs.shape), dtype="int32"), "uint32")
        drawn = ops.reshape(_scramble(position ^ key), inputs.shape)
        least, factor = self.traced or self.hash_numbers()
        kept = inputs * ops.cast(factor, inputs.dtype)
        return ops.where(drawn >= least, kept, ops.zeros_like(inputs))


@stands_for("keras.layers.BatchNormalization")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`: same arguments, statistics and results.

    In training on XLA:CPU with the same bits on every backend; faster for 16 bits on JAX's GPUs.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and mask is None and self._has_fast_form(inputs)):
            return super().call(inputs, training=training, mask=mask)
        mean, variance = channel_moments(ops.stop_gradient(inputs))
        kept = self.momentum
        self.moving_mean.assign(self.moving_mean * kept + mean * (1 - kept))
        self.moving_variance.assign(self.moving_variance * kept + variance * (1 - kept))
        gamma = ops.convert_to_tensor(self.gamma) if self.scale else ops.ones_like(mean)
        beta = ops.convert_to_tensor(self.beta) if self.center else ops.zeros_like(mean)
        return batch_normalize(inputs, gamma, beta, self.epsilon)

    def _has_fast_form(self, inputs: Any) -> bool:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        wanted = _fast() if dtype == "float32" else _on_jax() and not _fast()
        return (
            wanted
            and dtype in ("float32", "bfloat16", "float16")
            and dtype == self.compute_dtype
            and self.axis in (-1, len(inputs.shape) - 1)
            and not (self.renorm or self.synchronized)
            and None not in inputs.shape
        )


@stands_for("keras.layers.Activation")
class Activation(keras.layers.Activation):
    """`keras.layers.Activation`: same arguments and results; GELU has equal bits everywhere."""

    def call(self, inputs):
        plain = self.activation is not keras.activations.gelu
        return super().call(inputs) if plain or not _fast() else gelu(inputs)


_FAST_CLASS = {
    keras.layers.Conv2D: Conv2D,
    keras.layers.Conv2DTranspose: Conv2DTranspose,
    keras.layers.MaxPooling2D: MaxPooling2D,
    keras.layers.GlobalMaxPooling2D: GlobalMaxPooling2D,
    keras.layers.Dropout: Dropout,
    keras.layers.BatchNormalization: BatchNormalization,
    keras.layers.Activation: Activation,
}


def fast_classes(model: keras.Model) -> Iterator[tuple[Any, type]]:
    """Yield each plain layer of ``model``, and its loss, with the class that is its fast form.

    The classes differ in methods only: given to the object, weights, names and results stay.
    """
    loss = getattr(model, "loss", None)
    if type(loss) is keras.losses.SparseCategoricalCrossentropy:
        yield loss, SparseCategoricalCrossentropy
    for layer in all_layers(model):
        if fast := _FAST_CLASS.get(type(layer)):
            yield layer, fast


def accelerate(model: keras.Model) -> keras.Model:
    """Give the plain layers of ``model`` and its loss their fast form, in place; returns it."""
    for part, fast in fast_classes(model):
        part.__class__ = fast
    return model
