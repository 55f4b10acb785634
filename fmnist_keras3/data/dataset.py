"""What a data source gives: labelled images as NumPy arrays, with their provenance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    ``y``: labels ``[N]``, int32.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} images but {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Split:
        """Return the examples at ``indices`` (int array), in that order."""
        return Split(self.x[indices], self.y[indices])


@dataclass(frozen=True)
class ImageData:
    """A data set with its training and test split and where it came from."""

    name: str  # "fashion_mnist", "synthetic", "tfds:NAME", "idx" (somebody's own IDX files)
    source: str  # folder, URL or generator that the examples were read from
    train: Split
    test: Split
    class_names: tuple[str, ...]
    sha256: str | None = None  # over the four uncompressed IDX files, or over the arrays
    note: str | None = None  # anything a reader of the run should know
