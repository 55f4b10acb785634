"""The compiled dropout: its rate and scale, a new mask a call, the plain layer's file."""

import keras
import numpy as np
import pytest

from fmnist_keras3 import build_model
from fmnist_keras3.engines import make_engine
from fmnist_keras3.layers.fast import Dropout, traced_for_xla_cpu

SHAPE = (256, 500)


@pytest.fixture(scope="module")
def masks():
    """Two calls in one compiled program, on ones."""
    engine, layer = make_engine(build_model("lenet")), Dropout(0.3, seed=3)

    def twice(x):
        return layer(x, training=True), layer(x, training=True), layer(x, training=False)

    with traced_for_xla_cpu():
        return [np.asarray(y) for y in engine.jit(twice)(engine.place(np.ones(SHAPE, np.float32)))]


def test_the_share_that_is_kept_and_its_scale(masks):
    kept = masks[0] > 0
    assert kept.mean() == pytest.approx(0.7, abs=0.005)
    assert np.allclose(masks[0][kept], 1 / 0.7)
    # no row, column or pair of neighbours is favoured (standard deviations of a fair coin)
    assert kept.mean(1).std() == pytest.approx(np.sqrt(0.21 / SHAPE[1]), rel=0.2)
    assert kept.mean(0).std() == pytest.approx(np.sqrt(0.21 / SHAPE[0]), rel=0.2)
    assert abs(np.corrcoef(kept[:, 1:].ravel(), kept[:, :-1].ravel())[0, 1]) < 0.02


def test_calls_draw_independent_masks_and_inference_none(masks):
    first, second = masks[0] > 0, masks[1] > 0
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    assert np.all(masks[2] == 1)


def test_seeds_differ_and_the_file_names_the_plain_layer():
    layer = Dropout(0.3, seed=3)
    config = keras.saving.serialize_keras_object(layer)
    assert (config["module"], config["class_name"]) == ("keras.layers", "Dropout")
    engine = make_engine(build_model("lenet"))
    ones = engine.place(np.ones((64, 64), np.float32))

    def mask(seed):
        layer = Dropout(0.5, seed=seed)
        with traced_for_xla_cpu():
            return np.asarray(engine.jit(lambda x: layer(x, training=True))(ones))

    a, b, same = mask(1), mask(2), mask(1)
    assert np.array_equal(a, same)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05
