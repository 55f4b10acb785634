"""Sheets of images, and points in the colours of their classes; each is drawn to one PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from fmnist_keras3.evaluation.figure import BLACK, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

File = Path | str


def augmentations(
    images: np.ndarray, blocks: Mapping[str, np.ndarray], path: File, title: str, synthetic=False
) -> Path:
    """Draw ``images [n, H, W, C]`` and below, for each name, what became of them in some epochs.

    ``blocks``: names of augmentations, with images ``[epochs, n, H, W, C]``.
    """
    epochs = len(next(iter(blocks.values())))
    subtitle = f"the same images in {epochs} epochs" + " of each augmentation" * (len(blocks) > 1)
    rows = {"original": images[None], **blocks}
    return sheet([*rows.values()], path, title, subtitle, [*rows], synthetic)


def sheet(
    blocks: Sequence[np.ndarray],
    path: File,
    title: str,
    subtitle: str,
    names: Sequence[str] = (),
    synthetic=False,
) -> Path:
    """Draw blocks of images ``[rows, columns, H, W, C]``, of equal columns, below one another.

    ``names`` stand at the left of the blocks. Images are uint8, or float in 0..1 or 0..255.
    """
    columns, height, width = blocks[0].shape[1:4]
    gap, space = max(1, width // 14), max(2, height // 3)  # between images, and blocks
    lines, places = [], []
    for drawn in blocks:
        picture = np.ones((len(drawn), height + gap, columns, width + gap, 3))
        for line, column in np.ndindex(*drawn.shape[:2]):
            picture[line, :height, column, :width] = pixels(drawn[line, column])[..., :3]
        picture = picture.reshape(-1, columns * (width + gap), 3)
        places.append(sum(map(len, lines)) + (len(picture) - gap) / 2)
        lines += [picture, np.ones_like(picture[:1]).repeat(space, 0)]
    picture = np.concatenate(lines)
    inches = 0.75 / (width + gap)
    size = (picture.shape[1] * inches + 1.5 * bool(names), picture.shape[0] * inches + 0.2)
    with figure(path, size, title, subtitle, synthetic) as (_, body):
        axes = body.add_subplot()
        axes.imshow(picture, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.grid(False)
        axes.set_xticks([])
        marks = places if names else []
        axes.set_yticks(marks, [short(name, 15) for name in names], color=BLACK)
    return Path(path)


def scatter(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    path: File,
    title: str,
    subtitle: str,
    xlabel: str,
    ylabel: str,
    synthetic=False,
) -> Path:
    """Draw ``points [N, 2]`` in the colours of their classes, ``labels [N]``."""
    with figure(path, (8.6, 6.2), title, subtitle, synthetic) as (_, body):
        axes = body.add_subplot()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        colours = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "turbo"]
        for label, name in enumerate(class_names):
            colour = colours(label if len(class_names) <= 10 else label / len(class_names))
            of_class = points[labels == label]
            style: Any = {"s": 6, "alpha": 0.6, "linewidths": 0, "color": colour}
            axes.scatter(*of_class.T, label=short(name, 15), **style)
        handles = body.legend(loc="outside right upper", markerscale=3).legend_handles
        for handle in handles:
            if handle is not None:
                handle.set_alpha(1)
    return Path(path)


def short(name: str, length: int) -> str:
    """Return ``name``, cut to so many characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw one image ``[H, W]`` or ``[H, W, 1|3|4]`` on its own axes."""
    axes.imshow(pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def pixels(image: np.ndarray) -> np.ndarray:
    """Return one image as float 0..1."""
    pixels = np.asarray(image).astype(np.float64)
    bright = image.dtype == np.uint8 or pixels.max() > 1
    return np.clip(pixels / 255 if bright else pixels, 0, 1)
