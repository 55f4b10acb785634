"""Writes a model as a `.keras` file for use: without optimizer, in float32, with its classes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference.graph import is_graph
from fmnist_keras3.layers.keras_private import all_layers, without_tensorflow
from fmnist_keras3.runs import archive

if TYPE_CHECKING:
    import keras

METADATA = "metadata.json"


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write ``model`` so that it takes raw pixels, which come times ``factor``, in plain Keras.

    ``softmax`` is put at its end; ``about`` goes into the file's metadata, under "fmnist".
    """
    import keras

    model = in_float32(model)
    if softmax or factor != 1:
        inputs = keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype)
        before = [keras.layers.Rescaling(factor)] * (factor != 1)
        after = [keras.layers.Softmax(name=about["outputs"])] * softmax
        if softmax and "temperature" in about:
            after.insert(0, keras.layers.Rescaling(1 / about["temperature"]))
        model = keras.Sequential([inputs, *before, model, *after])
    beside = files.temporary(path)
    try:
        with without_tensorflow():
            model.save(beside)
        with zipfile.ZipFile(beside) as given, zipfile.ZipFile(path, "w") as made:
            for name in given.namelist():
                content = given.read(name)
                if name == METADATA:
                    content = json.dumps({**json.loads(content), "fmnist": about}).encode()
                made.writestr(name, content)
    finally:
        files.remove(beside)


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a file's output of uint8 pixels, by Keras on this backend."""
    import keras

    with without_tensorflow():
        archive.check(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return lambda pixels: np.asarray(model.predict_on_batch(pixels.astype(np.float32)))


def is_float32(model: Any) -> bool:
    """Tell whether all layers of ``model`` compute in float32 and keep float32 weights."""
    policies = {layer.dtype_policy.name for layer in all_layers(model)}
    return policies == {"float32"}


def in_float32(model: Any) -> keras.Model:
    """Return a model of its own, not compiled, with the weights of ``model`` and all in float32.

    Raises UserError for a model that Keras cannot make again from its configuration.
    """
    import keras

    if not is_graph(model):
        raise UserError(
            f"{type(model).__name__} is no functional or sequential model, which alone can be "
            "exported. Save it with model.save(path)."
        )
    try:
        with without_tensorflow():
            config = keras.saving.serialize_keras_object(model)
            config = {**_plain(config), "compile_config": None}
            made: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
        made.set_weights([np.asarray(w, np.float32) for w in model.get_weights()])
    except Exception as error:  # whatever its layers raise
        reason = archive.reason(error)
        raise UserError(f"{model.name} cannot be made again by Keras: {reason}") from error
    return made


def _plain(config: Any) -> Any:
    """Return a configuration with float32 in the place of every policy of layers."""
    if isinstance(config, dict):
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return {**config, "config": {"name": "float32"}}
        return {key: _plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(map(_plain, config))
    return config
