"""The brief's CNN: LeNet adapted to small grey images.

Wider than LeNet, ReLU, max-pooling, two dense layers, L2 on every kernel and dropout before and
between the dense layers.
"""

from __future__ import annotations

from typing import Any

from keras import layers, regularizers

from fmnist_keras3.layers.fast import Conv2D, MaxPooling2D


def build(x: Any, *, classes: int, dropout: Any, l2: float) -> Any:
    """Return logits ``[N, classes]`` for images ``x [N, H, W, C]`` in 0..1."""
    decay = regularizers.L2(l2) if l2 else None
    common = {
        "activation": "relu",
        "kernel_regularizer": decay,
        "kernel_initializer": "he_normal",
    }
    x = Conv2D(24, 3, padding="same", name="conv1", **common)(x)
    x = MaxPooling2D(2, name="pool1")(x)
    x = Conv2D(48, 3, name="conv2", **common)(x)
    x = MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = dropout(x)
    x = dropout(layers.Dense(256, name="dense1", **common)(x))
    return layers.Dense(classes, kernel_regularizer=decay, name="logits", dtype="float32")(x)
