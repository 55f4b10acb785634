"""Writes a model as a folder for OpenVINO, and reads it with OpenVINO's runtime."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.ground import files
from fmnist_keras3.inference import to_onnx

if TYPE_CHECKING:
    import keras

MODEL = "model.xml"  # the graph; the weights are in model.bin beside it


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write what ``model`` computes of raw pixels times ``factor``: uint8, any number of images.

    ``softmax`` is put at its end; ``about`` and the labels are in the section ``model_info`` of
    the file, where OpenVINO's own programs look for them.
    """
    openvino = _openvino()
    path.mkdir()
    beside = files.temporary(path / "model.onnx")
    try:
        to_onnx.write(model, beside, softmax, factor, about)
        read = openvino.Core().read_model(beside)
        labels = " ".join(name.replace(" ", "_") for name in about["classes"])
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
        for name, text in {**texts, "model_type": "Classification", "labels": labels}.items():
            read.set_rt_info(text, ["model_info", name])
        openvino.save_model(read, path / MODEL, compress_to_fp16=False)
    finally:
        files.remove(beside)


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes the output of uint8 pixels, by OpenVINO on the CPU in float32."""
    openvino = _openvino()
    # Without the hint it computes in 16 bits where the processor can.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path / MODEL, "CPU", precise)
    return lambda pixels: compiled(pixels)[0]


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which forks to tell a server that it was imported."""
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
