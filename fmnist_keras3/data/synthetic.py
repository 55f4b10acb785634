"""Generated garments: pictures in the manner of Fashion-MNIST, for when no data can be had.

The shapes of garments.py are drawn with Pillow, three times too large, and shrunk; texture, light,
blur and noise are added with NumPy, a class at a time.

Curves, waves and noise are made with ``+ - * /`` alone, never with sin, exp or a matrix product,
whose last bit depends on the processor: with the same releases of NumPy and Pillow, one seed
means the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from fmnist_keras3.data import garments
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split, checksum
from fmnist_keras3.data.garments import Dice, Part, direction

SIDE = 28
OVERSAMPLING = 3
PLAIN, STRIPES, PINSTRIPES, CHECKS, KNIT, PRINT = range(6)

# In the order of FASHION_CLASSES: who draws it, and the odds of the six textures.
GARMENTS: tuple[tuple[Callable[[Dice], list[Part]], Sequence[float]], ...] = (
    (garments.t_shirt, (0.58, 0.18, 0.03, 0.02, 0.09, 0.10)),
    (garments.trouser, (0.60, 0.02, 0.10, 0.06, 0.12, 0.10)),
    (garments.pullover, (0.38, 0.20, 0.02, 0.03, 0.30, 0.07)),
    (garments.dress, (0.40, 0.12, 0.06, 0.07, 0.10, 0.25)),
    (garments.coat, (0.52, 0.03, 0.06, 0.12, 0.20, 0.07)),
    (garments.sandal, (0.74, 0.02, 0.04, 0.02, 0.12, 0.06)),
    (garments.shirt, (0.32, 0.06, 0.17, 0.24, 0.06, 0.15)),
    (garments.sneaker, (0.74, 0.02, 0.02, 0.02, 0.14, 0.06)),
    (garments.bag, (0.55, 0.05, 0.05, 0.10, 0.15, 0.10)),
    (garments.ankle_boot, (0.74, 0.02, 0.02, 0.02, 0.14, 0.06)),
)


def posed(u: Dice, parts: list[Part]) -> list[Part]:
    """Turn, scale and shift each garment a little; points become ``[n, k, 2]`` from the corner."""
    sine, cosine = direction(u(-0.03, 0.03))  # up to 3.4 degrees
    size, shift_x, shift_y = u(0.94, 1.06), u(-0.8, 0.8), u(-0.7, 0.7)
    stretch = size * u(0.94, 1.06)

    def move(outline: np.ndarray) -> np.ndarray:
        x, y = outline[..., 0].T, outline[..., 1].T - SIDE / 2  # [k, n]
        right = (x * cosine - y * sine) * stretch + shift_x
        down = (x * sine + y * cosine) * size + shift_y
        return np.stack([right.T, down.T], axis=-1) + SIDE / 2

    return [part._replace(points=move(part.points)) for part in parts]


def rasterise(parts: list[Part], n: int) -> np.ndarray:
    """Draw the parts over each other with smooth edges; returns uint8 ``[n, 28, 28]``."""
    large = SIDE * OVERSAMPLING
    canvases = [Image.new("L", (large, large)) for _ in range(n)]
    pens = [ImageDraw.Draw(canvas) for canvas in canvases]
    for part in parts:
        # Pillow counts from the middle of the first pixel, the garments from its edge.
        outlines = (part.points * OVERSAMPLING - 0.5).reshape(n, -1).tolist()
        tones = np.broadcast_to(np.clip(part.tone, 0, 1) * 255, n).astype(int).tolist()
        width = round(part.width * OVERSAMPLING)
        for i in np.flatnonzero(np.broadcast_to(part.shown, n)).tolist():
            if width:
                pens[i].line(outlines[i], tones[i], width)
            else:
                pens[i].polygon(outlines[i], tones[i])
    return np.stack([np.asarray(canvas.reduce(OVERSAMPLING)) for canvas in canvases])


def blurred(x: np.ndarray) -> np.ndarray:
    """Smooth ``[n, h, w]`` with the kernel 1 2 1 along both axes."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = (x[:, :-2] + x[:, 2:]) * 0.25 + x[:, 1:-1] * 0.5
    return (x[:, :, :-2] + x[:, :, 2:]) * 0.25 + x[:, :, 1:-1] * 0.5


