"""Test images pasted on backgrounds, as they might be photographed, for `fmnist predict`."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Rng = np.random.Generator
SIZES = (280, 560)  # of a side of the picture, smallest and largest
SCALES = (0.4, 0.8)  # how much of the shorter side the garment takes


def _plain(colour: tuple[int, ...]) -> Callable[[Rng, int, int], np.ndarray]:
    return lambda rng, h, w: np.full((h, w, 3), colour, np.float64)


def _grey(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.full((h, w, 3), rng.uniform(170, 225))  # paper


def _middle_grey(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.full((h, w, 3), rng.uniform(110, 160))  # which half of all garments have somewhere


def _coloured(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.full((h, w, 3), _colour(rng))


def _colour(rng: Rng) -> np.ndarray:
    """Return a colour, neither dark nor nearly white."""
    while True:
        colour = rng.uniform(20, 255, 3)
        if 120 < colour @ (0.299, 0.587, 0.114) < 220:
            return colour


def _gradient(rng: Rng, h: int, w: int) -> np.ndarray:
    """A light from one side, as a lamp gives it, and a vignette."""
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    light = (
        1 + rng.uniform(0.2, 0.6) * along - rng.uniform(0, 0.5) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    )
    return np.clip(light[..., None] * rng.uniform(150, 220) * rng.uniform(0.93, 1.07, 3), 0, 255)


def _textured(rng: Rng, h: int, w: int) -> np.ndarray:
    """A cloth or plaster: soft noise of some size about a colour."""
    base = _colour(rng)
    fine = _noise(rng, h, w, rng.uniform(1, 2.5)) * rng.uniform(4, 9)
    coarse = _noise(rng, h, w, rng.uniform(8, 24)) * rng.uniform(3, 8)
    return np.clip(base + (fine + coarse)[..., None], 0, 255)


def _wooden(rng: Rng, h: int, w: int) -> np.ndarray:
    """Boards with a wavy grain and dark joints between them."""
    y = np.arange(h, dtype=np.float64)[:, None].repeat(w, axis=1)
    bend = _noise(rng, h, w, max(h, w) / 12) * rng.uniform(4, 10)
    grain = np.sin((y + bend) * 2 * np.pi / rng.uniform(7, 22))
    board = rng.uniform(h / 5, h / 2)
    number = ((y + rng.uniform(0, board)) // board).astype(int)
    tone = rng.uniform(-14, 14, number.max() + 1)[number] + grain * rng.uniform(4, 12)
    tone += _noise(rng, h, w, 1.5) * 4
    tone -= 45 * (np.diff(number, axis=0, prepend=number[:1]) > 0)
    base = np.array([(181, 136, 92), (205, 170, 125), (160, 110, 70), (214, 188, 154)])
    return np.clip(base[rng.integers(4)] + tone[..., None] * (1, 0.95, 0.8), 0, 255)


def _noise(rng: Rng, h: int, w: int, size: float) -> np.ndarray:
    """Return smooth noise of mean 0 and deviation 1 whose spots are ``size`` pixels large."""
    small = rng.standard_normal((max(2, round(h / size)), max(2, round(w / size))))
    large = Image.fromarray(small.astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
    values = np.asarray(large, np.float64)
    return (values - values.mean()) / max(values.std(), 1e-9)


BACKGROUNDS: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "white": _plain((255, 255, 255)),
    "grey": _grey,
    "coloured": _coloured,
    "black": _plain((0, 0, 0)),
    "gradient": _gradient,
    "textured": _textured,
    "wooden": _wooden,
    "middle grey": _middle_grey,
}


def paste(image: np.ndarray, background: str, rng: Rng, filling: bool = False) -> bytes:
    """Return a JPEG with the garment of ``image [28, 28]`` (uint8, bright on black) somewhere.

    On black it is as in the data set. Elsewhere it is the negative, as it was photographed, cut
    out along its outline: what is 0 and joined to the image's edge is the background. If it is
    ``filling`` the picture, it runs out of it by about a fiftieth on two opposite sides.
    """
    from scipy import ndimage

    h, w = rng.integers(*SIZES, 2)
    scale = rng.uniform(*SCALES)
    empty, _ = ndimage.label(image == 0)
    edge = np.unique(np.concatenate([empty[0], empty[-1], empty[:, 0], empty[:, -1]]))
    inside = ~np.isin(empty, edge[edge > 0])
    if filling:
        h, w = min(h, w * 4 // 3), min(w, h * 4 // 3)
        y, x = (np.flatnonzero(inside.any(axis=axis))[[0, -1]] for axis in (1, 0))
        times = min(h / (np.ptp(y) + 1), w / (np.ptp(x) + 1)) * rng.uniform(1, 1.08)
        side = int(28 * times)
    else:
        side = int(min(h, w) * scale)

    def large(values: np.ndarray) -> np.ndarray:
        found = Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(found, np.float64)

    share = Image.fromarray((inside * 255).astype(np.uint8))
    share = share.resize((side, side), Image.Resampling.BICUBIC)
    share = share.filter(ImageFilter.GaussianBlur(max(0.5, side / 250)))
    share = np.asarray(share, np.float64)[..., None] / 255
    garment = large(image)[..., None]
    if background != "black":
        garment = 255 - garment
    canvas = BACKGROUNDS[background](rng, h, w)
    if filling:
        top, left = (int((n - side * (sum(box) + 1) / 28) / 2) for n, box in ((h, y), (w, x)))
    else:
        top, left = (int(rng.uniform(0.03, 0.97) * (n - side)) for n in (h, w))
    spot = canvas[max(top, 0) : top + side, max(left, 0) : left + side]
    cut = np.s_[max(-top, 0) :, max(-left, 0) :]
    share, garment = (a[cut][: spot.shape[0], : spot.shape[1]] for a in (share, garment))
    spot[:] = spot * (1 - share) + garment * share
    file = io.BytesIO()
    pixels = np.clip(canvas.round(), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(80, 95)))
    return file.getvalue()
