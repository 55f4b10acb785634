"""What a data source gives: labelled images as NumPy arrays, with their provenance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_keras3.data.source import Rows, in_memory, taken
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Split:
    """Examples in a fixed order.

    ``x``: images ``[N, H, W, C]``, uint8 raw pixels 0..255 (other dtypes are passed through).
    ``y``: labels ``[N]``, int32. ``weight``: None, or float32 ``[N]``, how much each example
    counts. All three may be tuples, lists or dicts of arrays, for a model of several inputs or
    outputs, and instead of an array there may be `Rows`, which are read when they are needed.
    ``views``: how many times a training sees each image, augmented anew, in a tuple.
    Raises UserError for different lengths.
    """

    x: Any
    y: Any
    weight: Any = None
    views: int = 1

    def __post_init__(self) -> None:
        lengths = {len(array) for array in leaves((self.x, self.y, self.weight))}
        if len(lengths) != 1:
            raise UserError(
                f"The arrays of a split have the lengths {', '.join(map(str, sorted(lengths)))}; "
                "inputs, labels and weights must have one example each."
            )

    def __len__(self) -> int:
        return len(leaves(self.x)[0])

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in leaves((self.x, self.y, self.weight)))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one input, ``()`` where a model takes several."""
        return self.x.shape[1:] if isinstance(self.x, (np.ndarray, Rows)) else ()

    @property
    def in_memory(self) -> bool:
        """Whether nothing of it has to be read when it is needed."""
        return in_memory((self.x, self.y, self.weight))

    def take(self, indices: np.ndarray | slice) -> Split:
        """Return the examples at ``indices`` (int array or slice), in that order."""
        parts = (mapped(lambda a: taken(a, indices), p) for p in (self.x, self.y, self.weight))
        return Split(*parts, views=self.views)

    def read(self, indices: slice = slice(None)) -> Split:
        """Return the examples at ``indices`` in memory."""
        parts = (mapped(lambda a: a[indices], part) for part in (self.x, self.y, self.weight))
        return Split(*parts, views=self.views)


@dataclass(frozen=True)
class ImageData:
    """A data set with its training and test split and where it came from."""

    name: str  # "fashion_mnist", "synthetic", "tfds:NAME", "folder:NAME", "idx" (own IDX files)
    source: str  # folder, URL or generator that the examples were read from
    train: Split
    test: Split  # of no examples, if there is none
    class_names: tuple[str, ...]
    sha256: str | None = None  # over the four uncompressed IDX files, or over the arrays
    note: str | None = None  # anything a reader of the run should know
    validation: Split | None = None  # where it is given, and not to be held out of ``train``


def checksum(*splits: Split | None) -> str:
    """Return one SHA-256 over the arrays of ``splits``: inputs, labels, weights of each."""
    digest = hashlib.sha256()
    for split in splits:
        for array in [] if split is None else leaves((split.x, split.y, split.weight)):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fits(given: tuple[int | None, ...], takes: tuple[int | None, ...]) -> bool:
    """Tell whether a Keras model that ``takes`` examples of a shape takes those ``given``.

    None is any length. A last axis of one is added or dropped, as Keras does.
    """
    if len(given) == len(takes) + 1 and given[-1] == 1:
        given = given[:-1]
    elif len(given) == len(takes) - 1 and takes[-1] == 1:
        given = (*given, 1)
    pairs = zip(given, takes, strict=False)
    return len(given) == len(takes) and all(n == m or None in (n, m) for n, m in pairs)