def textures(u: Dice, odds: Sequence[float]) -> np.ndarray:
    """Cloth for each garment: float32 ``[n, 28, 28]`` in -1..1, 0 where it is plain."""
    kinds = np.searchsorted(np.cumsum(odds)[:-1], u(0, 1), side="right")
    step = (1 / u(2.2, 6.5)).astype(np.float32)[:, None]
    phase = u(0, 1).astype(np.float32)[:, None]
    turns = np.arange(SIDE, dtype=np.float32) * step + phase  # [n, 28]
    wave = np.clip(8 * np.abs(turns - np.floor(turns) - 0.5) - 2, -1, 1)
    out = np.zeros((u.n, SIDE, SIDE), np.float32)
    out[kinds == STRIPES] = wave[kinds == STRIPES][:, :, None]
    out[kinds == PINSTRIPES] = wave[kinds == PINSTRIPES][:, None, :]
    checked = wave[kinds == CHECKS]
    out[kinds == CHECKS] = (checked[:, :, None] + checked[:, None, :]) / 2
    grain = u.rng.random((int((kinds == KNIT).sum()), SIDE, SIDE), np.float32)
    out[kinds == KNIT] = 0.7 * grain - 0.35 + np.where(np.arange(SIDE) % 2, 0.15, -0.15)[:, None]
    spots = u.rng.random((int((kinds == PRINT).sum()), SIDE // 2, SIDE // 2), np.float32)
    spots = blurred(spots.repeat(2, axis=1).repeat(2, axis=2))
    out[kinds == PRINT] = np.clip(7 * (spots - 0.5), -1, 1)
    return out


def finished(u: Dice, flat: np.ndarray, odds: Sequence[float]) -> np.ndarray:
    """Add cloth, light, blur and noise to flat pictures uint8 ``[n, 28, 28]``; same in return."""

    def each(low: float, high: float) -> np.ndarray:
        return u(low, high).astype(np.float32)[:, None, None]

    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    x = flat.astype(np.float32)
    x *= 1 + each(0.08, 0.45) * textures(u, odds)
    folds = u.rng.random((u.n, SIDE // 4, SIDE // 2), np.float32) - 0.5
    x *= 1 + each(0, 0.35) * blurred(folds.repeat(4, axis=1).repeat(2, axis=2))
    # Most are bright; folds and light from one side darken the rest of the cloth.
    x *= np.maximum(each(0.35, 1.15), each(0.35, 1.15))
    x *= 1 + each(-0.15, 0.15) * across - each(0.0, 0.15) * across**2
    x *= 1 + each(-0.12, 0.12) * across[:, None]
    x += each(-0.5, 0.4) * (blurred(x) - x)  # below 0 sharpens, as the originals were
    noise = u.rng.random(x.shape, np.float32) + u.rng.random(x.shape, np.float32) - 1
    x += each(4, 22) * noise * (flat > 24)  # the background stays black
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def draw_split(seeds: np.random.SeedSequence, n: int) -> Split:
    """Draw ``n`` garments in random order, as many of each class as of the others, or one more."""
    rng = np.random.Generator(np.random.Philox(seeds))
    labels = rng.permutation(np.arange(n, dtype=np.int32) % len(GARMENTS))
    x = np.empty((n, SIDE, SIDE), np.uint8)
    for label, (garment, odds) in enumerate(GARMENTS):
        dice = Dice(rng, int((labels == label).sum()))
        flat = rasterise(posed(dice, garment(dice)), dice.n)
        x[labels == label] = finished(dice, flat, odds)
    return Split(x[..., None], labels)


def generate(seed: int = 0, train: int = 12_000, test: int = 2_000) -> ImageData:
    """Draw the ten classes of Fashion-MNIST from random parameters.

    Images are uint8 ``[N, 28, 28, 1]``, 0..255 on black; labels int32 ``[N]``, balanced to within
    one example and shuffled. ``seed`` (0 or more) decides every byte; the two splits have
    streams of their own, so the size of one does not change the other. Raises ``ValueError``
    for a split of fewer than 10 examples.
    """
    for name, size in (("train", train), ("test", test)):
        if size < len(GARMENTS):
            raise ValueError(f"{name}={size}: give at least {len(GARMENTS)}, one of each class")
    train_seeds, test_seeds = np.random.SeedSequence(seed).spawn(2)
    splits = draw_split(train_seeds, train), draw_split(test_seeds, test)
    sha256, source = checksum(*splits), f"generated garments, seed {seed}"
    note = "Generated pictures: accuracy on them says nothing of accuracy on Fashion-MNIST."
    return ImageData("synthetic", source, *splits, FASHION_CLASSES, sha256, note)
