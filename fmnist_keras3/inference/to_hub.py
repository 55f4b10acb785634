"""Writes a model as a folder for the Hugging Face hub: Keras' own files, and a model card."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.evaluation.report import Run as Records
from fmnist_keras3.evaluation.report import read_run
from fmnist_keras3.ground import files
from fmnist_keras3.inference import to_keras
from fmnist_keras3.layers.keras_private import without_tensorflow

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.runs.load import Run

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "page" / "card.md"
SETTINGS = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "label_smoothing",
)
SETTINGS += ("dropout", "l2", "augment", "ema", "seed", "precision", "recipe")


def about(run: Run | None, outputs: str, takes: tuple[int, ...]) -> dict[str, Any]:
    """Return what the card tells of a run; little of a model without one."""
    records = read_run(run.path) if run is not None else Records(Path())
    summary, evaluation = records.summary, records.evaluation
    known = {
        name: records.config[name]
        for name in SETTINGS
        if records.config.get(name) not in (None, "", [])
    }
    known |= {name: summary[name] for name in ("backend", "device") if summary.get(name)}
    versions = summary.get("versions")
    if isinstance(versions, dict):
        known["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    if summary.get("command"):
        known["command"] = f"`{summary['command']}`"
    return {
        "dataset": records.dataset.get("name"),
        "synthetic": records.synthetic,
        "accuracy": _number(summary.get("test_accuracy")),
        "loss": _number(summary.get("test_loss")),
        "calibration": _number(evaluation.get("calibration_error")),
        "examples": evaluation.get("examples", "the"),
        "scores": records.scores,
        "training": known,
        "outputs": outputs,
        "takes": f"images of {' x '.join(map(str, takes))}, raw pixels 0..255",
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) and np.isfinite(value) else None


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write the folder: what a .keras file holds, unpacked as the hub wants it, and the card.

    ``about`` is as for `to_keras.write`, with "card", which `about` makes.
    """
    from jinja2 import Environment, StrictUndefined

    about = dict(about)
    card = about.pop("card") | {
        "name": about["model"],
        "classes": about["classes"],
        "parameters": f"{model.count_params():,}",
        "temperature": about.get("temperature"),
    }
    path.mkdir()
    packed = files.temporary(path.parent / "model.keras")
    try:
        to_keras.write(model, packed, softmax, factor, about)
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(path)
    finally:
        files.remove(packed)
    environment = Environment(
        trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(card)
    (path / CARD).write_text(text, encoding="utf-8")
    (path / "classes.json").write_text(json.dumps(about["classes"], indent=2) + "\n")


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes the output of uint8 pixels, by Keras, from the folder."""
    import keras

    with without_tensorflow():
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return lambda pixels: np.asarray(model.predict_on_batch(pixels.astype(np.float32)))
