"""How well a model tells images that are spoiled: six ways, in five strengths.

In the manner of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), with ways and
strengths of our own for small images: figures cannot be compared with those of published sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

STRENGTHS = (1, 2, 3, 4, 5)


def _noise(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return x + 255 * sigma * rng.standard_normal(x.shape, np.float32)


def _blur(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    sigma = sigma * min(x.shape[1:3]) / 28
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _shift(x: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Shift each image up, down, left or right; what comes in has the edge's value."""
    pixels = max(1, round(pixels * min(x.shape[1:3]) / 28))
    made, ways = np.empty_like(x), rng.integers(0, 4, len(x))
    padded = np.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "edge")
    h, w = x.shape[1:3]
    for way, (top, left) in enumerate(((0, 1), (2, 1), (1, 0), (1, 2))):
        rows, columns = (slice(n * pixels, n * pixels + m) for n, m in ((top, h), (left, w)))
        made[ways == way] = padded[ways == way, rows, columns]
    return made


def _rotation(x: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    made, left = np.empty_like(x), rng.random(len(x)) < 0.5
    for chosen, angle in ((left, degrees), (~left, -degrees)):
        turned = {"axes": (1, 2), "reshape": False, "order": 1, "mode": "nearest"}
        made[chosen] = ndimage.rotate(x[chosen], angle, **turned) if chosen.any() else 0
    return made


def _contrast(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return mean + factor * (x - mean)


def _brightness(x: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    return x + 255 * more


Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),  # deviation, of white
    "blur": (_blur, (0.5, 0.75, 1, 1.5, 2)),  # deviation in pixels, at 28 x 28
    "shift": (_shift, (1, 2, 3, 4, 5)),  # pixels, at 28 x 28
    "rotation": (_rotation, (5, 10, 15, 22, 30)),  # degrees, either way
    "contrast": (_contrast, (0.75, 0.5, 0.35, 0.25, 0.15)),  # about the image's mean
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added, of white
}


def corrupted(images: np.ndarray, name: str, strength: int, seed: int = 0) -> np.ndarray:
    """Return uint8 ``images [N, H, W, C]`` spoiled by one of `CORRUPTIONS`, strength 1..5."""
    corrupt, values = CORRUPTIONS[name]
    rng = np.random.default_rng((seed, list(CORRUPTIONS).index(name), strength))
    made = corrupt(images.astype(np.float32), values[strength - 1], rng)
    return np.rint(made).clip(0, 255).astype(np.uint8)


def measure(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray
) -> dict[str, list[float]]:
    """Return the accuracy by corruption and strength; ``predict`` gives logits of images."""
    return {
        name: [
            float(np.mean(predict(corrupted(images, name, s)).argmax(axis=1) == labels))
            for s in STRENGTHS
        ]
        for name in CORRUPTIONS
    }


def table(found: dict[str, list[float]]) -> Any:
    """Return a `rich.table.Table` of what `measure` found."""
    from rich.table import Table

    made = Table(caption="accuracy on spoiled images, by strength", caption_justify="left")
    made.add_column("")
    for strength in STRENGTHS:
        made.add_column(str(strength), justify="right")
    made.add_column("mean", justify="right")
    for name, row in found.items():
        cells = [f"{100 * share:.2f} %" for share in (*row, np.mean(row))]
        made.add_row(name, *cells)
    made.add_section()
    columns = np.array(list(found.values()))
    made.add_row("mean", *(f"{100 * share:.2f} %" for share in (*columns.mean(0), columns.mean())))
    return made
