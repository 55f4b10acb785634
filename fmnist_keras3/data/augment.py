"""Augmentations: NumPy draws the numbers, `keras.ops` applies them in the compiled program.

Images are uint8 and stay so. What computes grey values does it in whole numbers, so that a batch is
the same to the bit on every backend and in both pipelines. A new one is one class and one line in
`AUGMENTATIONS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named


class _Late:
    """`keras.ops`, imported when first used: names are read before a backend is chosen."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("keras.ops"), name)


ops: Any = _Late()


@dataclass(frozen=True)
class Epoch:
    """What is drawn for: the examples of an epoch in their order, and where chance comes from.

    ``order [n]``: positions in the training split; ``number``: of the epoch, from 0; ``rng``: of
    one augmentation in this epoch; ``once``: of that augmentation, the same in every epoch.
    """

    order: np.ndarray
    height: int
    width: int
    number: int
    rng: np.random.Generator
    once: np.random.Generator


class Augmentation(Protocol):
    """Draws for whole epochs on the host; applies to batches on the device."""

    uint8_only: ClassVar[bool] = False  # computes grey values

    def draw(self, epoch: Epoch) -> np.ndarray:
        """Return the draws for the examples of ``epoch``, an integer array ``[n, ...]``."""
        ...

    def apply(self, x: Any, draws: Any) -> Any:
        """Return the images ``x [n, H, W, C]`` (uint8) changed by ``draws [n, ...]``."""
        ...


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror left to right with probability ``p``."""

    p: float = 0.5

    def draw(self, epoch):
        return (epoch.rng.random(len(epoch.order)) < self.p).astype(np.int32)

    def apply(self, x, draws):
        return ops.where(_per_image(draws) == 1, ops.flip(x, 2), x)


@dataclass(frozen=True)
class AlternatingFlip(Augmentation):
    """Mirror a random half in the first epoch, then in turn the other half and that one.

    So two epochs show each example both ways (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds).
    """

    def draw(self, epoch):
        first = epoch.once.random(len(epoch.order)) < 0.5
        return (first[epoch.order] ^ (epoch.number % 2 == 1)).astype(np.int32)

    apply = Flip.apply


@dataclass(frozen=True)
class Crop(Augmentation):
    """Pad by ``pixels`` of black on each side and crop back at a random place.

    In other words, shift by up to so many pixels in each direction (He et al. 2015, 4.2).
    """

    pixels: int = 2

    def draw(self, epoch):
        return epoch.rng.integers(0, 2 * self.pixels + 1, (len(epoch.order), 2), dtype=np.int32)

    def apply(self, x, draws):
        # One select a possible offset: a gather here would be ten times slower on a CPU.
        for axis in (1, 2):
            pads = [(self.pixels, self.pixels) if i == axis else (0, 0) for i in range(4)]
            padded, offsets = ops.pad(x, pads), _per_image(draws[:, axis - 1])
            for offset in range(2 * self.pixels + 1):
                window = (slice(None),) * axis + (slice(offset, offset + x.shape[axis]),)
                x = ops.where(offsets == offset, padded[window], x)
        return x


@dataclass(frozen=True)
class Rotate(Augmentation):
    """Turn about the centre by up to ``degrees`` either way; bilinear, with black beyond the edges.

    Simard et al. 2003, Best Practices for Convolutional Neural Networks. On a CPU four
    times as fast, and sharper, than three shears without a gather (Paeth 1986).
    """

    degrees: float = 10.0
    uint8_only: ClassVar = True

    def draw(self, epoch):
        largest = math.radians(self.degrees)
        angle = epoch.rng.uniform(-largest, largest, len(epoch.order))
        return np.round(2**14 * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.int32)

    def apply(self, x, draws):
        _, height, width, channels = x.shape
        cos, sin = draws[:, :1, None], draws[:, 1:, None]
        # From the centre, in half pixels; the sums are in 2**-15 of a pixel, then in 2**-7.
        rows = 2 * ops.arange(height, dtype="int32")[None, :, None] - (height - 1)
        columns = 2 * ops.arange(width, dtype="int32")[None, None, :] - (width - 1)
        down = ops.right_shift(cos * rows + sin * columns + ((height - 1) * 2**14 + 2**7), 8)
        along = ops.right_shift(cos * columns - sin * rows + ((width - 1) * 2**14 + 2**7), 8)
        top, left = ops.right_shift(down, 7), ops.right_shift(along, 7)
        below, right = (ops.bitwise_and(part, 127)[..., None] for part in (down, along))
        flat = ops.reshape(x, (-1, height * width, channels))

        def at(row, column):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = ops.where(inside, row * width + column, 0)
            place = ops.broadcast_to(ops.reshape(place, (-1, height * width, 1)), flat.shape)
            grey = ops.reshape(ops.take_along_axis(flat, place, 1), x.shape)
            return ops.where(inside[..., None], ops.cast(grey, "int32"), 0)

        upper = (128 - right) * at(top, left) + right * at(top, left + 1)
        lower = (128 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
        grey = ops.right_shift((128 - below) * upper + below * lower + 2**13, 14)
        return ops.cast(grey, x.dtype)


@dataclass(frozen=True)
class Brightness(Augmentation):
    """Multiply the greys by a factor of 1 - ``strength`` to 1 + ``strength`` (Howard 2013)."""

    strength: float = 0.2
    uint8_only: ClassVar = True

    def draw(self, epoch):
        factor = epoch.rng.uniform(1 - self.strength, 1 + self.strength, len(epoch.order))
        return np.round(256 * factor).astype(np.int32)

    def apply(self, x, draws):
        grey = ops.cast(x, "int32")
        fixed = self._fixed(grey)
        scaled = ops.floor_divide((grey - fixed) * _per_image(draws) + 128, 256)
        return ops.cast(ops.clip(scaled + fixed, 0, 255), x.dtype)

    def _fixed(self, grey):
        return 0


@dataclass(frozen=True)
class Contrast(Brightness):
    """Multiply the greys' distances from the image's mean, as `Brightness` does the greys."""

    def _fixed(self, grey):
        pixels = math.prod(grey.shape[1:])
        total = ops.sum(grey, (1, 2, 3), keepdims=True)
        return ops.floor_divide(2 * total + pixels, 2 * pixels)


@dataclass(frozen=True)
class Erase(Augmentation):
    """Overwrite a random rectangle with one random grey, with probability ``p``.

    Area 2 to 40 % of the image, sides' ratio 0.3 to 3.3 (Zhong et al. 2017, Random Erasing).
    """

    p: float = 0.5

    def draw(self, epoch):
        rng, n, height, width = epoch.rng, len(epoch.order), epoch.height, epoch.width
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
        return ops.where(_inside(x, draws), ops.cast(_per_image(draws[:, 4]), x.dtype), x)


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Blacken a square of ``size`` pixels about a random centre; a border may cut it off.

    DeVries and Taylor 2017, Improved Regularization of CNNs with Cutout.
    """

    size: int = 8

    def draw(self, epoch):
        return _boxes(epoch, self.size, self.size)

    def apply(self, x, draws):
        return ops.where(_inside(x, draws), ops.zeros_like(x), x)


