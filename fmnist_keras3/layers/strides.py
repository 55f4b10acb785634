"""Strided and transposed convolutions, as convolutions of stride 1.

Their usual gradients are among those that XLA:CPU computes slowly in a loop (see kernels.py): that
of a strided convolution is a transposed one, and the other way round. A strided convolution is a
sum of convolutions of stride 1, one for each place in a block of ``s`` x ``s`` pixels, by the part
of the kernel that meets it. A transposed one gives all pixels of a block as filters of one
convolution of stride 1. Forward and backward these have fast forms.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from keras import ops

from fmnist_keras3.layers.kernels import convolve


def strided_convolve(x: Any, kernel: Any, padding: str, strides: tuple[int, int]) -> Any:
    """Convolve ``x [N,H,W,C]`` with ``kernel [h,w,C,F]``; padding "same" or "valid"."""
    (height, width), (s, t) = kernel.shape[:2], strides
    if padding == "same":
        pads = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(x.shape[1:3], (height, width), strides, strict=True)
        ]
        x = ops.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in pads), (0, 0)])
    rows, cols = (x.shape[1] - height) // s + 1, (x.shape[2] - width) // t + 1
    total = None
    for i, j in product(range(min(s, height)), range(min(t, width))):
        part = kernel[i::s, j::t]
        seen = x[:, i::s, j::t][:, : rows + part.shape[0] - 1, : cols + part.shape[1] - 1]
        y = convolve(seen, part, "valid")
        total = y if total is None else total + y
    return total


def transposed_convolve(x: Any, kernel: Any, padding: str, strides: tuple[int, int]) -> Any:
    """Return the transposed convolution of ``x [N,H,W,C]`` by ``kernel [h,w,F,C]``.

    Of size ``[N,H*s,W*t,F]`` for padding "same", and ``[N,(H-1)*s+max(h,s),...]`` for "valid".
    """
    (height, width), (s, t) = kernel.shape[:2], strides
    filters, channels = kernel.shape[2:]
    rows, cols = x.shape[1:3]
    # The kernel in whole blocks, filled up with zeros: block by block, the last one first, it is
    # the kernel of a convolution whose filters are the pixels of a block.
    m, n = -(-height // s), -(-width // t)
    kernel = ops.pad(kernel, [(0, m * s - height), (0, n * t - width), (0, 0), (0, 0)])
    kernel = ops.flip(ops.reshape(kernel, (m, s, n, t, filters, channels)), (0, 2))
    kernel = ops.transpose(kernel, (0, 2, 5, 1, 3, 4))
    kernel = ops.reshape(kernel, (m, n, channels, s * t * filters))
    x = ops.pad(x, [(0, 0), (m - 1, m - 1), (n - 1, n - 1), (0, 0)])
    y = convolve(x, kernel, "valid")
    tall, wide = y.shape[1:3]
    y = ops.transpose(ops.reshape(y, (-1, tall, wide, s, t, filters)), (0, 1, 3, 2, 4, 5))
    y = ops.reshape(y, (-1, tall * s, wide * t, filters))
    if padding == "same":
        top, left = max(height - s, 0) // 2, max(width - t, 0) // 2
        return y[:, top : top + rows * s, left : left + cols * t]
    return y[:, : (rows - 1) * s + max(height, s), : (cols - 1) * t + max(width, t)]
