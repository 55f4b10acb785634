"""The four IDX files that Fashion-MNIST is published as: read, checked, written.

The format is http://yann.lecun.com/exdb/mnist/: a magic number, the sizes, then the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import write

# SHA-256 of the uncompressed files of the current release (since 31 August 2017).
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IMAGES, LABELS, GZIP = 2051, 2049, b"\x1f\x8b"  # what a file starts with
KINDS = {IMAGES: "images", LABELS: "labels"}
NEEDED = "The four files needed, each plain or with .gz: " + ", ".join(FILES) + "."
# Where torchvision puts them, below the folder that it is given.
BELOW = (".", "FashionMNIST/raw", "raw")
# MNIST's files have the same names; these are its first training labels (zalando #107, #131).
MNIST_LABELS = (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9)


def read_folder(folder: str | Path) -> ImageData:
    """Return the data of the four IDX files in ``folder``, plain or ``.gz`` (plain wins).

    Also in a folder below it, as torchvision leaves them, and with a dot in their names
    (train-images.idx3-ubyte), as on Kaggle. Images are uint8 ``[N, H, W, 1]`` of any size, labels
    int32 ``[N]`` below 10. The name is "fashion_mnist" for the genuine files and "mnist" for those
    of the handwritten digits, which have the same names; other content is "idx", with a note that
    says which files differ. For ``sha256`` see `combine`. Raises UserError for whatever cannot be
    used.
    """
    paths = _find(Path(folder).expanduser().absolute())
    contents = [content_of(path) for path in paths]
    found = [hashlib.sha256(content).hexdigest() for content in contents]
    train, test = (_decode_split(paths[i : i + 2], contents[i : i + 2]) for i in (0, 2))
    if train.x.shape[1:] != test.x.shape[1:]:
        raise UserError(
            f"{paths[0]} has images of {train.x.shape[1]}x{train.x.shape[2]} pixels but "
            f"{paths[2].name} of {test.x.shape[1]}x{test.x.shape[2]}. Use the same size."
        )
    differing = [name for name, digest in zip(FILES, found, strict=True) if digest != FILES[name]]
    name, classes, note = "fashion_mnist", FASHION_CLASSES, None
    if tuple(train.y[: len(MNIST_LABELS)].tolist()) == MNIST_LABELS:
        name, classes = "mnist", tuple(str(digit) for digit in range(10))
        note = (
            "These are the handwritten digits of MNIST, whose files have the names of "
            "Fashion-MNIST's: not Fashion-MNIST."
        )
    elif differing:
        name = "idx"
        note = (
            f"Own IDX files, with Fashion-MNIST's class names: {', '.join(differing)} not as in "
            "the genuine release."
        )
    return ImageData(name, str(paths[0].parent), train, test, classes, combine(found), note)


def write_folder(folder: str | Path, data: ImageData, compress: bool = True) -> None:
    """Write ``data`` (one channel, uint8, labels below 256) as the four IDX files.

    The folder is made where it is missing; files of the same name are replaced, each whole or
    not at all. The same data gives the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(FILES, _contents(data.train, data.test), strict=True):
        packed = gzip.compress(content, 6, mtime=0) if compress else content
        write(folder / (f"{name}.gz" if compress else name), packed)


def digests(train: Split, test: Split) -> list[str]:
    """Return the SHA-256 that the four files would have, in the order of FILES."""
    return [hashlib.sha256(content).hexdigest() for content in _contents(train, test)]


def combine(digests: Iterable[str]) -> str:
    """Return one SHA-256 over the four files': of their hex digests, a line each.

    In a shell, with the files in the order of FILES:
    ``for f in FILES; do gunzip -c $f.gz | sha256sum | cut -c-64; done | sha256sum``.
    """
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def _find(folder: Path) -> list[Path]:
    """Return the paths of the four files in the order of FILES."""
    try:
        if not folder.exists():
            raise UserError(f"The data folder {folder} does not exist. {NEEDED}")
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; give the folder it is in. {NEEDED}")
        found = [_present(folder / below) for below in BELOW]
    except OSError as error:
        raise UserError(f"The data folder {folder} cannot be read: {error.strerror}.") from error
    for paths in found:
        if all(paths.values()):
            return [path for path in paths.values() if path]
    missing = [name for name, path in found[0].items() if path is None]
    raise UserError(f"{folder} has no {', '.join(missing)}. {NEEDED}")


