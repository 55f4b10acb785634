"""Wide residual networks (Zagoruyko & Komodakis 2016): normalised first, dropout inside blocks.

Depth 6n + 4, width a factor on 16, 32 and 64 filters. Between stages the map is halved by
max-pooling in place of strides, as in resnet.py.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from fmnist_keras3.layers.fast import MaxPooling2D
from fmnist_keras3.models.blocks import convolution, logits, normalized


def build(x: Any, *, classes: int, dropout: Any, l2: float, depth: int, width: int) -> Any:
    """Return logits ``[N, classes]`` for images ``x [N, H, W, C]`` in 0..1."""

    def conv(x, filters, size, name):
        return convolution(x, filters, size, name, l2)

    def norm_relu(x, name):
        return layers.ReLU(name=f"relu{name}")(normalized(x, name))

    x = conv(x, 16, 3, "0")
    for stage in range(3):
        filters = 16 * width * 2**stage
        if stage:
            x = MaxPooling2D(2, name=f"pool{stage + 1}")(x)
        for block in range((depth - 4) // 6):
            name = f"{stage + 1}_{block + 1}"
            y = norm_relu(x, f"{name}a")
            if x.shape[-1] != filters:
                x = conv(y, filters, 1, f"{name}s")
            y = norm_relu(conv(y, filters, 3, f"{name}a"), f"{name}b")
            y = conv(dropout(y), filters, 3, f"{name}b")
            x = layers.Add(name=f"add{name}")([x, y])
    return logits(layers.GlobalAveragePooling2D(name="pool")(norm_relu(x, "")), classes, l2)
