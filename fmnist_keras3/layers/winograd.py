"""3x3 convolution with 16 multiplications where the definition has 36: Winograd's F(2x2, 3x3).

A 2x2 window of outputs depends on 4x4 inputs. Inputs and kernel are transformed to 4x4 values each,
multiplied value by value (summed over channels: 16 products of matrices), and transformed to 2x2
outputs. The transforms only add, so that rounding stays what float32 has anyway. The backward pass
is the same transforms transposed, with 16 products for each of the two gradients.

From Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from fmnist_keras3.layers.gradients import add_up, plain, with_gradient

# In the paper's names, B^T, G, A^T: of inputs, of the kernel, of outputs.
INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], "float32")
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], "float32")
OUTPUTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], "float32")

Grid = Sequence[Sequence[Any]]


def winograd_conv(x: Any, kernel: Any) -> Any:
    """Convolve ``x [N,2R+2,2C+2,D]`` with ``kernel [3,3,D,F]``, unpadded; float32.

    Returns ``[N,R,C,4,F]``: the outputs of each 2x2 window, row by row.
    """
    rows, cols = x.shape[1] // 2 - 1, x.shape[2] // 2 - 1
    filters = kernel.shape[3]

    # Products of their own, not one of a stack of 16: stacks are copies (13x13x64 to 128 filters,
    # pooled, forward and backward: 41 ms a batch of 64 with stacks, 17 without, 50 by definition).
    @with_gradient
    def conv(x, kernel):
        inputs = _transformed(INPUTS, _tiles(x, rows, cols))
        weights = _transformed(KERNEL, [[kernel[i, j] for j in range(3)] for i in range(3)])
        products = _each(ops.matmul, inputs, weights)

        def grad(g):
            g = ops.reshape(g, (-1, 4, filters))
            g = _transformed(OUTPUTS.T, [[g[:, 0], g[:, 1]], [g[:, 2], g[:, 3]]])
            dx = _each(lambda g, w: ops.matmul(g, ops.transpose(w)), g, weights)
            dk = _each(lambda g, x: ops.matmul(ops.transpose(x), g), g, inputs)
            dk = ops.stack([ops.stack(row) for row in _transformed(KERNEL.T, dk)])
            return _untiled(_transformed(INPUTS.T, dx), rows, cols), dk

        windows = _transformed(OUTPUTS, products)
        y = ops.stack([y for row in windows for y in row], axis=1)
        return ops.reshape(y, (-1, rows, cols, 4, filters)), grad

    return conv(x, plain(kernel))


def _tiles(x: Any, rows: int, cols: int) -> Grid:
    """Return the 4x4 inputs of all windows: 16 arrays ``[N*rows*cols, D]``."""
    x = ops.reshape(x, (-1, rows + 1, 2, cols + 1, 2, x.shape[3]))

    def tile(i, j):
        window = x[:, i // 2 : i // 2 + rows, i % 2, j // 2 : j // 2 + cols, j % 2]
        return ops.reshape(window, (-1, x.shape[-1]))

    return [[tile(i, j) for j in range(4)] for i in range(4)]


def _untiled(tiles: Grid, rows: int, cols: int) -> Any:
    """Return `_tiles` transposed: each input's sum over the windows that it is in."""
    channels = tiles[0][0].shape[1]

    def pixels(i, j):
        parts = [tiles[row][col] for row in (i, i + 2) for col in (j, j + 2)]
        return add_up([ops.reshape(part, (-1, rows, cols, channels)) for part in parts], 2, 2)

    x = ops.stack([ops.stack([pixels(i, j) for j in range(2)], 3) for i in range(2)], 2)
    return ops.reshape(x, (-1, 2 * rows + 2, 2 * cols + 2, channels))


def _transformed(matrix: np.ndarray, grid: Grid) -> Grid:
    """Return ``matrix @ grid @ matrix.T`` for a grid of arrays.

    Each entry as one sum: XLA would store what rows and columns one after the other share, and be
    slower (32 ms instead of 17 in the example above).
    """
    values = [value for row in grid for value in row]
    return [[_weighted_sum(np.outer(a, b).ravel(), values) for b in matrix] for a in matrix]


def _weighted_sum(factors: np.ndarray, values: Sequence[Any]) -> Any:
    """Add up ``factors`` times ``values``; those of 0, 1 and -1 cost no multiplication."""
    pairs = zip(factors.tolist(), values, strict=True)
    (first, total), *rest = [(factor, value) for factor, value in pairs if factor]
    total = total if first == 1 else total * first
    for factor, value in rest:
        scaled = value if abs(factor) == 1 else value * abs(factor)
        total = total + scaled if factor > 0 else total - scaled
    return total


def _each(function: Any, first: Grid, second: Grid) -> Grid:
    return [list(map(function, *rows)) for rows in zip(first, second, strict=True)]
