"""LeNet-5 (LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition).

With ReLU and max-pooling in the place of tanh and average pooling, as everyone now trains it.
"""

from __future__ import annotations

from typing import Any

from keras import layers, regularizers

from fmnist_keras3.layers.fast import Conv2D, MaxPooling2D


def build(x: Any, *, classes: int, dropout: Any, l2: float) -> Any:
    """Return logits ``[N, classes]`` for images ``x [N, H, W, C]`` in 0..1."""
    decay = regularizers.L2(l2) if l2 else None
    common = {"activation": "relu", "kernel_regularizer": decay}
    x = Conv2D(6, 5, padding="same", name="conv1", **common)(x)
    x = MaxPooling2D(2, name="pool1")(x)
    x = Conv2D(16, 5, name="conv2", **common)(x)
    x = MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = dropout(layers.Dense(120, name="dense1", **common)(x))
    x = dropout(layers.Dense(84, name="dense2", **common)(x))
    return layers.Dense(classes, kernel_regularizer=decay, name="logits", dtype="float32")(x)
