"""Reads the pictures of users: any size, mode and orientation; what cannot be read says why.

Nothing here waits for a pipe, runs another program, or takes more memory than a picture of 50
million pixels needs (twice 200 MB).
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fmnist_keras3.ground.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of Pillow's, which has dangerous ones
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MOST_PIXELS = 50_000_000
_SAVE_AS = "Save it as JPEG or PNG"


def found(given: Iterable[str | Path]) -> Iterator[str]:
    """Yield the files that are meant: a file, the pictures in and below a folder, a pattern's.

    In the order of their names. What there is not is yielded as it is, to be refused by `read`.
    """
    for one in (str(path) for path in given):
        below: list[str] = []
        if os.path.isdir(one):
            for folder, folders, names in os.walk(one):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                seen = (n for n in sorted(names) if not n.startswith("."))
                below += [os.path.join(folder, n) for n in seen if n.lower().endswith(SUFFIXES)]
        elif not os.path.lexists(one) and glob.has_magic(one):
            below = sorted(glob.glob(os.path.expanduser(one), recursive=True))
        yield from below or [one]


def read(path: str | Path) -> Any:
    """Return the picture in a file as a `PIL.Image.Image` of mode RGB or RGBA, upright.

    Of an animation the first frame. Raises UserError for what is no picture, with the reason.
    """
    try:
        # Without O_NONBLOCK to open a named pipe would wait until somebody writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(path)}: {_refusal(path, error)}") from error
    status, reason = os.fstat(descriptor), None
    if stat.S_ISDIR(status.st_mode):
        reason = f"there is no picture in this folder ({_KNOWN})."
    elif not stat.S_ISREG(status.st_mode):
        reason = "it is no file, but a pipe or a device."
    elif not status.st_size:
        reason = "the file is empty."
    if reason is not None:
        os.close(descriptor)
        raise UserError(f"{shown(path)}: {reason}")
    with open(descriptor, "rb") as file:
        try:
            return decoded(file)
        except UserError as error:
            raise UserError(f"{shown(path)}: {error}") from error


_KNOWN = "PNG, JPEG, WebP, GIF, BMP or TIFF"


def _refusal(path: str | Path, error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        link = os.path.islink(path)
        return "the link leads nowhere." if link else "there is no such file."
    known = {errno.EACCES: "no permission to read it", errno.ELOOP: "its links lead in a circle"}
    known |= {errno.ENAMETOOLONG: "the name is too long", errno.ENXIO: "it is no file"}
    return f"{known.get(code or 0) or getattr(error, 'strerror', None) or error}."


def decoded(file: BinaryIO) -> Any:
    """Return the picture in an open file; raises UserError, as `read` does, without a name."""
    from PIL import Image, UnidentifiedImageError

    start = file.read(32)
    file.seek(0)
    if start[4:8] == b"ftyp":
        raise UserError(f"it is a HEIC, AVIF or video file. {_SAVE_AS}.")
    if start[:4] == b"RIFF" and start[12:16] == b"VP8X":  # Pillow makes room before one can look
        _check_size(*(1 + int.from_bytes(start[i : i + 3], "little") for i in (24, 27)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd, but was read
            with Image.open(file, formats=FORMATS) as image:
                _check_size(*image.size)
                image.load()
                return _upright(image)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"it is no picture, or damaged ({_KNOWN} can be read).") from error
    except Image.DecompressionBombError as error:
        raise UserError(_too_large("it has too many pixels")) from error
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"it is damaged: {shown(reason)[:200].rstrip('.')}.") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(_too_large(f"it has {width:,} x {height:,} pixels"))


def _too_large(what: str) -> str:
    return f"{what}; {MOST_PIXELS:,} are allowed. Make it smaller."


def _upright(image: Any) -> Any:
    """Return a picture of any mode as RGB or RGBA, turned as its EXIF data say."""
    from PIL.Image import Transpose as To

    turns = (To.FLIP_LEFT_RIGHT, To.ROTATE_180, To.FLIP_TOP_BOTTOM, To.TRANSPOSE)
    turns = dict(enumerate((*turns, To.ROTATE_270, To.TRANSVERSE, To.ROTATE_90), 2))
    turn = turns.get(image.getexif().get(0x0112))
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("La", "RGBa"):  # whose colours were multiplied by their alpha
        image = image.convert(image.mode.upper())
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if clear else "RGB")
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Any) -> Any:
    """Return a picture of 16 or 32 bits, or of floats, as greys 0..255.

    Pillow would cut off what is brighter than 255.
    """
    from PIL import Image

    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    most = values.max(initial=0)
    if image.mode.startswith("I;16") or (image.mode == "I" and 255 < most <= 65535):
        values = values // 256
    elif most > 255 or (image.mode == "F" and most <= 1):
        values = values * (255 / max(most, 1 if most <= 1 else 0))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def as_image(given: Any) -> Any:
    """Return a picture that is given in Python as a `PIL.Image.Image` of mode RGB or RGBA.

    A path, an image of Pillow, or an array ``[H, W]`` or ``[H, W, 1|3|4]``, uint8, or float in
    0..1 or 0..255. Raises UserError for anything else.
    """
    from PIL import Image

    if isinstance(given, (str, Path)):
        return read(given)
    if isinstance(given, Image.Image):
        _check_size(*given.size)
        return _upright(given)
    array = np.asarray(given)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fine = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fine or not array.size or array.dtype.kind not in "uifb":
        raise UserError(
            f"{type(given).__name__} of shape {list(array.shape)}, {array.dtype}: it is no "
            "picture. Give a path, an image of Pillow, or an array [H, W] or [H, W, 1|3|4]."
        )
    _check_size(*array.shape[:2])
    if array.dtype.kind in "fb":
        array = np.nan_to_num(array.astype(np.float64))
        array = array * 255 if array.max() <= 1 else array
    return _upright(Image.fromarray(np.clip(np.rint(array), 0, 255).astype(np.uint8)))


def shown(text: str | Path) -> str:
    """Return a file's name on one line that any terminal can print."""
    name = os.fsencode(os.fspath(text)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
