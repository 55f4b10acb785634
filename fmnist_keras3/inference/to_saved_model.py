"""Writes a model as TensorFlow's SavedModel, of plain operations of ``tf.nn``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference import by_tensorflow
from fmnist_keras3.inference.graph import INPUT, Operation, Unwritable, operations

if TYPE_CHECKING:
    import keras

SELU, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # of Klambauer et al. 2017
ABOUT = "assets.extra/about.json"  # a folder that TensorFlow leaves to others


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write what ``model`` computes of raw pixels times ``factor``: uint8, any number of images.

    ``softmax`` is put at its end; ``about`` goes into a JSON file inside the folder. A model with
    layers that have no known plain form is written by Keras on TensorFlow.
    """
    try:
        made = operations(model, softmax, factor, about.get("temperature", 1))
    except Unwritable as unknown:
        try:
            by_tensorflow.write(model, path, softmax, factor, about)
        except UserError as error:
            text = str(unknown).replace(", saved_model or litert", "")
            raise UserError(f"{text} ({error})") from error
    else:
        _write_plain(made, model.input_shape[1:], path, about["outputs"])
    (path / ABOUT).parent.mkdir()
    (path / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def _write_plain(made: list[Operation], shape: tuple[int, ...], path: Path, output: str) -> None:
    tf = runtime.import_tensorflow_for_data()
    module, made = tf.Module(), [_with_variables(tf, one) for one in made]
    module.weights = [
        value for one in made for value in one.options.values() if isinstance(value, tf.Variable)
    ]

    takes = [tf.TensorSpec([None, *shape], tf.uint8, INPUT)]

    @tf.function(input_signature=takes, autograph=False)
    def serve(pixels):
        return {output: compute(tf, made, pixels)}

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a SavedModel's output of uint8 pixels."""
    tf = runtime.import_tensorflow_for_data()
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]  # which lives no longer than what was loaded

    def run(pixels: np.ndarray) -> np.ndarray:
        (output,) = serve(**{INPUT: tf.constant(pixels)}).values()
        return output.numpy()

    run.loaded = loaded  # type: ignore[attr-defined]
    return run


def compute(tf: Any, made: Sequence[Operation], pixels: Any) -> Any:
    """Return the last of the operations, of ``pixels``, with TensorFlow's functions."""
    values = {INPUT: tf.cast(pixels, tf.float32)}
    for one in made:
        values[one.output] = _compute(tf, one, [values[name] for name in one.inputs])
    return values[one.output]


def _with_variables(tf: Any, one: Operation) -> Operation:
    """Make the weights variables, which a file keeps beside the graph."""
    weights = {
        name: tf.Variable(value, trainable=False)
        for name, value in one.options.items()
        if isinstance(value, np.ndarray)
    }
    return dataclasses.replace(one, options=one.options | weights)


def _compute(tf: Any, one: Operation, inputs: list[Any]) -> Any:
    """Return what an operation makes of its inputs."""
    x, options = inputs[0], one.options
    match one.kind:
        case "affine":
            return x * options["scale"] + options["shift"]
        case "conv":
            window = {"padding": options["padding"].upper(), "dilations": options["dilation"]}
            y = tf.nn.conv2d(x, options["kernel"], options["strides"], **window)
            return y + options["bias"]
        case "dense":
            return tf.tensordot(x, options["kernel"], 1) + options["bias"]
        case "max_pool" | "average_pool":
            pool = {"max_pool": tf.nn.max_pool2d, "average_pool": tf.nn.avg_pool2d}[one.kind]
            return pool(x, options["window"], options["strides"], options["padding"].upper())
        case "global_max":
            return tf.reduce_max(x, (1, 2), keepdims=options["keepdims"])
        case "global_average":
            return tf.reduce_mean(x, (1, 2), keepdims=options["keepdims"])
        case "add" | "subtract" | "multiply" | "maximum" | "minimum":
            return getattr(tf, one.kind)(*inputs)
        case "concatenate":
            return tf.concat(inputs, options["axis"])
        case "reshape":
            return tf.reshape(x, (-1, *one.shape))
        case "transpose":
            return tf.transpose(x, options["order"])
        case "pad":
            return tf.pad(x, options["amounts"])
        case "crop":
            begins = [before for before, _ in options["amounts"]]
            return tf.slice(x, begins, (-1, *one.shape))
        case "activation":
            return _activate(tf, x, options["name"], options.get("value"))
    raise NotImplementedError(one.kind)


def _activate(tf: Any, x: Any, name: str, value: float | None) -> Any:
    """Return an activation, of operations that LiteRT has, too."""
    match name:
        case "linear":
            return tf.identity(x)
        case "exponential":
            return tf.exp(x)
        case "elu":
            return tf.where(x > 0, x, value * tf.nn.elu(x))
        case "selu":
            return SELU * tf.where(x > 0, x, SELU_ALPHA * tf.nn.elu(x))
        case "leaky_relu":
            return tf.nn.leaky_relu(x, value)
        case "hard_sigmoid":
            return tf.nn.relu6(x + 3) / 6
        case "hard_silu":
            return x * tf.nn.relu6(x + 3) / 6
        case "softplus":
            return _softplus(tf, x)
        case "softsign":
            return x / (1 + tf.abs(x))
        case "mish":
            return x * tf.tanh(_softplus(tf, x))
    return getattr(tf.nn, name)(x)


def _softplus(tf: Any, x: Any) -> Any:
    return tf.nn.relu(x) + tf.math.log(1 + tf.exp(-tf.abs(x)))
