"""`python -m bench.exports RUN...` compares exported files with their models on all test images.

With ``--page`` the HTML page, whose weights have 16 bits, instead of the exact formats.
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
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference.export import BATCH, FORMATS
from fmnist_keras3.runs.load import Run

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "jax", "tensorflow", "onnx", "onnxruntime", "numpy")


def measure(run: Run, format: str, images: np.ndarray, folder: Path) -> dict[str, Any]:
    """Return what `export` says of a file, and logits compared on all ``images``."""
    writer, suffix, _ = FORMATS[format]
    outputs = "probabilities" if format == "html" else "logits"
    made = export(run, folder / f"{run.path.name}-{format}{suffix}", format, outputs=outputs)
    read = named(writer).read(made.path)
    found = np.concatenate(
        [read(images[i : i + BATCH]) for i in range(0, len(images), BATCH)], dtype=np.float64
    )
    expected = run.model.predict(images.astype(np.float32), batch_size=BATCH, verbose=0)
    expected = softmax(expected, axis=1) if format == "html" else expected
    times = made.latencies().items()
    return {
        "trained_on": run.summary["backend"],
        "format": format,
        "largest_difference": float(np.abs(found - expected).max()),
        "labels_changed": int((found.argmax(1) != expected.argmax(1)).sum()),
        "bytes": made.size,
        "original_bytes": (run.path / "model.keras").stat().st_size,
        "milliseconds": {str(n): round(pair[1], 3) for n, pair in times},
        "original_milliseconds": {str(n): round(pair[0], 3) for n, pair in times},
    }


def main() -> None:
    images = sources.load("fashion_mnist").test.x
    page = "--page" in sys.argv
    runs = [load_run(path) for path in sys.argv[1:] if path != "--page"]
    formats = [name for name in FORMATS if (name == "html") == page]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(run, name, images, Path(folder)) for run in runs for name in formats]
    models = [{k: run.summary[k] for k in ("model", "backend", "test_accuracy")} for run in runs]
    result = {
        "command": "python -m bench.exports RUN..." + " --page" * page,
        "compared": ("probabilities" if page else "logits")
        + ", with the model on the backend of this process",
        "images": len(images),
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
