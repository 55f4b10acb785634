"""Models with layers that have no plain form: a process with TensorFlow writes them."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from keras import layers

from fmnist_keras3 import UserError, export
from fmnist_keras3.inference import to_saved_model
from fmnist_keras3.inference.export import FORMATS


@keras.saving.register_keras_serializable("tests.by_tensorflow")
class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def model(*more):
    """A classifier of images 12 x 12 with weights that all count."""
    found = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
            layers.LayerNormalization(),
            layers.PReLU(),
            *more,
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    rng = np.random.default_rng(0)
    for weight in found.trainable_variables:
        weight.assign(np.asarray(weight) + rng.uniform(-0.5, 0.5, weight.shape))
    return found


@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_what_has_no_plain_form_is_written_by_keras_on_tensorflow(format, tmp_path):
    for package in FORMATS[format][2]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    given = model()
    made = export(given, tmp_path / f"m{FORMATS[format][1]}", format)
    assert made.difference <= 2e-5
    assert made.changed == 0
    if format == "saved_model":
        folder = made.path
        about = json.loads((folder / to_saved_model.ABOUT).read_text())
        assert about["classes"] == list(made.class_names)
        # Every variable once, and nothing of an optimizer.
        stored = sum(one.stat().st_size for one in (folder / "variables").iterdir())
        assert stored < 4 * given.count_params() + 4000
    assert sorted(one.name for one in tmp_path.iterdir()) == [made.path.name]


def test_layers_of_ones_own_are_refused_with_both_reasons(tmp_path):
    with pytest.raises(UserError, match=r"Doubled.*--format keras.*TensorFlow: .*Doubled"):
        export(model(Doubled()), tmp_path / "m", "saved_model")
    assert not list(tmp_path.iterdir())


def test_other_formats_say_which_can_write_it(tmp_path):
    with pytest.raises(UserError, match=r"LayerNormalization.*--format keras, saved_model or"):
        export(model(), tmp_path / "m.onnx", "onnx")
