"""Images of any size, colour and number format, made into uint8 ``[H, W, 1 or 3]``, 0..255.

Files are decoded with Pillow. Colour and size are changed in the same way whatever an image came
from, so the same pictures in another kind of file are the same to the bit.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_keras3.ground.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Named, as other plugins of Pillow start programs (EPS) or can be made to use all memory (FITS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 2**27  # of one file, before it is decoded
CHANNELS = {"grey": 1, "rgb": 3}


@dataclass(frozen=True)
class Pixels:
    """How images become those of a data set.

    ``image_size``: "H,W", (H, W) or None, as they are; ``color``: "auto" (rgb, if one of them has
    colours), "grey" or "rgb"; ``resize``: what is done to another ratio of sides, "crop", "pad"
    (black) or "stretch"; ``on_bad_file``: "skip" or "stop". Raises UserError for a wrong size.
    """

    image_size: Any = None
    color: str = "auto"
    resize: str = "crop"
    on_bad_file: str = "skip"

    @property
    def size(self) -> tuple[int, int] | None:
        return parse_size(self.image_size)

    def one(self, image: np.ndarray) -> np.ndarray:
        """Return an image ``[H, W, C]`` in the size and colour that are asked for."""
        if self.color != "auto":
            image = colored(image, CHANNELS[self.color])
        return image if self.size is None else resized(image, self.size, self.resize)

    def all(self, images: np.ndarray) -> np.ndarray:
        """Return images ``[N, H, W, C]`` in the size and colour that are asked for."""
        if self.color != "auto":
            images = colored(images, CHANNELS[self.color])
        if self.size in (None, images.shape[1:3]):
            return images
        return np.stack([resized(image, self.size, self.resize) for image in images])


def parse_size(given: Any) -> tuple[int, int] | None:
    """Return height and width of "64,48", "64" or (64, 48); raises UserError for anything else."""
    if given is None:
        return None
    parts = re.split(r"[,x]", given.strip("()[] ")) if isinstance(given, str) else given
    try:
        sides = [int(part) for part in (parts if np.iterable(parts) else [parts])]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2) or not all(1 <= side <= 4096 for side in sides):
        raise UserError(
            f"image_size is {given!r}; it must be height and width, from 1 to 4096. "
            "Type --image_size 64,48"
        )
    return sides[0], sides[-1]


def decode(source: Path | bytes) -> np.ndarray:
    """Return an image file, or its bytes, as uint8 ``[H, W, 1 or 3]``.

    Turned as its EXIF data says; what is transparent is laid on white; of 16 bits the upper 8.
    Raises whatever Pillow does for what is no image.
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise ValueError("not a file")  # to open a pipe would be to wait for its other end
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, "r", FORMATS) as f:
        if math.prod(f.size) > MAX_PIXELS:
            raise ValueError(f"{f.width}x{f.height} pixels are more than {MAX_PIXELS:,}")
        image = ImageOps.exif_transpose(f)
        grey = image.mode in ("1", "L", "LA", "La")
        if image.mode[0] in "IF":
            deep = np.asarray(image)
            if deep.min() < 0 or deep.max() > 65535:
                raise ValueError("its numbers are not of 16 bits")
            return _of_16_bits(deep)[..., None]
        if image.has_transparency_data:
            return opaque(np.asarray(image.convert("LA" if grey else "RGBA")))
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1)


