"""`fmnist export`: a file of a trained model for other programs, checked against the model."""

from __future__ import annotations

import sys
from pathlib import Path

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen


def export(
    target: str,
    format: str,
    outputs: str,
    scale: str,
    quantize: str = "none",
    output: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
) -> int:
    """Write and check the file, and print size and speed; returns 1 if it computes other values.

    The arguments are those of `inference.export.export`; ``output`` is a name like "model.onnx",
    of folders that of the format, unless it is given.
    """
    runtime.prepare()
    runtime.import_keras_alone()
    from fmnist_keras3.inference import export as exports

    suffix = exports.FORMATS[format][1]
    output = output or (f"model{suffix}" if suffix else format)
    exports.check(output, format, outputs, float(scale), quantize)
    try:
        options = {"outputs": outputs, "scale": float(scale), "quantize": quantize}
        options |= {"data": data, "data_dir": data_dir}
        made = exports.export(target, output, format, **options)
    except exports.Inexact as error:
        print(f"fmnist: {error}", file=sys.stderr)
        return 1
    if made.scale_unknown:
        note = "Note: of a model trained on pixels divided by 255, export with --scale 1."
        print(note, file=sys.stderr)
    from rich.table import Table

    times = made.latencies()
    path = Path(target)
    original = path / "model.keras" if path.is_dir() else path
    table = Table()
    for name in ("", "size", *(f"batch of {batch}" for batch in times)):
        table.add_column(name, justify="right" if name else "left")
    for k, (name, size) in enumerate(
        ((original.name, original.stat().st_size), (Path(output).name, made.size))
    ):
        cells = [f"{pair[k]:.3g} ms" for pair in times.values()]
        table.add_row(name, f"{size / 1e6:.2f} MB", *cells)
    console = screen.console()
    console.print(table)
    line = (
        f": {made.outputs} for raw pixels; largest difference from the model "
        f"{made.difference:.1e}, {made.changed} labels changed ({made.images} {made.data})"
    )
    console.print(screen.styled((output, "bold"), line), soft_wrap=True)
    if made.accuracies is not None:
        line = " -> ".join(f"{100 * accuracy:.2f} %" for accuracy in made.accuracies)
        console.print(screen.styled("accuracy, before and in 8 bits: ", (line, "bold")))
    return 0
