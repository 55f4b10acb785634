"""A first layer whose filters whiten patches of the training images, and is not trained.

Eigenvectors of the patches' covariance over the roots of their eigenvalues, each as a filter and,
so that nothing is lost in the activation, its opposite as another: airbench94.py of
https://github.com/KellerJordan/cifar10-airbench, after tysam-code/hlb-CIFAR10.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

LAYER = "whiten"
IMAGES = 5_000  # enough for a covariance of a few numbers
NUMBERS = 2**24  # of larger images fewer are taken: patches of so many take half a gigabyte
EPSILON = 5e-4  # added to the eigenvalues, of pixels in 0..1


def whiten(model: keras.Model, images: np.ndarray) -> bool:
    """Set the whitening layer of ``model``, if there is one, from raw ``images [N, H, W, C]``.

    From the first 5,000 of them, of large ones from fewer. The bias takes the mean patch away.
    Returns whether there is such a layer. `Trainer.fit` does this for a model of `build_model` that
    was not whitened before.

    Example: ``whiten(build_model("airnet"), FashionMNIST().setup().train.x)``
    """
    layer = next((layer for layer in model.layers if layer.name == LAYER), None)
    if layer is None:
        return False
    height, width, channels, filters = layer.kernel.shape
    count = max(1, min(IMAGES, NUMBERS // math.prod(images.shape[1:])))
    x = np.asarray(images[:count], np.float64) / 255
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, filters // 2)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    # An eigenvector may come with either sign; the filter is the one whose largest number is > 0.
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(len(values))])
    scaled = (vectors / np.sqrt(values + EPSILON))[:, ::-1]  # the strongest first
    kernel = np.concatenate([scaled, -scaled], 1)
    layer.kernel.assign(kernel.reshape(height, width, channels, filters).astype(np.float32))
    layer.bias.assign((-mean @ kernel).astype(np.float32))
    return True


def prepare(model: keras.Model, images: np.ndarray) -> None:
    """Whiten ``model``, unless that was done before, as a bias that is not 0 shows."""
    layer = next((layer for layer in model.layers if layer.name == LAYER), None)
    if layer is not None and not np.asarray(layer.bias.value).any():
        whiten(model, images)
