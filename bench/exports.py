"""`python -m bench.exports RUN...` compares exported files with their models on all test images.

Those that are exact, and of 8 bits those that can be; with ``--page`` the HTML page, by weights of
16 and of 8 bits, instead.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from fmnist_keras3 import export, load_run, runtime
from fmnist_keras3.data import sources
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference.export import BATCH, CALIBRATED, FORMATS
from fmnist_keras3.runs.load import Run

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "jax", "tensorflow", "onnx", "onnxruntime", "ai-edge-litert", "openvino")
PACKAGES += ("numpy",)


def measure(run: Run, format: str, quantize: str, test: Split, folder: Path) -> dict[str, Any]:
    """Return what `export` says of a file, and outputs compared on all images of ``test``."""
    images, (writer, suffix, _) = test.x, FORMATS[format]
    outputs = "probabilities" if format == "html" else "logits"
    path = folder / f"{run.path.name}-{format}-{quantize}{suffix}"
    made = export(run, path, format, outputs=outputs, quantize=quantize)
    read = named(writer).read(made.path)
    found = np.concatenate(
        [read(images[i : i + BATCH]) for i in range(0, len(images), BATCH)], dtype=np.float64
    )
    expected = run.model.predict(images.astype(np.float32), batch_size=BATCH, verbose=0)
    expected = softmax(expected, axis=1) if format == "html" else expected
    times = made.latencies().items()
    return {
        "model": run.summary["model"],
        "trained_on": run.summary["backend"],
        "format": format,
        "quantize": quantize,
        "largest_difference": float(np.abs(found - expected).max()),
        "labels_changed": int((found.argmax(1) != expected.argmax(1)).sum()),
        "accuracy": float((found.argmax(1) == test.y).mean()),
        "original_accuracy": float((expected.argmax(1) == test.y).mean()),
        "bytes": made.size,
        "original_bytes": (run.path / "model.keras").stat().st_size,
        "milliseconds": {str(n): round(pair[1], 3) for n, pair in times},
        "original_milliseconds": {str(n): round(pair[0], 3) for n, pair in times},
    }


def main() -> None:
    test = sources.load("fashion_mnist").test
    page = "--page" in sys.argv
    runs = [load_run(path) for path in sys.argv[1:] if path != "--page"]
    forms = [(name, "none") for name in FORMATS if (name == "html") == page]
    forms += [(name, "int8") for name in (("html",) if page else CALIBRATED)]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(run, *form, test, Path(folder)) for run in runs for form in forms]
    models = [{k: run.summary[k] for k in ("model", "backend", "test_accuracy")} for run in runs]
    result = {
        "command": "python -m bench.exports RUN..." + " --page" * page,
        "compared": ("probabilities" if page else "logits")
        + ", with the model on the backend of this process",
        "images": len(test),
        "backend": runtime.choose_backend(),
        "models": models,
        "exports": rows,
        "versions": {name: runtime.version(name) for name in PACKAGES},
        "hardware": runtime.hardware() | {"load_average": round(os.getloadavg()[0], 1)},
    }
    path = RESULTS / ("page.json" if page else "export.json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
