"""A sheet of predictions: the pictures, what the model saw of them, and what it takes them for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmnist_keras3.evaluation.figure import BLACK, BLUE, GREY, ORANGE, figure
from fmnist_keras3.inference.predictor import Prediction

COLUMNS = 2
LENGTH = 34  # of a name, in letters


def draw(predictions: Sequence[Prediction], path: str | Path, model: str, count: int) -> Path:
    """Write a PNG with original, prepared picture and bars of each of ``predictions``.

    ``count`` is how many there were in all. Raises UserError where the file cannot be written.
    """
    columns = min(COLUMNS, len(predictions))
    rows = math.ceil(len(predictions) / columns)
    subtitle = "each picture, what the model saw of it, and the likeliest classes"
    if count > len(predictions):
        subtitle += f"; the first {len(predictions)} of {count:,}"
    title = f"Predictions of {model}"
    with figure(path, (5.6 * columns, 1.55 * rows), title, subtitle, False) as (_, body):
        widths = [1, 1, 1.9] * columns
        grid = body.add_gridspec(rows, len(widths), width_ratios=widths)
        for number, one in enumerate(predictions):
            row, column = number // columns, 3 * (number % columns)
            for k, image in enumerate((one.original, one.image)):
                axes = body.add_subplot(grid[row, column + k])
                style = {"cmap": "gray", "vmin": 0, "vmax": 255}
                axes.imshow(image, interpolation=("antialiased", "nearest")[k], **style)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                axes.spines[:].set(visible=True, color="#E5E7EB")
                axes.set_anchor("N")
            _bars(body.add_subplot(grid[row, column + 2]), one)
    return Path(path)


def _bars(axes: Any, one: Prediction) -> None:
    shares = [share for _, share in one.top]
    axes.barh(range(len(shares)), shares, 0.34, color=[BLUE, *[GREY] * (len(shares) - 1)])
    for place, (name, share) in enumerate(one.top):
        style: Any = {"va": "bottom", "color": BLACK, "fontweight": "normal" if place else "bold"}
        axes.text(0, place - 0.24, name, **style)
        axes.text(1, place - 0.24, f"{min(100 * share, 99.9):.1f} %", ha="right", **style)
    axes.set(xlim=(0, 1), ylim=(len(shares) - 0.6, -1), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    name = os.path.basename(one.file)
    name = name if len(name) <= LENGTH else f"{name[: LENGTH // 2]}…{name[-LENGTH // 2 + 1 :]}"
    colour = ORANGE if one.unusual else GREY
    axes.text(
        0, -0.95, f"{name}{' · unusual' * one.unusual}", color=colour, va="center", fontsize=8
    )
