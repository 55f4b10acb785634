"""The plots of a run, each drawn to one PNG file that appears whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fmnist_keras3.evaluation.metrics import CALIBRATION_BINS, Evaluation
from fmnist_keras3.ground.files import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SYNTHETIC = "generated garments, not Fashion-MNIST"

# Okabe and Ito's palette: told apart with any colour vision, and in grey print.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#1F2328"
GREY, AMBER = "#6B7280", "#F0C000"
RUN_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
DASHES = ("-", "--", ":", "-.")
KEYS = ("accuracy", "loss")

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": BLACK,
    "text.parse_math": False,  # class and run names may hold dollar signs
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 22,  # room for the best epoch's label above the line
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "xtick.color": "#9CA3AF",
    "ytick.color": "#9CA3AF",
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": GREY,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


Records = Sequence[Mapping[str, Any]]


class Picture(Figure):
    """A figure that a notebook shows as it was drawn, with or without pyplot."""

    def _repr_png_(self) -> bytes:
        with _style():
            png = io.BytesIO()
            self.savefig(png, format="png", facecolor="white")
        return png.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Let our style hold: the caller's rcParams neither reach a plot nor change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@contextmanager
def _figure(
    path: Path | str | None, size: tuple[float, float], title: str, subtitle: str, synthetic: bool
) -> Iterator[tuple[SubFigure, SubFigure]]:
    """Give a header and an empty body of ``size`` inches; at the end write them to ``path``."""
    with _style():
        width, height = size
        rows = [0.32, 0.66, height] if synthetic else [0.66, height]
        figure = Picture((width, sum(rows)), dpi=150, layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.12, h_pad=0.08)
        parts: Any = figure.subfigures(len(rows), 1, height_ratios=rows)
        *banner, header, body = parts
        for stripe in banner:
            stripe.set_facecolor(AMBER)
            stripe.text(0.5, 0.47, SYNTHETIC, ha="center", va="center", fontweight="bold")
        header.text(0.16 / width, 0.8, title, va="top", fontsize=13, fontweight="bold")
        header.text(0.16 / width, 0.36, subtitle, va="top", color=GREY)
        yield header, body
        if path is not None:
            save(Path(path), figure._repr_png_())


def _number(value: Any) -> float:
    """Return a finite float, or NaN, which lines leave out, for anything else."""
    finite = isinstance(value, Real) and abs(float(value)) < math.inf
    return float(value) if finite else math.nan


def _series(records: Records, event: str, key: str) -> dict[int, float]:
    """Map epochs to ``key``, the last of each epoch; empty where no value is finite."""
    values = {
        int(record["epoch"]): _number(record.get(key))
        for record in records
        if record.get("event") == event and _number(record.get("epoch")) >= 0
    }
    some = any(math.isfinite(value) for value in values.values())
    return dict(sorted(values.items())) if some else {}


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _epoch_panel(axes: Axes, key: str, epochs: Iterable[int]) -> None:
    low, high = min(epochs), max(epochs)
    margin = max(0.03 * (high - low), 0.4)
    axes.set_xlim(low - min(margin, 0.9), high + margin)  # no tick at an epoch 0
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_title(key.capitalize())
    axes.margins(y=0.12)
    if key == "accuracy":
        axes.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")


def _line(axes: Axes, points: Mapping[int, float], label: str, **style: Any) -> Line2D:
    # Markers where points are few: a lone epoch, or one between two NaN, would draw nothing.
    marker = "o" if len(points) <= 40 else None
    return axes.plot(list(points), list(points.values()), label=label, marker=marker, **style)[0]


def _sentence(body: SubFigure, text: str) -> None:
    body.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=GREY)


def curves(records: Records, path: Path | str, title: str, synthetic: bool = False) -> Path:
    """Draw accuracy and loss over the epochs, see `curves_figure`, to a PNG file."""
    save(Path(path), curves_figure(records, title, synthetic)._repr_png_())
    return Path(path)


def curves_figure(records: Records, title: str, synthetic: bool = False) -> Picture:
    """Draw accuracy and loss over the epochs, train against validation, and the test result.

    Where the weights were averaged there is a line for that, too. ``records``: the objects of
    ``metrics.jsonl``. The best validation epoch is that of the highest accuracy, or of the lowest
    loss where no accuracy was recorded. A quantity without any finite value gets no panel.
    """
    events = {"train": "", "validation": "", "test": "", "averaged": "averaged_"}
    panels = {
        key: [_series(records, "validation" if p else e, p + key) for e, p in events.items()]
        for key in KEYS
    }
    panels = {key: points for key, points in panels.items() if any(points)}
    epochs = {epoch for points in panels.values() for epoch in {**points[0], **points[1]}}
    best = None
    for key, sign in (("loss", -1), ("accuracy", 1)):
        scores = {e: sign * v for e, v in panels.get(key, ({}, {}))[1].items() if v == v}
        best = max(scores, key=scores.__getitem__) if scores else best
    subtitle = f"{max(epochs)} epoch{'s' if max(epochs) > 1 else ''}" if epochs else ""
    with _figure(None, (10, 3.7), title, subtitle, synthetic) as (header, body):
        if not panels:
            _sentence(body, "No epoch has been recorded.")
        handles = {}
        for index, (key, (train, validation, test, averaged)) in enumerate(panels.items()):
            axes = body.add_subplot(1, len(panels), index + 1)
            show = _percent if key == "accuracy" else "{:.4f}".format
            _epoch_panel(axes, key, epochs or test)
            if train:
                handles["train"] = _line(axes, train, "train", color=ORANGE)
            if validation:
                handles["validation"] = _line(axes, validation, "validation", color=BLUE)
            if averaged:
                name = "validation, averaged weights"
                handles[name] = _line(axes, averaged, name, color=GREEN)
            if test:
                end, value = max(epochs or test), [v for v in test.values() if v == v][-1]
                style = {"markersize": 8, "color": BLACK, "markeredgecolor": "white", "zorder": 4}
                handles["test"] = axes.plot(end, value, "D", label="test", **style)[0]
                axes.set_title(f"test {show(value)}", loc="right")
            if best in validation:
                axes.axvline(best, color=BLUE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                late = best > np.mean(axes.get_xlim())
                axes.annotate(
                    f"best epoch {best}: {show(validation[best])}",
                    (best, 1), (0, 4), xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points", ha="right" if late else "left", color=BLUE,
                )  # fmt: skip
        if handles:  # in the header, where a legend hides no data
            lines, place = list(handles.values()), {"loc": "upper right", "borderaxespad": 0.9}
            header.legend(handles=lines, ncols=len(lines), **place)
        picture: Any = header.figure
    return picture


def _shared(runs: Mapping[str, Records], event: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return the points of ``event`` by key and run, without those that have none."""
    panels = {}
    for key in KEYS:
        lines = {name: _series(records, event, key) for name, records in runs.items()}
        if lines := {name: points for name, points in lines.items() if points}:
            panels[key] = lines
    return panels


