"""Writes a model as one HTML page that computes it, offline, in any browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.data.dataset import FASHION_CLASSES
from fmnist_keras3.evaluation.report import figure, percent, render
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference.graph import Operation, operations
from fmnist_keras3.inference.predictor import takes

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.runs.load import Run

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("forward.js", "preparation.js", "page.js")
PRECISIONS = {"float16": "16 bits", "int8": "8 bits"}
TOLERANCE = 0.02  # of probabilities, for weights of 16 bits
NEAR = 1e-3  # of probabilities by the same weights
MOST_SIDE = 128  # pixels: a larger image would take a page seconds
MOST_EXAMPLES = 24


def about(
    run: Run | None, pixels: np.ndarray, expected: np.ndarray, energy: float | None, shown: bool
) -> dict[str, Any]:
    """Return what a page tells of a run, with images by which it checks itself.

    ``pixels [N, ...]``, uint8, with the model's outputs ``expected [N, K]``: the first image of
    each class is an example; ``shown``: whether they are pictures of something.
    """
    summary = run.summary if run is not None else {}
    dataset = summary.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    _, first = np.unique(expected.argmax(axis=1), return_index=True)
    first = first[:MOST_EXAMPLES]
    facts = {
        "Trained on": dataset.get("name"),
        "Test accuracy": percent(summary.get("test_accuracy")),
        "Parameters": figure(summary.get("parameters")),
    }
    known = {key: value for key, value in facts.items() if value not in (None, "—")}
    return {
        "examples": pixels[first],
        "expected": expected[first],
        "shown": shown,
        "energy": energy,
        "facts": known,
        "synthetic": dataset.get("name") == "synthetic",
    }


def write(
    model: keras.Model, path: Path, softmax: bool, factor: float, about: dict[str, Any]
) -> None:
    """Write the page of what ``model`` computes of raw pixels times ``factor``.

    ``softmax`` is put at its end; ``about`` is what `about` makes, with "model" and "classes".
    Raises UserError for a model that takes no images, or large ones.
    """
    size, channels = takes(model)
    if max(size) > MOST_SIDE:
        raise UserError(
            f"The model takes images of {size[0]} x {size[1]} pixels; a page computes up to "
            f"{MOST_SIDE} x {MOST_SIDE}. Type --format onnx"
        )
    made = operations(model, softmax, factor, about.get("temperature", 1))
    expected = about["expected"].astype(np.float64)
    if softmax:
        from scipy.special import softmax as of

        expected = of(expected / about.get("temperature", 1), axis=1)
    graph, weights = _packed(made, about["weights"])
    coded = {**graph, "weights": base64.b64encode(weights).decode()}
    # A browser has to come as near as TensorFlow does with the same weights.
    apart = np.abs(_computer(coded)(about["examples"]) - expected).max()
    described = {
        "shape": model.input_shape[1:],
        "size": size,
        "channels": channels or 1,
        "classes": about["classes"],
        "garments": channels in (0, 1) or tuple(about["classes"]) == FASHION_CLASSES,
        "energy": about["energy"],
        "temperature": about.get("temperature", 1),
        "precision": PRECISIONS[about["weights"]],
        "tolerance": float(apart) + NEAR,
        "examples": {
            "pixels": base64.b64encode(about["examples"].tobytes()).decode(),
            "expected": [[round(float(p), 7) for p in row] for row in expected],
            "shown": about["shown"],
        },
        **coded,
    }
    from markupsafe import Markup

    # Inside of a script nothing is escaped, and only "<" could end it.
    data = json.dumps(described, separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    garments = tuple(about["classes"]) == FASHION_CLASSES
    page = render(
        PAGE / "page.html",
        title=f"{about['model']}: try it",
        heading="Which garment is it?" if garments else "What is it?",
        lead=f"Draw, or give a picture: the trained model {about['model']} answers at once. "
        "Everything happens in this page.",
        synthetic=about["synthetic"],
        facts={"Model": about["model"], **about["facts"]},
        model=Markup(data),
        script=Markup(script),
    )
    path.write_bytes(page)


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a page's probabilities, by TensorFlow, from the weights in it.

    What a browser makes of them the page checks itself, when it is opened.
    """
    found = re.search(
        r'<script id="model" type="application/json">(.*?)</script>',
        path.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found is not None
    return _computer(json.loads(found[1]))


def _computer(described: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    from fmnist_keras3.inference.to_saved_model import compute

    tf = runtime.import_tensorflow_for_data()
    made = _unpacked(described)
    return lambda pixels: compute(tf, made, pixels).numpy()


def _packed(made: list[Operation], dtype: str) -> tuple[dict[str, Any], bytes]:
    """Return operations and arrays as JSON, and the arrays' bytes, all little-endian.

    Kernels are of ``dtype``, for each output channel times a float32, so that its largest weight
    is 1 (of int8 127); all else is float32.
    """
    arrays: list[dict[str, Any]] = []
    content = bytearray()
    places: dict[Any, int] = {}  # a layer that is used twice is stored once

    def put(values: np.ndarray, dtype: str, **more: Any) -> int:
        content.extend(bytes(-len(content) % 4))
        about = {"shape": values.shape, "dtype": dtype, "at": len(content), **more}
        content.extend(values.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
        arrays.append(about)
        return len(arrays) - 1

    def kernel(values: np.ndarray) -> int:
        most = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        scale = (np.where(most > 0, most, 1) / (127 if dtype == "int8" else 1)).astype(np.float32)
        codes = values / scale
        return put(np.rint(codes) if dtype == "int8" else codes, dtype, scale=put(scale, "float32"))

    rows = []
    for one in made:
        options = {}
        for name, value in one.options.items():
            if isinstance(value, np.ndarray):
                key = (name == "kernel", value.shape, value.tobytes())
                if key not in places:
                    places[key] = kernel(value) if name == "kernel" else put(value, "float32")
                value = {"array": places[key]}
            options[name] = value
        rows.append({**vars(one), "options": options})
    return {"operations": rows, "arrays": arrays}, bytes(content)


def _unpacked(described: dict[str, Any]) -> list[Operation]:
    content = base64.b64decode(described["weights"])
    arrays: list[np.ndarray] = []
    for one in described["arrays"]:
        dtype = np.dtype(one["dtype"]).newbyteorder("<")
        count = int(np.prod(one["shape"]))
        values = np.frombuffer(content, dtype, count, one["at"]).astype(np.float32)
        values = values.reshape(one["shape"])
        arrays.append(values * arrays[one["scale"]] if "scale" in one else values)
    made = []
    for one in described["operations"]:
        options = {
            name: arrays[value["array"]] if isinstance(value, dict) else _tuples(value)
            for name, value in one["options"].items()
        }
        made.append(
            Operation(
                one["kind"], tuple(one["inputs"]), one["output"], tuple(one["shape"]), options
            )
        )
    return made


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