def _present(folder: Path) -> dict[str, Path | None]:
    """Return which files of ``folder`` are those of FILES, whatever way they are named."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found: dict[str, Path | None] = {}
    for name in FILES:
        spellings = (name, name.replace("-idx", ".idx"))
        names = [spelling + suffix for suffix in ("", ".gz") for spelling in spellings]
        found[name] = next((folder / n for n in names if n in there), None)
    return found


def content_of(path: Path) -> bytes:
    """Return the uncompressed bytes of a file, which may be packed; raises UserError."""
    again = "Copy or download it again."
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file. Put the file of that name in its place.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if not content:
        raise UserError(f"{path} is empty. {again}")
    if path.suffix != ".gz":
        return content
    if content[:2] != GZIP:
        raise UserError(
            f"{path} is not a gzip file (it starts with {content[:8]!r}). If it is unpacked "
            f"already, remove .gz from its name; else: {again.lower()}"
        )
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}). {again}") from error


def _decode_split(paths: list[Path], contents: list[bytes]) -> Split:
    """Return the examples of a file of images and its file of labels."""
    images = _decode(paths[0], contents[0], IMAGES)
    labels = _decode(paths[1], contents[1], LABELS)
    if len(images) != len(labels):
        raise UserError(
            f"{paths[0]} has {len(images)} images but {paths[1].name} has {len(labels)} labels. "
            "Use two files of the same set."
        )
    if labels.max() >= len(FASHION_CLASSES):
        raise UserError(
            f"{paths[1]} has the label {labels.max()} at example {labels.argmax()}; labels "
            f"0 to {len(FASHION_CLASSES) - 1} are expected. Renumber the labels."
        )
    return Split(images, labels.astype(np.int32))


def _decode(path: Path, content: bytes, magic: int) -> np.ndarray:
    """Return uint8 ``[N, H, W, 1]`` for images, ``[N]`` for labels; writable."""
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        hint = f"; it holds {KINDS[found]}" if found in KINDS else ""
        if content[:2] == GZIP:
            hint = "; it is compressed: add .gz to its name"
        raise UserError(
            f"{path} starts with the magic number {found}, expected {magic} "
            f"({KINDS[magic]}){hint}. Put the IDX file of that name in its place."
        )
    array = values_of(path, content, 3 if magic == IMAGES else 1, np.dtype(np.uint8))
    return array[..., None] if magic == IMAGES else array


def values_of(path: Path, content: bytes, rank: int, dtype: np.dtype) -> np.ndarray:
    """Return the writable array behind the header of an IDX file; raises UserError."""
    header = 4 + 4 * rank
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    size, expected = len(content), header + math.prod(sizes) * dtype.itemsize
    if size != expected:
        more = f"has {size - expected} bytes after its last example"
        raise UserError(
            f"{path} {more if size > expected else 'is truncated'}: {size} bytes (uncompressed), "
            f"its header promises {expected}. Copy or download it again."
        )
    if 0 in sizes:
        raise UserError(
            f"{path} has no examples: the sizes in its header are {sizes}. "
            "At least one example is needed."
        )
    return np.frombuffer(content, dtype, offset=header).copy().reshape(sizes)


def _contents(train: Split, test: Split) -> Iterable[bytes]:
    """Yield the bytes of the four files; more channels or classes give more IDX dimensions."""
    for array in (train.x, train.y, test.x, test.y):
        if array.ndim == 4 and array.shape[-1] == 1:
            array = array[..., 0]
        # 8 stands for uint8, 12 for int32 (labels of more than 256 classes).
        kind, dtype = (8, np.uint8) if array.max(initial=0) < 256 else (12, np.dtype(">i4"))
        header = np.array([(kind << 8) + array.ndim, *array.shape], ">u4")
        yield header.tobytes() + array.astype(dtype, copy=False).tobytes()
