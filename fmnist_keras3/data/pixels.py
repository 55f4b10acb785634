"""Images of any size, colour and number format, made into uint8 ``[H, W, 1 or 3]``, 0..255.

Files are decoded with Pillow, common JPEG files by `jpeg`. Colour and size are changed in the same
way whatever an image came from, so the same pictures in another kind of file are the same to the
bit.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_keras3.data import jpeg
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import release

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Named, as other plugins of Pillow start programs (EPS) or can be made to use all memory (FITS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 2**27  # of one file, before it is decoded
CONTENT_BYTES = 2**26  # of a larger file only what Pillow asks for is read
BLOCK_BYTES = 2**25  # of an array that are looked at at once
CHANNELS = {"grey": 1, "rgb": 3}
GREY = ("1", "L", "LA", "La")  # Pillow's modes, besides those of one deep number
ORIENTATION = 274  # the number of that entry in EXIF data
EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for it


@dataclass(frozen=True)
class Pixels:
    """How images become those of a data set.

    ``image_size``: "H,W", (H, W) or None, as they are; ``color``: "auto" (rgb, if one of them has
    colours), "grey" or "rgb"; ``resize``: what is done to another ratio of sides, "crop", "pad"
    (black) or "stretch"; ``on_bad_file``: "skip" or "stop"; ``cache``: where decoded images that
    take much are kept, "none", "disk" or "memory". Raises UserError for a wrong size.
    """

    image_size: Any = None
    color: str = "auto"
    resize: str = "crop"
    on_bad_file: str = "skip"
    cache: str = "none"

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


def decode(source: str | Path | bytes) -> np.ndarray:
    """Return an image file, or its bytes, as uint8 ``[H, W, 1 or 3]``.

    Turned as its EXIF data says; what is transparent is laid on white; of 16 bits the upper 8.
    Raises whatever Pillow does for what is no image.
    """
    content = _content(source)
    if isinstance(content, bytes) and (image := jpeg.plain(content)) is not None:
        return image
    with _opened(content) as file:
        file.load()  # a PNG may have EXIF data after its pixels
        if file.info.keys() & EXIF:  # to look for it takes a tenth of the time of a small JPEG
            ImageOps.exif_transpose(file, in_place=True)
        return array_of(file)


def array_of(image: Image.Image) -> np.ndarray:
    """Return a picture of Pillow's as uint8 ``[H, W, 1 or 3]``; raises ValueError."""
    grey = image.mode in GREY
    if image.mode[0] in "IF":
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its numbers are not of 16 bits")
        return _of_16_bits(deep)[..., None]
    if image.has_transparency_data:
        return opaque(np.asarray(image.convert("LA" if grey else "RGBA")))
    mode = "L" if grey else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def shape_of(source: str | Path | bytes) -> tuple[int, int, int]:
    """Return the shape ``(H, W, 1 or 3)`` that `decode` gives, from the head of a file alone."""
    with _opened(source) as file:
        height, width = file.height, file.width
        # Of a PNG without that entry before its pixels, Pillow would decode all to look for it; of
        # others it would take time.
        if file.info.keys() & EXIF and file.getexif().get(ORIENTATION, 1) > 4:  # lies on its side
            height, width = width, height
        return height, width, 1 if file.mode in GREY or file.mode[0] in "IF" else 3


def _content(source: str | Path | bytes) -> str | Path | bytes:
    """Return the bytes of a file, from which Pillow, too, decodes sooner; of a large one its name.

    With few calls of the system: at each, threads that decode may have to wait for one another.
    """
    if isinstance(source, bytes):
        return source
    # To open a pipe would else be to wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(source, flags)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("not a file")
        if about.st_size > CONTENT_BYTES:
            return source
        content = os.read(descriptor, about.st_size)
        return content if len(content) == about.st_size else source
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Image.Image]:
    if not isinstance(source, bytes) and os.path.exists(source) and not os.path.isfile(source):
        raise ValueError("not a file")  # to open a pipe would be to wait for its other end
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, "r", FORMATS) as f:
        if math.prod(f.size) > MAX_PIXELS:
            raise ValueError(f"{f.width}x{f.height} pixels are more than {MAX_PIXELS:,}")
        yield f


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
    change, note = scaling(arrays)
    made = {}
    for name, array in arrays.items():
        made[name] = np.empty(array.shape, np.uint8)
        for block in _blocks(array):
            made[name][block] = change(array[block])
            release(getattr(array, "_mmap", None))
    return made, note


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """Yield places of an array that together are all of it; a change needs memory for one only."""
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    return (slice(start, start + step) for start in range(0, len(array), step))


def scaling(arrays: dict[str, np.ndarray]) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Return what makes the images of all splits uint8 0..255, and what is said of it, or "".

    Raises UserError for numbers of which it is not clear what is black and white.
    """
    found = [_Range.of(name, array) for name, array in arrays.items() if array.size]
    low = min((one.low for one in found), default=0.0)
    high = max((one.high for one in found), default=0.0)
    whole = all(one.kind != "f" for one in found)
    about = f"The pixels, {low:g} to {high:g}"
    if low >= 0 and 0 < high <= 1:
        scale, note = (lambda a: a * np.float32(255)), f"{about}, were multiplied by 255."
    elif -1 <= low < -0.9 and 0.9 < high <= 1 and not whole:
        scale, note = (lambda a: (a + 1) * np.float32(127.5)), f"{about}, were scaled to 0..255."
    elif low >= 0 and high <= 255:
        rounded = any(one.broken for one in found)
        scale, note = None, f"{about}, were rounded to whole numbers." * rounded
    elif whole and low >= 0 and 2**14 <= high < 2**16:
        scale, note = _of_16_bits, f"{about}, of 16 bits, were scaled to 0..255."
    else:
        name, row = next((one.name, one.outside) for one in found if one.outside >= 0)
        raise UserError(
            f"{about}, are in no known range (first at example {row} of {name}): 0..255, 0..1, "
            "-1..1 and 16 bits are. Store them as uint8, 0..255."
        )
    return (lambda a: _rounded(a if scale is None else scale(a))), note


@dataclass
class _Range:
    """What numbers the images of a split hold; found block by block, as they may lie in a file."""

    name: str
    kind: str  # of the dtype
    low: float = math.inf
    high: float = -math.inf
    broken: bool = False  # there is one that is not whole
    outside: int = -1  # the first example with one outside of 0..255

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> _Range:
        if array.dtype.kind not in "buif":
            raise UserError(f"The {name} images are of type {array.dtype}; numbers are read.")
        found = cls(name, array.dtype.kind)
        for place in _blocks(array):
            start, block = place.start, array[place]
            if found.kind == "f" and not np.isfinite(block).all():
                row = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(1)))
                raise UserError(
                    f"The {name} images hold NaN or infinity, first at example {row}. Leave it out."
                )
            found.low = min(found.low, float(block.min()))
            found.high = max(found.high, float(block.max()))
            if found.outside < 0 and (found.low < 0 or found.high > 255):
                bad = ((block < 0) | (block > 255)).reshape(len(block), -1).any(1)
                found.outside = start + int(bad.argmax())
            found.broken |= found.kind == "f" and bool(np.any(block != np.rint(block)))
            release(getattr(array, "_mmap", None))
            if array.dtype == np.uint8 and found.high > 1:
                found.low, found.high = 0.0, 255.0  # nothing that follows can change what they are
                break
        return found


def _rounded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        array = np.rint(array)
    return array.astype(np.uint8, copy=False)


def _of_16_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
