"""Augmentations: NumPy draws the numbers, `keras.ops` applies them in the compiled program.

Every one moves or overwrites whole uint8 pixels, so that a batch is the same to the bit on every
backend and in both pipelines. A new one is one class and one line in `AUGMENTATIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fmnist_keras3.errors import UserError, nearest


class Augmentation(Protocol):
    """Draws for whole epochs on the host; applies to batches on the device."""

    def draw(self, rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
        """Return the draws for ``n`` images, an integer array ``[n, ...]``."""
        ...

    def apply(self, x: Any, draws: Any) -> Any:
        """Return the images ``x [n, H, W, C]`` (uint8) changed by ``draws [n, ...]``."""
        ...


@dataclass(frozen=True)
class Flip:
    """Mirror left to right with probability ``p``."""

    p: float = 0.5

    def draw(self, rng, n, height, width):
        return (rng.random(n) < self.p).astype(np.int32)

    def apply(self, x, draws):
        from keras import ops

        return ops.where(draws[:, None, None, None] == 1, ops.flip(x, 2), x)


@dataclass(frozen=True)
class Crop:
    """Pad by ``pixels`` of black on each side and crop back at a random place."""

    pixels: int = 2

    def draw(self, rng, n, height, width):
        return rng.integers(0, 2 * self.pixels + 1, (n, 2), dtype=np.int32)

    def apply(self, x, draws):
        return self._shift(self._shift(x, draws[:, 0], 1), draws[:, 1], 2)

    def _shift(self, x, offsets, axis):
        # One select a possible offset: a gather here would be ten times slower on a CPU.
        from keras import ops

        pads = [(0, 0)] * 4
        pads[axis] = (self.pixels, self.pixels)
        padded, size = ops.pad(x, pads), x.shape[axis]
        offsets, out = offsets[:, None, None, None], x
        for offset in range(2 * self.pixels + 1):
            window = slice(offset, offset + size)
            moved = padded[:, window] if axis == 1 else padded[:, :, window]
            out = ops.where(offsets == offset, moved, out)
        return out


@dataclass(frozen=True)
class Erase:
    """Overwrite a random rectangle with one random grey, with probability ``p``.

    Area 2 to 40 % of the image, sides' ratio 0.3 to 3.3 (Zhong et al. 2017, Random Erasing).
    """

    p: float = 0.5

    def draw(self, rng, n, height, width):
        area = rng.uniform(0.02, 0.4, n) * height * width
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), n))
        h = np.clip(np.round(np.sqrt(area * ratio)), 1, height).astype(np.int32)
        w = np.clip(np.round(np.sqrt(area / ratio)), 1, width).astype(np.int32)
        top = (rng.random(n) * (height - h + 1)).astype(np.int32)
        left = (rng.random(n) * (width - w + 1)).astype(np.int32)
        h[rng.random(n) >= self.p] = 0  # an empty rectangle
        grey = rng.integers(0, 256, n, dtype=np.int32)
        return np.stack([top, top + h, left, left + w, grey], axis=1)

    def apply(self, x, draws):
        from keras import ops

        rows = ops.arange(x.shape[1], dtype="int32")[None, :, None, None]
        cols = ops.arange(x.shape[2], dtype="int32")[None, None, :, None]
        top, bottom, left, right, grey = (draws[:, i, None, None, None] for i in range(5))
        inside = (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)
        return ops.where(inside, ops.cast(grey, x.dtype), x)


AUGMENTATIONS = {"flip": Flip, "crop": Crop, "erase": Erase}


def parse_augment(text: str | None) -> tuple[tuple[str, Augmentation], ...]:
    """Read ``"flip,crop:2,erase:0.5"`` (or ``"none"``) into named augmentations, in that order.

    Raises UserError for an unknown name, a repeated one, or an argument outside its range.
    """
    parts = [part.strip() for part in (text or "none").split(",") if part.strip()]
    if parts in (["none"], []):
        return ()
    result: dict[str, Augmentation] = {}
    for part in parts:
        name, _, argument = part.partition(":")
        if name not in AUGMENTATIONS:
            raise UserError(
                f"There is no augmentation {name!r}.{nearest(name, AUGMENTATIONS)} Allowed: none, "
                f"or a list of {', '.join(AUGMENTATIONS)}, as in --augment flip,crop:2,erase:0.5"
            )
        if name in result:
            raise UserError(f"The augmentation {name!r} is named twice in {text!r}.")
        result[name] = _make(name, argument)
    return tuple(result.items())


def _make(name: str, argument: str) -> Augmentation:
    if not argument:
        return AUGMENTATIONS[name]()
    try:
        value = int(argument) if name == "crop" else float(argument)
        if not (1 <= value <= 8 if name == "crop" else 0 <= value <= 1):
            raise ValueError
    except ValueError:
        allowed = "a whole number of pixels from 1 to 8" if name == "crop" else "a probability 0..1"
        raise UserError(f"--augment {name}:{argument}: {argument!r} is not {allowed}.") from None
    return AUGMENTATIONS[name](value)
