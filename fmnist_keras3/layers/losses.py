"""Cross-entropy from logits with a gradient that has equal bits on every backend.

Keras hands it to the backend, whose gradient ends in a softmax: exponentials divided by their sum.
One XLA (JAX 0.10) makes a division by a broadcast value a product with the reciprocal, another
(TensorFlow 2.21) divides; the last bit differs, and a hundred steps later the third digit. Here the
gradient is written out, with the product.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmnist_keras3.layers.gradients import with_gradient
from fmnist_keras3.layers.keras_private import stands_for


@with_gradient
def log_softmax(logits: Any) -> Any:
    """Return `ops.log_softmax` over the last axis, with the same gradient on every backend."""
    shifted = logits - ops.max(logits, axis=-1, keepdims=True)
    exp = ops.exp(shifted)
    total = ops.sum(exp, axis=-1, keepdims=True)

    def grad(g):
        return g - exp * (ops.sum(g, axis=-1, keepdims=True) * (1 / total))

    return shifted - ops.log(total), grad


def log_likelihood(log_p: Any, y: Any) -> Any:
    """Return ``log_p[i, y[i]]``.

    Selected, not gathered or multiplied by a one-hot: of two products that are added, compilers
    choose one to fuse with the addition, each its own.
    """
    classes = ops.arange(log_p.shape[-1], dtype="int32")
    chosen = ops.equal(classes, ops.expand_dims(ops.cast(y, "int32"), -1))
    return ops.sum(ops.where(chosen, log_p, ops.zeros_like(log_p)), axis=-1)


@stands_for("keras.losses.SparseCategoricalCrossentropy")
class SparseCategoricalCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Keras' loss of this name: same arguments and values; on logits ``[N, C]`` our gradient."""

    def call(self, y_true, y_pred):
        options = self.get_config()
        plain = options["from_logits"] and options["ignore_class"] is None
        if not plain or len(y_pred.shape) != 2 or tuple(y_true.shape[1:]) not in ((), (1,)):
            return super().call(y_true, y_pred)
        return -log_likelihood(log_softmax(y_pred), ops.reshape(y_true, (-1,)))
