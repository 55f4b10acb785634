"""Filters from the training images: white outputs, the same filters each time."""

import keras
import numpy as np
import pytest

from fmnist_keras3.layers import whitening
from fmnist_keras3.layers.whitening import EPSILON, whiten
from fmnist_keras3.models import build_model


@pytest.fixture(scope="module")
def images():
    """Noise that is smoothed, so that neighbours are alike, of two channels."""
    x = np.random.default_rng(0).integers(0, 256, (300, 15, 14, 2)).astype(np.float64)
    x = (x[:, 1:] + x[:, :-1])[:, :, 1:] + 0.5 * (x[:, 1:] + x[:, :-1])[:, :, :-1]
    return (x / 3).astype(np.uint8)


def whitened(images, size):
    model = build_model("airnet", widths=(4,), whiten=size, input_shape=images.shape[1:])
    assert whiten(model, images)
    return model


@pytest.mark.parametrize("size", [2, 3])
def test_outputs_are_white_and_centred(images, size):
    model = whitened(images, size)
    inner = keras.Model(model.inputs[0], model.get_layer("whiten").output)
    y = np.asarray(inner(images), np.float64).reshape(-1, 4 * size * size)
    n = 2 * size * size
    np.testing.assert_allclose(y[:, :n], -y[:, n:], atol=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
    covariance = np.cov(y[:, :n].T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    kernel = np.asarray(model.get_layer("whiten").kernel.value).reshape(n, -1)[:, :n]
    eigenvalues = 1 / np.square(kernel).sum(0) - EPSILON  # the filters are scaled by their roots
    np.testing.assert_allclose(
        np.diag(covariance), eigenvalues / (eigenvalues + EPSILON), rtol=2e-3
    )
    assert (np.diff(eigenvalues) <= 0).all()


def test_signs_are_fixed(images):
    kernel = np.asarray(whitened(images, 2).get_layer("whiten").kernel.value).reshape(8, -1)[:, :8]
    assert (kernel[np.abs(kernel).argmax(0), np.arange(8)] > 0).all()


def test_of_large_images_fewer_are_taken(images, monkeypatch):
    few = whitened(images[:40], 2).get_weights()
    monkeypatch.setattr(whitening, "NUMBERS", 40 * images[0].size)
    for a, b in zip(whitened(images, 2).get_weights(), few, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_filters_are_not_trained(images):
    model = whitened(images, 2)
    layer = model.get_layer("whiten")
    before = [np.asarray(v.value) for v in layer.variables]
    model.fit(images[:20], np.arange(20) % 10, batch_size=10, verbose=0)
    for old, variable in zip(before, layer.variables, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable.value))


def test_other_models_are_left_alone(images):
    model = build_model("airnet", widths=(4,), whiten=0, input_shape=images.shape[1:])
    before = model.get_weights()
    assert not whiten(model, images)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
