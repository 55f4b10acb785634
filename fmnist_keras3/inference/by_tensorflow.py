"""Writes a model whose layers have no known plain form as a SavedModel, by Keras on TensorFlow.

In a process of its own, since the backend of this one cannot be changed; it takes some seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference import to_keras
from fmnist_keras3.inference.graph import INPUT
from fmnist_keras3.runs import archive

if TYPE_CHECKING:
    import keras

REFUSED = "refused: "  # before the reason, among what TensorFlow prints


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write what `to_saved_model` does, from the layers themselves.

    Raises UserError where Keras cannot load or compute them there, as layers of a user's own.
    """
    beside = files.temporary(path.with_suffix(".keras"))
    code = f"from {__name__} import main; main()"
    command = [sys.executable, "-c", code, str(beside), str(path), about["outputs"]]
    # Without the GPU, whose memory this process may hold.
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        to_keras.write(model, beside, softmax, factor, about)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    finally:
        files.remove(beside)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = next((line for line in said if line.startswith(REFUSED)), (said or ["?"])[-1])
        raise UserError(f"Keras on TensorFlow: {reason.removeprefix(REFUSED).strip()[:300]}")


def main() -> None:
    """Write the model of a `.keras` file as a SavedModel: the arguments of the command line."""
    import keras
    import tensorflow as tf

    source, target, output = sys.argv[1:]
    try:
        model = keras.saving.load_model(source, compile=False, safe_mode=True)
        takes = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, INPUT)

        @tf.function(input_signature=[takes], autograph=False)
        def serve(pixels):
            return {output: model(tf.cast(pixels, tf.float32), training=False)}

        module: Any = tf.Module()
        # Named once: Keras' own export keeps every variable twice.
        module.weights = [variable.value for variable in model.variables]
        module.serve = serve
        tf.saved_model.save(module, target, signatures={"serving_default": serve})
    except Exception as error:  # whatever layers raise
        sys.exit(REFUSED + archive.reason(error))
