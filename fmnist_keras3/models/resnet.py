"""The small residual networks for CIFAR (He et al. 2015, Deep Residual Learning, section 4.2).

Depth 6n + 2: a convolution, three stages of n blocks of two convolutions, a dense layer. Between
stages the map is halved by max-pooling and the shortcut widened by a 1x1 convolution, in place of
strides, whose gradients are slow on XLA:CPU. With less growth than two from stage to stage, more of
the weights work on large maps.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from fmnist_keras3.layers.fast import Activation, MaxPooling2D
from fmnist_keras3.models.blocks import convolution, logits, normalized


def build(
    x: Any,
    *,
    classes: int,
    dropout: Any,
    l2: float,
    depth: int,
    width: int,
    growth: float,
    activation: str,
) -> Any:
    """Return logits ``[N, classes]`` for images ``x [N, H, W, C]`` in 0..1."""

    def conv_norm(x, filters, size, name):
        return normalized(convolution(x, filters, size, name, l2), name)

    def active(x, name):
        return Activation(activation, name=f"{activation}{name}")(x)

    x = active(conv_norm(x, width, 3, "0"), "0")
    for stage in range(3):
        filters = round(width * growth**stage)
        if stage:
            x = MaxPooling2D(2, name=f"pool{stage + 1}")(x)
        for block in range((depth - 2) // 6):
            name = f"{stage + 1}_{block + 1}"
            y = active(conv_norm(x, filters, 3, f"{name}a"), f"{name}a")
            y = conv_norm(y, filters, 3, f"{name}b")
            if x.shape[-1] != filters:
                x = conv_norm(x, filters, 1, f"{name}s")
            x = active(layers.Add(name=f"add{name}")([x, y]), f"{name}b")
    return logits(dropout(layers.GlobalAveragePooling2D(name="pool")(x)), classes, l2)
