"""Writes a model for LiteRT (TensorFlow Lite), and reads it with LiteRT's interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference import to_saved_model
from fmnist_keras3.inference.graph import INPUT

if TYPE_CHECKING:
    import keras

SIGNATURE = "serving_default"


def write(
    model: keras.Model,
    path: Path,
    softmax: bool,
    factor: float,
    about: dict[str, Any],
    calibration: np.ndarray | None = None,
) -> None:
    """Write what ``model`` computes of raw pixels times ``factor``: uint8, any number of images.

    ``softmax`` is put at its end. Behind the model the file is a ZIP archive, as of LiteRT's
    metadata: labels.txt, and ``about`` in about.json. With images for the ``calibration``, uint8,
    it computes in 8 bits. Raises UserError for what LiteRT has no operation for.
    """
    tf = runtime.import_tensorflow_for_data()
    folder = files.temporary(path.with_suffix(""))
    try:
        to_saved_model.write(model, folder, softmax, factor, about)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ({INPUT: one[None]} for one in calibration)
        try:
            with _quietly():
                content = converter.convert()
        except Exception as error:  # of the converter, which has no class for it
            lines = [line for line in str(error).splitlines() if "tf." in line]
            reason = lines[-1] if lines else str(error).splitlines()[0]
            raise UserError(
                f"LiteRT cannot compute the model: {reason.strip()[:200]}. Export it with "
                "--format onnx or saved_model"
            ) from error
    finally:
        files.remove(folder)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:  # readers of the model stop before it
        archive.writestr("labels.txt", "".join(f"{name}\n" for name in about["classes"]))
        archive.writestr("about.json", json.dumps(about, indent=2) + "\n")


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a file's output of uint8 pixels, by LiteRT's interpreter."""
    from ai_edge_litert.interpreter import (  # pyright: ignore[reportMissingImports]
        Interpreter,
    )

    with _quietly():
        interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
        interpreter.allocate_tensors()
    run = interpreter.get_signature_runner(SIGNATURE)

    def outputs(pixels: np.ndarray) -> np.ndarray:
        (found,) = run(**{INPUT: pixels}).values()
        return found

    return outputs


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what the libraries print and warn of their own insides; errors are raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        # The calibration uses an interpreter that TensorFlow will remove.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter", UserWarning)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
