"""`python -m bench.exports RUN...` compares exported files with their models on all test images.

The formats that are exact, and of 8 bits those that can be; with ``--page`` the HTML page, by
weights of 16 and of 8 bits, instead; with ``--families`` all of these, without times, beside what
is stored of other runs.
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

from bench import families  # noqa: F401, whose Module the file of a run names
from fmnist_keras3 import Trainer, export, load_run, runtime
from fmnist_keras3.data import sources
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference.export import BATCH, CALIBRATED, FORMATS, QUANTIZED, Inexact
from fmnist_keras3.runs.load import Run

RESULTS = Path(__file__).parent / "results"
MODES = ("--page", "--families")
PACKAGES = ("keras", "jax", "tensorflow", "onnx", "onnxruntime", "ai-edge-litert", "openvino")
PACKAGES += ("numpy",)


def logits_of(run: Run, test: Split) -> np.ndarray:
    """Return what the model of ``run`` says of all images of ``test``, in float32."""
    return np.asarray(Trainer(enable_progress_bar=False).predict(run.model, test.x))


def measure(
    run: Run, expected: np.ndarray, format: str, quantize: str, test: Split, timed: bool
) -> dict[str, Any]:
    """Return what `export` says of a file, and outputs compared on all images of ``test``."""
    images, (writer, suffix, _) = test.x, FORMATS[format]
    about = {"model": run.summary["model"], "trained_on": run.summary["backend"]}
    about |= {"steps": run.summary["steps"], "format": format, "quantize": quantize}
    outputs = "probabilities" if format == "html" else "logits"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{suffix}"
        try:
            made = export(run, path, format, outputs=outputs, quantize=quantize)
        except Inexact as error:
            return about | {"not_kept": str(error).split("not kept: ")[-1]}
        read = named(writer).read(made.path)
        found = np.concatenate(
            [read(images[i : i + BATCH]) for i in range(0, len(images), BATCH)], dtype=np.float64
        )
        times = made.latencies().items() if timed else ()
    expected = softmax(expected, axis=1) if format == "html" else expected
    row = about | {
        "largest_difference": float(np.abs(found - expected).max()),
        "labels_changed": int((found.argmax(1) != expected.argmax(1)).sum()),
        "accuracy": float((found.argmax(1) == test.y).mean()),
        "original_accuracy": float((expected.argmax(1) == test.y).mean()),
        "bytes": made.size,
        "original_bytes": (run.path / "model.keras").stat().st_size,
    }
    if timed:
        row["milliseconds"] = {str(n): round(pair[1], 3) for n, pair in times}
        row["original_milliseconds"] = {str(n): round(pair[0], 3) for n, pair in times}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| model | trained on | steps | format | largest difference | labels changed | accuracy "
        "| bytes |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        kind = row["format"] if row["quantize"] == "none" else f"{row['format']}, 8 bits"
        kind += ", 16 bits" * (row["format"] == "html" and row["quantize"] == "none")
        start = f"| {row['model']} | {row['trained_on']} | {row['steps']:,} | {kind} |"
        if "not_kept" in row:
            lines.append(f"{start} | | not kept: {row['not_kept']} | |")
            continue
        before, after = (f"{100 * row[k]:.2f} %" for k in ("original_accuracy", "accuracy"))
        cells = (
            *(f"{row['largest_difference']:.1e}", str(row["labels_changed"])),
            *(after if before == after else f"{before} -> {after}", f"{row['bytes']:,}"),
        )
        lines.append(f"{start} {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def forms(mode: str | None) -> list[tuple[str, str]]:
    """Return the formats, each with how it is quantized."""
    exact = [name for name in FORMATS if mode == "--families" or (name == "html") == bool(mode)]
    exact = [name for name in exact if name != "hub"]  # which is a keras file in a folder
    small = {"--page": ("html",), "--families": QUANTIZED, None: CALIBRATED}[mode]
    return [(name, "none") for name in exact] + [(name, "int8") for name in small]


def main() -> None:
    test = sources.load("fashion_mnist").test
    mode = next((word for word in MODES if word in sys.argv), None)
    rows, models = [], []
    for path in sys.argv[1:]:
        if path in MODES:
            continue
        run = load_run(path)
        expected = logits_of(run, test)
        models.append({k: run.summary.get(k) for k in ("model", "backend", "steps")})
        for form in forms(mode):
            rows.append(measure(run, expected, *form, test, mode != "--families"))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            store(mode, rows, models, len(test))


def store(
    mode: str | None, rows: list[dict[str, Any]], models: list[dict[str, Any]], images: int
) -> None:
    """Write what was measured, of the families beside what is stored of others."""
    name = {"--page": "page", "--families": "export/formats", None: "export"}[mode]
    path = RESULTS / f"{name}.json"
    if mode == "--families" and path.exists():
        stored = json.loads(path.read_text())
        others = [model for model in stored["models"] if model not in models]
        rows = [row for row in stored["exports"] if _model(row) in others] + rows
        models = others + models
    result = {
        "command": f"python -m bench.exports {mode or ''} RUN...".replace("  ", " "),
        "compared": ("probabilities" if mode == "--page" else "logits; of html probabilities")
        + ", with the model on the backend of this process",
        "images": images,
        "backend": runtime.choose_backend(),
        "models": models,
        "exports": rows,
        "versions": {name: runtime.version(name) for name in PACKAGES},
        "hardware": runtime.hardware() | {"load_average": round(os.getloadavg()[0], 1)},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    if mode == "--families":
        path.with_suffix(".md").write_text(table(rows))


def _model(row: dict[str, Any]) -> dict[str, Any]:
    return {"model": row["model"], "backend": row["trained_on"], "steps": row["steps"]}


if __name__ == "__main__":
    main()
