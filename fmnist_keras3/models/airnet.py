"""The network of airbench, for short trainings (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds).

Each group is convolution, 2x2 max-pooling, normalisation, activation, convolution, normalisation,
activation. The first layer whitens patches: its filters come from the training images, not from
training (`whitening.whiten`). From https://github.com/KellerJordan/cifar10-airbench, airbench94.py.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.layers.fast import Activation, Conv2D, GlobalMaxPooling2D, MaxPooling2D
from fmnist_keras3.layers.initial import Dirac
from fmnist_keras3.layers.whitening import prepare as prepare  # of this model
from fmnist_keras3.models.blocks import convolution, logits, normalized

# What PyTorch draws convolutions from.
TORCH = {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}


def build(
    x: Any,
    *,
    classes: int,
    dropout: Any,
    l2: float,
    widths: tuple[int, ...],
    whiten: int,
    activation: str,
    bn_momentum: float,
    bn_scale: bool,
    dirac: bool,
) -> Any:
    """Return logits ``[N, classes]`` for images ``x [N, H, W, C]`` in 0..1."""

    def norm(x, name):
        x = normalized(x, name, bn_momentum, bn_scale)
        return Activation(activation, name=f"{activation}{name}")(x)

    def conv(x, filters, name):
        initializer = Dirac(**TORCH) if dirac else "he_normal"
        return convolution(x, filters, 3, name, l2, initializer)

    if whiten:
        filters = 2 * whiten * whiten * x.shape[-1]
        x = Conv2D(filters, whiten, trainable=False, name="whiten")(x)
        x = Activation(activation, name=f"{activation}0")(x)
    for group, width in enumerate(widths, 1):
        if min(x.shape[1:3]) < 2:
            raise UserError(
                f"widths has {len(widths)} groups; these images can be halved only "
                f"{group - 1} times. Give fewer, or images of at least "
                f"{2 ** len(widths) + max(1, whiten) - 1} pixels a side: --image_size H,W"
            )
        x = conv(x, width, f"{group}a")
        x = norm(MaxPooling2D(2, name=f"pool{group}")(x), f"{group}a")
        x = norm(conv(x, width, f"{group}b"), f"{group}b")
    x = dropout(GlobalMaxPooling2D(name="pool")(x))
    return logits(layers.Rescaling(1 / 9, name="scale")(x), classes, l2, use_bias=False)