def why_not(error: Exception) -> str:
    """Return in a few words why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__


def opaque(images: np.ndarray) -> np.ndarray:
    """Lay images ``[..., C + 1]`` uint8, whose last channel is how opaque they are, on white."""
    color, alpha = images[..., :-1].astype(np.uint16), images[..., -1:].astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def colored(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images ``[..., 1 or 3]`` uint8 with so many channels; grey as Pillow computes it."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], np.uint32)
    grey = (images.astype(np.uint32) @ weights + 2**15) >> 16
    return grey.astype(np.uint8)[..., None]


def resized(image: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """Return ``image [H, W, C]`` uint8 in another size: means of areas, or bilinear to enlarge."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    inner, box = size, (0.0, 0.0, float(width), float(height))
    ratios = height / size[0], width / size[1]
    if how == "crop":
        h, w = (min(ratios) * side for side in size)
        box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
    elif how == "pad":
        inner = max(1, round(height / max(ratios))), max(1, round(width / max(ratios)))
    # Side by side, as one may shrink and the other grow.
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    across, down = (_filter(n, b - a) for n, a, b in zip(inner[::-1], box, box[2:], strict=False))
    picture = picture.resize((inner[1], height), across, (box[0], 0, box[2], height))
    picture = picture.resize((inner[1], inner[0]), down, (0, box[1], inner[1], box[3]))
    result = np.zeros((*size, channels), np.uint8)
    top, left = ((outer - side) // 2 for outer, side in zip(size, inner, strict=True))
    result[top : top + inner[0], left : left + inner[1]] = np.asarray(picture).reshape(
        *inner, channels
    )
    return result


def _filter(pixels: int, of: float) -> Image.Resampling:
    return Image.Resampling.BOX if pixels < of else Image.Resampling.BILINEAR


def as_images(array: np.ndarray, size: tuple[int, int] | None, what: str) -> np.ndarray:
    """Return images ``[N, H, W]``, ``[N, C, H, W]`` or flat as ``[N, H, W, C]``; these are kept.

    Flat rows have the sides of ``size``, if they are as long, else they are squares.
    """
    shape = array.shape
    if array.ndim == 2:
        for channels in (1, 3):
            square = (math.isqrt(shape[1] // channels),) * 2
            for sides in filter(None, (size, square)):
                if math.prod(sides) * channels == shape[1] > 3:
                    return array.reshape(-1, *sides, channels)
        raise UserError(
            f"{what} has {shape[1]} pixels an image, which are no square of one or three channels. "
            "Type --image_size H,W with the sides that they have."
        )
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and shape[-1] in (1, 3, 4):
        return array
    if array.ndim == 4 and shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    raise UserError(
        f"{what} has arrays of shape {list(shape)}; images [N, H, W], [N, H, W, C] with 1, 3 or 4 "
        "channels, or flat [N, pixels] are read."
    )


def as_bytes(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Return the images of each split as uint8 0..255, and what was done to them, or "".

    Raises UserError for numbers of which it is not clear what is black and white.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "buif":
            raise UserError(f"The {name} images are of type {array.dtype}; numbers are read.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(1)))
            raise UserError(
                f"The {name} images hold NaN or infinity, first at example {row}. Leave it out."
            )
    filled = [array for array in arrays.values() if array.size]
    low = min((float(array.min()) for array in filled), default=0.0)
    high = max((float(array.max()) for array in filled), default=0.0)
    whole = all(array.dtype.kind != "f" for array in filled)
    about, scale = f"The pixels, {low:g} to {high:g}", None
    if low >= 0 and 0 < high <= 1:
        scale, note = (lambda a: a * np.float32(255)), f"{about}, were multiplied by 255."
    elif -1 <= low < -0.9 and 0.9 < high <= 1 and not whole:
        scale, note = (lambda a: (a + 1) * np.float32(127.5)), f"{about}, were scaled to 0..255."
    elif low >= 0 and high <= 255:
        note = ""
        if any(a.dtype.kind == "f" and np.any(a != np.rint(a)) for a in filled):
            note = f"{about}, were rounded to whole numbers."
    elif whole and low >= 0 and 2**14 <= high < 2**16:
        scale, note = _of_16_bits, f"{about}, of 16 bits, were scaled to 0..255."
    else:
        name, row = next(
            (name, int(np.argmax(bad.reshape(len(array), -1).any(1))))
            for name, array in arrays.items()
            if (bad := (array < 0) | (array > 255)).any()
        )
        raise UserError(
            f"{about}, are in no known range (first at example {row} of {name}): 0..255, 0..1, "
            "-1..1 and 16 bits are. Store them as uint8, 0..255."
        )
    return {name: _rounded(a if scale is None else scale(a)) for name, a in arrays.items()}, note


def _rounded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        array = np.rint(array)
    return array.astype(np.uint8, copy=False)


def _of_16_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