def compare(runs: Mapping[str, Records], path: Path | str, title: str, synthetic=False) -> Path:
    """Draw the validation curves of several runs, by name, over one another.

    Those of the training where no run has been validated.
    """
    validated = _shared(runs, "validation")
    panels = validated or _shared(runs, "train")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    subtitle = f"{len(names)} of {len(runs)} runs have been validated"
    if not validated:
        subtitle = "no run has been validated: the curves are of the training"
    height = 3.5 + 0.2 * math.ceil(len(names) / 2)
    with _figure(path, (10, height), title, subtitle, synthetic) as (_, body):
        handles = {}
        if not panels:
            _sentence(body, "No run has recorded an epoch.")
        for index, (key, lines) in enumerate(panels.items()):
            axes = body.add_subplot(1, len(panels), index + 1)
            _epoch_panel(axes, key, {epoch for points in lines.values() for epoch in points})
            for name, points in lines.items():
                number = names.index(name)
                dashes = DASHES[number // len(RUN_COLOURS) % len(DASHES)]
                colour = RUN_COLOURS[number % len(RUN_COLOURS)]
                line = _line(axes, points, name, color=colour, linestyle=dashes)
                handles.setdefault(name, line)
        if handles:
            body.legend(handles=handles.values(), loc="outside lower left", ncols=2)
    return Path(path)


def confusion_matrix(
    evaluation: Evaluation, path: Path | str, title: str, synthetic: bool = False
) -> Path:
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
        names = [_short(name, 20) for name in evaluation.class_names]
        turn = 40 if size <= 20 else 90
        axes.set_xticks(range(size), names, rotation=turn, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(labelcolor=BLACK)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.tick_params(which="minor", size=0)
        axes.grid(False)
        axes.grid(which="minor")
        axes.spines[:].set_visible(False)
        for (row, column), count in np.ndenumerate(confusion if size <= 20 else np.zeros((0, 0))):
            if count:
                share = shares[row, column]
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
    path: Path | str,
    title: str,
    n: int = 24,
    synthetic: bool = False,
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
    columns = 6
    rows = max(math.ceil(len(chosen) / columns), 1)
    subtitle = f"{len(wrong):,} of {len(y):,} images are classified wrongly"
    if len(chosen) < len(wrong):
        subtitle += f"; these are the {len(chosen)} most confident mistakes"
    with _figure(path, (9.6, 1.98 * rows), title, subtitle, synthetic) as (_, body):
        if not len(chosen):
            _sentence(body, f"No mistake among {len(y):,} images.")
        for place, index in enumerate(chosen):
            axes = body.add_subplot(rows, columns, place + 1)
            axes.imshow(_pixels(x[index]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            axes.set_anchor("N")  # leaves what the cell is higher than wide to the label
            names = [_short(evaluation.class_names[i], 13) for i in (y[index], predicted[index])]
            # Three digits, and never "100 %": a rounded certainty would be a false one.
            answer = f"→ {names[1]} {min(100 * confidence[index], 99.9):.3g} %"
            for line, colour, text in ((0, BLACK, names[0]), (1, ORANGE, answer)):
                axes.annotate(
                    text, (0.5, 0), (0, -3 - 12 * line), xycoords="axes fraction", fontsize=9,
                    textcoords="offset points", ha="center", va="top", color=colour,
                ).set_in_layout(False)  # fmt: skip
    return Path(path)


def examples(
    rows: Sequence[np.ndarray],
    class_names: Sequence[str],
    path: Path | str,
    title: str,
    synthetic: bool = False,
) -> Path:
    """Draw a sheet with one row of images ``[n, H, W, C]`` a class, its name at the left."""
    columns = max(len(row) for row in rows)
    subtitle = f"{columns} examples of each of {len(rows)} classes"
    size = (0.72 * columns + 1.4, 0.74 * len(rows))
    with _figure(path, size, title, subtitle, synthetic) as (_, body):
        for line, (name, row) in enumerate(zip(class_names, rows, strict=True)):
            for column, image in enumerate(row):
                axes = body.add_subplot(len(rows), columns, line * columns + column + 1)
                axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                if column == 0:
                    axes.set_ylabel(
                        _short(name, 13), rotation=0, ha="right", va="center", color=BLACK
                    )
    return Path(path)


def augmentations(
    images: np.ndarray,
    blocks: Mapping[str, np.ndarray],
    path: Path | str,
    title: str,
    synthetic: bool = False,
) -> Path:
    """Draw ``images [n, H, W, C]`` and below, for each name, what became of them in some epochs.

    ``blocks``: names of augmentations, with images ``[epochs, n, H, W, C]``.
    """
    rows = {"original": images[None], **blocks}
    columns, (height, width) = len(images), images.shape[1:3]
    gap, space = max(1, width // 14), max(2, height // 3)  # between images, and blocks
    lines, at, places = [], 0, []
    for drawn in rows.values():
        sheet = np.ones((len(drawn), height + gap, columns, width + gap, 3))
        for line, column in np.ndindex(*drawn.shape[:2]):
            pixels = _pixels(drawn[line, column])
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
            sheet[line, :height, column, :width] = pixels
        lines += [sheet.reshape(-1, columns * (width + gap), 3), np.ones((space, 1, 3))]
        places.append(at + (len(lines[-2]) - gap) / 2)
        at += len(lines[-2]) + space
    picture = np.concatenate([np.broadcast_to(s, (len(s), *lines[0].shape[1:])) for s in lines])
    epochs = len(next(iter(blocks.values())))
    subtitle = f"the same images in {epochs} epochs" + " of each augmentation" * (len(blocks) > 1)
    inches = 0.75 / (width + gap)
    size = (picture.shape[1] * inches + 1.5, picture.shape[0] * inches + 0.2)
    with _figure(path, size, title, subtitle, synthetic) as (_, body):
        axes = body.add_subplot()
        axes.imshow(picture, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks(places, [_short(name, 15) for name in rows], color=BLACK)
    return Path(path)


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return one image as float 0..1, ``[H, W]`` or ``[H, W, 3|4]``."""
    pixels = np.asarray(image).astype(np.float64)
    bright = image.dtype == np.uint8 or pixels.max() > 1
    pixels = np.clip(pixels / 255 if bright else pixels, 0, 1)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def calibration(
    evaluation: Evaluation, path: Path | str, title: str, synthetic: bool = False
) -> Path:
    """Draw the reliability diagram above a histogram of the confidence.

    A bar below the diagonal: the model is surer than it is right; above: less sure.
    """
    bins = evaluation.calibration
    used = bins.count > 0
    centres = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    width = 1 / CALIBRATION_BINS
    sure = float(np.average(bins.confidence, weights=bins.count))
    subtitle = (
        f"expected calibration error {_percent(evaluation.calibration_error)}: "
        f"mean confidence {_percent(sure)}, accuracy {_percent(evaluation.accuracy)}"
    )
    with _figure(path, (6.6, 6.6), title, subtitle, synthetic) as (_, body):
        top, bottom = body.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        low = np.minimum(bins.accuracy, bins.confidence)[used]
        gap = np.abs(bins.accuracy - bins.confidence)[used]
        style = {"width": width, "edgecolor": "white"}
        top.bar(centres[used], bins.accuracy[used], color=BLUE, label="accuracy", **style)
        style["edgecolor"], label = ORANGE, "gap to the mean confidence"
        style["width"] *= 0.6
        top.bar(centres[used], gap, bottom=low, color="#F6C5A5", label=label, **style)
        top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), label="perfectly calibrated")
        top.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="accuracy")
        top.legend(loc="upper left")
        share = bins.count / bins.count.sum()
        bottom.bar(centres, share, color=GREY, edgecolor="white", width=width)
        bottom.set(ylabel="share of images", xlabel="confidence")
        for axis in (top.yaxis, bottom.yaxis, bottom.xaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return Path(path)


def learning_rates(
    results: Mapping[str, Sequence[float]],
    marked: int | None,
    path: Path | str | None,
    title: str,
    subtitle: str,
    logarithmic: bool,
    synthetic: bool = False,
) -> Path | Figure:
    """Draw the loss of a search over its learning rates, and the step ``marked``, if any.

    ``results``: lists "lr", "loss" (averaged) and "batch_loss". Returns ``path``, or the figure
    where that is None.
    """
    with _figure(path, (7.5, 4), title, subtitle, synthetic) as (header, body):
        if not results["lr"]:
            _sentence(body, "No step had a finite loss.")
        else:
            axes = body.add_subplot()
            rates, averages = results["lr"], results["loss"]
            style: dict[str, Any] = {"color": GREY, "markersize": 3, "alpha": 0.45}
            dots = axes.plot(rates, results["batch_loss"], "o", label="of a batch", **style)[0]
            line = axes.plot(rates, averages, color=BLUE, label="averaged")[0]
            if logarithmic:
                axes.set_xscale("log")
                axes.minorticks_off()
                axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
            axes.set_xlabel("learning rate")
            axes.set_ylabel("loss")
            # A divergence would press the part that matters flat.
            low = min(*results["batch_loss"], *averages)
            height = max(averages[0] - low, 0.1 * abs(averages[0]), 1e-6)
            axes.set_ylim(low - 0.1 * height, low + 1.5 * height)
            if marked is not None:
                rate, loss = rates[marked], averages[marked]
                axes.axvline(rate, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                axes.plot(rate, loss, "o", color=ORANGE, markersize=8, markeredgecolor="white")
                axes.annotate(
                    f"suggestion {rate:.2g}", (rate, 1), (0, 4), ha="center", color=ORANGE,
                    xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                )  # fmt: skip
            place = {"loc": "upper right", "borderaxespad": 0.9}
            header.legend(handles=[line, dots], ncols=2, **place)
        figure: Any = body.figure
    return figure if path is None else Path(path)