class Mixing(Augmentation, Protocol):
    """An augmentation that mixes each image, and its label, with another of the same batch.

    The other is the one before it, which chance has put there: the order of an epoch is random.
    """

    def mix(self, x: Any, others: Any, draws: Any) -> Any:
        """Return the images ``x [n, H, W, C]`` (uint8) with parts of ``others``, as many."""
        ...

    def share(self, draws: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return how much of its own label each image keeps, float32 ``[...]`` in 0..1."""
        ...


@dataclass(frozen=True)
class MixUp(Mixing):
    """Blend two images; the share of each is drawn from Beta(``alpha``, ``alpha``) for each pair.

    Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization.
    """

    alpha: float = 0.2
    uint8_only: ClassVar = True

    def draw(self, epoch):
        own = epoch.rng.beta(self.alpha, self.alpha, len(epoch.order))
        return np.round(256 * own).astype(np.int32)

    def mix(self, x, others, draws):
        own = _per_image(draws)
        blend = own * ops.cast(x, "int32") + (256 - own) * ops.cast(others, "int32")
        return ops.cast(ops.floor_divide(blend + 128, 256), x.dtype)

    def share(self, draws, height, width):
        return draws.astype(np.float32) / 256


@dataclass(frozen=True)
class CutMix(Mixing):
    """Paste a rectangle of another image; its area is drawn from Beta(``alpha``, ``alpha``).

    Its sides have the image's ratio, a border may cut it off, and the labels' shares are those of
    the pixels (Yun et al. 2019, CutMix).
    """

    alpha: float = 1.0

    def draw(self, epoch):
        side = np.sqrt(epoch.rng.beta(self.alpha, self.alpha, len(epoch.order)))
        sides = (np.round(side * size).astype(np.int32) for size in (epoch.height, epoch.width))
        return _boxes(epoch, *sides)

    def mix(self, x, others, draws):
        return ops.where(_inside(x, draws), others, x)

    def share(self, draws, height, width):
        top, bottom, left, right = np.moveaxis(draws, -1, 0)
        pixels = np.float32(height * width)
        return (pixels - (bottom - top) * (right - left)).astype(np.float32) / pixels


class Value(NamedTuple):
    """What may stand behind an augmentation's colon."""

    kind: type[int] | type[float]
    least: float
    most: float
    text: str


PROBABILITY = Value(float, 0, 1, "a probability 0..1")
STRENGTH = Value(float, 0, 1, "a number 0..1")
ALPHA = Value(float, 0.01, 10, "a number from 0.01 to 10")
# A class, or where it lies ("data.solarize:Solarize"), and what may stand behind the colon.
AUGMENTATIONS: dict[str, tuple[Any, Value | None]] = {
    "flip": (Flip, PROBABILITY),
    "altflip": (AlternatingFlip, None),
    "crop": (Crop, Value(int, 1, 8, "a whole number of pixels from 1 to 8")),
    "rotate": (Rotate, Value(float, 0, 180, "an angle from 0 to 180 degrees")),
    "brightness": (Brightness, STRENGTH),
    "contrast": (Contrast, STRENGTH),
    "erase": (Erase, PROBABILITY),
    "cutout": (Cutout, Value(int, 1, 256, "a whole number of pixels from 1 to 256")),
    "mixup": (MixUp, ALPHA),
    "cutmix": (CutMix, ALPHA),
}


def augmented(augment: dict[str, Any], x: Any, draws: dict[str, Any]) -> Any:
    """Return batches ``x [K, B, H, W, C]`` changed by ``draws [K, B, ...]`` of each by its name."""
    shape = x.shape
    x = ops.reshape(x, (-1, *shape[2:]))
    for name, augmentation in augment.items():  # JAX hands `draws` over in sorted order
        drawn = ops.reshape(draws[name], (-1, *draws[name].shape[2:]))
        if is_mixing(augmentation):
            others = ops.reshape(partners(ops.reshape(x, shape)), x.shape)
            x = augmentation.mix(x, others, drawn)
        else:
            x = augmentation.apply(x, drawn)
    return ops.reshape(x, shape)


def partners(batches: Any) -> Any:
    """Return, in the place of each example in ``batches [K, B, ...]``, the one it is mixed with.

    Also of a batch that is filled up, with examples of its own (so the first may get itself).
    """
    return ops.concatenate([batches[:, -1:], batches[:, :-1]], 1)


def is_mixing(augmentation: Any) -> bool:
    """Tell whether an augmentation mixes images and labels, see `Mixing`."""
    return hasattr(augmentation, "mix")


def _per_image(draws: Any) -> Any:
    return draws[:, None, None, None]


def _boxes(epoch: Epoch, height: Any, width: Any) -> np.ndarray:
    """Draw boxes about random centres, cut off at the borders: top, bottom, left, right."""
    n, bounds = len(epoch.order), []
    for side, size in ((height, epoch.height), (width, epoch.width)):
        first = epoch.rng.integers(0, size, n, dtype=np.int32) - side // 2
        bounds += [np.clip(first, 0, size), np.clip(first + side, 0, size)]
    return np.stack(bounds, axis=1).astype(np.int32)


def _inside(x: Any, boxes: Any) -> Any:
    """Return which pixels ``[n, H, W, 1]`` lie in ``boxes [n, 4...]``."""
    rows = ops.arange(x.shape[1], dtype="int32")[None, :, None, None]
    cols = ops.arange(x.shape[2], dtype="int32")[None, None, :, None]
    top, bottom, left, right = (_per_image(boxes[:, i]) for i in range(4))
    return (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)


def parse_augment(text: str | None) -> tuple[tuple[str, Any], ...]:
    """Read ``"flip,crop:2,erase:0.5"`` (or ``"none"``) into named augmentations, in that order.

    Raises UserError for an unknown name, a repeated one, two that exclude each other, or a value
    outside its range.
    """
    parts = [part.strip() for part in (text or "none").split(",") if part.strip()]
    if parts in (["none"], []):
        return ()
    result: dict[str, Any] = {}
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
    for pair in (("flip", "altflip"), ("mixup", "cutmix")):  # together without meaning
        if set(pair) <= set(result):
            raise UserError(f"--augment {text}: take {' or '.join(pair)}, not both.")
    return tuple(result.items())


def _make(name: str, argument: str) -> Any:
    made, value = AUGMENTATIONS[name]
    made = named(made) if isinstance(made, str) else made
    if not argument:
        return made()
    if value is None:
        raise UserError(f"--augment {name}:{argument}: {name} takes no value.")
    try:
        number = value.kind(argument)
    except ValueError:
        number = math.nan  # in no range
    if not value.least <= number <= value.most:
        raise UserError(f"--augment {name}:{argument}: {argument!r} is not {value.text}.")
    return made(number)
