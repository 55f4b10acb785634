"""What the convolutional families are made of."""

from __future__ import annotations

from typing import Any

from keras import layers, regularizers

from fmnist_keras3.layers.fast import BatchNormalization, Conv2D


def convolution(
    x: Any, filters: int, size: int, name: str, l2: float, initializer: Any = "he_normal"
) -> Any:
    """Convolve ``x [N, H, W, C]`` to ``[N, H, W, filters]``, without a bias: one follows."""
    return Conv2D(
        filters,
        size,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer,
        kernel_regularizer=decay(l2),
        name=f"conv{name}",
    )(x)


def normalized(x: Any, name: str, momentum: float = 0.9, scale: bool = True) -> Any:
    """Normalise ``x`` over the batch (Ioffe & Szegedy 2015), with PyTorch's defaults."""
    return BatchNormalization(momentum=momentum, epsilon=1e-5, scale=scale, name=f"bn{name}")(x)


def logits(x: Any, classes: int, l2: float, use_bias: bool = True) -> Any:
    """Return ``[N, classes]`` in float32, also in mixed precision."""
    return layers.Dense(
        classes, use_bias=use_bias, kernel_regularizer=decay(l2), name="logits", dtype="float32"
    )(x)


def decay(l2: float) -> Any:
    """Return the L2 regularizer of a kernel, None at 0."""
    return regularizers.L2(l2) if l2 else None
