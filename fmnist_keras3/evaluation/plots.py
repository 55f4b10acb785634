"""The plots of a run, each drawn to one PNG file that appears whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fmnist_keras3.evaluation.curves import CURVES, Points, Records, panels
from fmnist_keras3.evaluation.figure import BLACK, BLUE, GREEN, GREY, ORANGE, Picture, sentence
from fmnist_keras3.evaluation.figure import figure as _figure
from fmnist_keras3.evaluation.metrics import CALIBRATION_BINS, Evaluation
from fmnist_keras3.evaluation.sheets import draw_image, short
from fmnist_keras3.ground.files import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

RUN_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
DASHED = (0, (4, 3))
COLOURS = dict(zip(CURVES, (ORANGE, BLUE, GREEN, BLACK), strict=True))
DOT = {"marker": "D", "markersize": 8, "markeredgecolor": "white", "linestyle": "", "zorder": 4}
File = Path | str


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _epoch_panel(body: SubFigure, keys: Sequence[str], key: str, epochs: Iterable[int]) -> Axes:
    """Return the panel of ``key`` beside those of the other ``keys``, with an axis of epochs."""
    axes = body.add_subplot(1, len(keys), keys.index(key) + 1)
    low, high = min(epochs), max(epochs)
    margin = max(0.03 * (high - low), 0.4)
    axes.set(xlabel="epoch", title=key.capitalize())
    axes.set_xlim(low - min(margin, 0.9), high + margin)  # no tick at an epoch 0
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    if key == "accuracy":
        axes.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
    return axes


def _line(axes: Axes, points: Points, label: str, **style: Any) -> Line2D:
    # Markers where points are few: a lone epoch, or one between two NaN, would draw nothing.
    style = {"marker": "o" if len(points) <= 40 else None, **style}
    return axes.plot(list(points), list(points.values()), label=label, **style)[0]


def _mark(axes: Axes, x: float, text: str, colour: str, ha: str = "center") -> None:
    """Draw a dashed line at ``x``, with its text above the panel."""
    axes.axvline(x, color=colour, linewidth=1, linestyle=DASHED, zorder=1)
    above = axes.get_xaxis_transform()
    axes.annotate(text, (x, 1), (0, 4), above, "offset points", ha=ha, color=colour)


def _legend(header: SubFigure, *lines: Line2D) -> None:
    """Draw the legend where it hides no data."""
    header.legend(handles=lines, ncols=len(lines), loc="upper right", borderaxespad=0.9)


def curves(records: Records, path: File, title: str, synthetic=False) -> Path:
    """Draw accuracy and loss over the epochs, see `curves_figure`, to a PNG file."""
    save(Path(path), curves_figure(records, title, synthetic)._repr_png_())
    return Path(path)


def curves_figure(records: Records, title: str, synthetic=False) -> Picture:
    """Draw accuracy and loss over the epochs, train against validation, and the test result.

    Where the weights were averaged there is a line for that, too. ``records``: the objects of
    ``metrics.jsonl``. The best validation epoch is that of the highest accuracy, or of the lowest
    loss where no accuracy was recorded. A quantity without any finite value gets no panel.
    """
    found = panels({at: (records, event, p) for at, (event, p) in CURVES.items()})
    ways = [lines.get(at, ()) for lines in found.values() for at in ("train", "validation")]
    epochs = set().union(*ways)
    best = None
    for key, sign in (("loss", -1), ("accuracy", 1)):
        points = found.get(key, {}).get("validation", {})
        scores = {epoch: sign * value for epoch, value in points.items() if value == value}
        best = max(scores, key=scores.__getitem__) if scores else best
    subtitle = f"{max(epochs)} epoch{'s' if max(epochs) > 1 else ''}" if epochs else ""
    with _figure(None, (10, 3.7), title, subtitle, synthetic) as (header, body):
        if not found:
            sentence(body, "No epoch has been recorded.")
        handles = {}
        for key, lines in found.items():
            axes = _epoch_panel(body, list(found), key, epochs or lines["test"])
            show = _percent if key == "accuracy" else "{:.4f}".format
            for label, points in lines.items():
                style: dict[str, Any] = {"color": COLOURS[label]}
                if label == "test":
                    end, value = max(epochs or points), [v for v in points.values() if v == v][-1]
                    axes.set_title(f"test {show(value)}", loc="right")
                    points = {end: value}
                    style |= DOT
                handles[label] = _line(axes, points, label, **style)
            if best in lines.get("validation", {}):
                text = f"best epoch {best}: {show(lines['validation'][best])}"
                side = "right" if best > np.mean(axes.get_xlim()) else "left"
                _mark(axes, best, text, BLUE, side)
        if handles:
            _legend(header, *handles.values())
        picture: Any = header.figure
    return picture


def confusion_matrix(evaluation: Evaluation, path: File, title: str, synthetic=False) -> Path:
    """Draw the confusion matrix: counts, and what share of the true class they are.

    Correct cells are blue; mistakes are orange on a scale of their own, so that they show beside
    a diagonal a hundred times as large. Above 20 classes the cells carry no numbers.
    """
    confusion, size = evaluation.confusion, len(evaluation.class_names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(size, dtype=bool)
    side = min(max(0.68 * size, 4), 14)
    subtitle = f"{_percent(evaluation.accuracy)} of {confusion.sum():,} images are on the diagonal"
    with _figure(path, (side + 1.8, side + 1.2), title, subtitle, synthetic) as (_, body):
        axes = body.add_subplot()
        worst = max(float(shares[~diagonal].max(initial=0)), 0.05)
        for hide, colours, top in ((~diagonal, "Blues", 1.25), (diagonal, "Oranges", 1.4 * worst)):
            cells = np.ma.masked_array(shares, hide | (confusion == 0))
            axes.imshow(cells, cmap=colours, norm=PowerNorm(0.6, 0, top))
        names = [short(name, 20) for name in evaluation.class_names]
        style = {"rotation": 40 if size <= 20 else 90, "rotation_mode": "anchor"}
        axes.set_xticks(range(size), names, ha="right", **style)
        axes.set_yticks(range(size), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(labelcolor=BLACK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.arange(size + 1) - 0.5, minor=True)
        axes.tick_params(which="minor", size=0)
        axes.grid(False)
        axes.grid(which="minor")
        axes.spines[:].set_visible(False)
        for row, column in np.argwhere(confusion) if size <= 20 else ():
            count, share = confusion[row, column], shares[row, column]
            dark = share > (0.45 if row == column else 0.75 * worst)
            cell: Any = {"ha": "center", "color": "white" if dark else BLACK}
            axes.text(column, row + 0.06, f"{count:,}", va="bottom", fontsize=10, **cell)
            label = _percent(share, 0 if share >= 0.0995 else 1)
            axes.text(column, row + 0.1, label, va="top", fontsize=7.5, **cell)
    return Path(path)


def mistakes(
    x: np.ndarray,
    y: np.ndarray,
    evaluation: Evaluation,
    path: File,
    title: str,
    n: int = 24,
    synthetic=False,
) -> Path:
    """Draw the ``n`` wrong answers that the model was surest of, surest first.

    ``x``: images ``[N, H, W]`` or ``[N, H, W, 1|3|4]``, uint8, or float in 0..1 or 0..255.
    ``y``: labels ``[N]``; both in the order of ``evaluation``, else ValueError.
    """
    probabilities = evaluation.probabilities
    if not len(x) == len(y) == len(probabilities):
        raise ValueError(f"{len(x)} images, {len(y)} labels, {len(probabilities)} evaluated")
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != y)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:n]
    columns, names = 6, evaluation.class_names
    rows = max(math.ceil(len(chosen) / columns), 1)
    subtitle = f"{len(wrong):,} of {len(y):,} images are classified wrongly"
    if len(chosen) < len(wrong):
        subtitle += f"; these are the {len(chosen)} most confident mistakes"
    with _figure(path, (9.6, 1.98 * rows), title, subtitle, synthetic) as (_, body):
        if not len(chosen):
            sentence(body, f"No mistake among {len(y):,} images.")
        for place, index in enumerate(chosen):
            axes = body.add_subplot(rows, columns, place + 1)
            draw_image(axes, x[index])
            axes.set_axis_off()
            axes.set_anchor("N")  # leaves what the cell is higher than wide to the label
            true, taken = (short(names[i], 13) for i in (y[index], predicted[index]))
            # Three digits, and never "100 %": a rounded certainty would be a false one.
            answer = f"→ {taken} {min(100 * confidence[index], 99.9):.3g} %"
            style: Any = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 9}
            for down, colour, text in ((3, BLACK, true), (15, ORANGE, answer)):
                at = axes.annotate(
                    text, (0.5, 0), (0, -down), "axes fraction", color=colour, **style
                )
                at.set_in_layout(False)
    return Path(path)


def examples(
    rows: Sequence[np.ndarray], class_names: Sequence[str], path: File, title: str, synthetic=False
) -> Path:
    """Draw a sheet with one row of images ``[n, H, W, C]`` a class, its name at the left."""
    columns = max(len(row) for row in rows)
    subtitle = f"{columns} examples of each of {len(rows)} classes"
    size = (0.72 * columns + 1.4, 0.74 * len(rows))
    with _figure(path, size, title, subtitle, synthetic) as (_, body):
        for line, (name, row) in enumerate(zip(class_names, rows, strict=True)):
            for column, image in enumerate(row):
                axes = body.add_subplot(len(rows), columns, line * columns + column + 1)
                draw_image(axes, image)
                axes.set(xticks=[], yticks=[])
                label = "" if column else short(name, 13)
                axes.set_ylabel(label, rotation=0, ha="right", va="center", color=BLACK)
    return Path(path)


def calibration(evaluation: Evaluation, path: File, title: str, synthetic=False) -> Path:
    """Draw the reliability diagram above a histogram of the confidence.

    A bar below the diagonal: the model is surer than it is right; above: less sure.
    """
    bins = evaluation.calibration
    centres, width = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, 1 / CALIBRATION_BINS
    used = [part[bins.count > 0] for part in (centres, bins.accuracy, bins.confidence)]
    middle, accuracy, confidence = used
    sure = float(np.average(bins.confidence, weights=bins.count))
    subtitle = (
        f"expected calibration error {_percent(evaluation.calibration_error)}: "
        f"mean confidence {_percent(sure)}, accuracy {_percent(evaluation.accuracy)}"
    )
    with _figure(path, (6.6, 6.6), title, subtitle, synthetic) as (_, body):
        top, bottom = body.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.bar(middle, accuracy, width, color=BLUE, edgecolor="white", label="accuracy")
        low, gap = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
        style = {"color": "#F6C5A5", "edgecolor": ORANGE, "label": "gap to the mean confidence"}
        top.bar(middle, gap, 0.6 * width, low, **style)
        top.plot([0, 1], [0, 1], color=GREY, linestyle=DASHED, label="perfectly calibrated")
        top.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="accuracy")
        top.legend(loc="upper left")
        share = bins.count / bins.count.sum()
        bottom.bar(centres, share, width, color=GREY, edgecolor="white")
        bottom.set(ylabel="share of images", xlabel="confidence")
        for axis in (top.yaxis, bottom.yaxis, bottom.xaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return Path(path)


def learning_rates(
    results: Mapping[str, Sequence[float]],
    marked: int | None,
    path: File | None,
    title: str,
    subtitle: str,
    logarithmic: bool,
    synthetic=False,
) -> Path | Figure:
    """Draw the loss of a search over its learning rates, and the step ``marked``, if any.

    ``results``: lists "lr", "loss" (averaged) and "batch_loss". Returns ``path``, or the figure
    where that is None.
    """
    with _figure(path, (7.5, 4), title, subtitle, synthetic) as (header, body):
        if not results["lr"]:
            sentence(body, "No step had a finite loss.")
        else:
            axes = body.add_subplot()
            rates, averages, losses = (results[name] for name in ("lr", "loss", "batch_loss"))
            (dots,) = axes.plot(rates, losses, "o", c=GREY, ms=3, alpha=0.45, label="of a batch")
            (line,) = axes.plot(rates, averages, c=BLUE, label="averaged")
            if logarithmic:
                axes.set_xscale("log")
                axes.minorticks_off()
                axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
            # A divergence would press the part that matters flat.
            low = min(*losses, *averages)
            height = max(averages[0] - low, 0.1 * abs(averages[0]), 1e-6)
            bounds = (low - 0.1 * height, low + 1.5 * height)
            axes.set(xlabel="learning rate", ylabel="loss", ylim=bounds)
            if marked is not None:
                rate, loss = rates[marked], averages[marked]
                _mark(axes, rate, f"suggestion {rate:.2g}", ORANGE)
                axes.plot(rate, loss, "o", color=ORANGE, markersize=8, markeredgecolor="white")
            _legend(header, line, dots)
        figure: Any = body.figure
    return figure if path is None else Path(path)
