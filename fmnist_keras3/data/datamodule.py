"""DataModules: where a Trainer gets its training, validation and test splits from."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.plan import generator
from fmnist_keras3.errors import UserError


class DataModule:
    """Splits, batch size and augmentation; subclasses say in `load` where the examples come from.

    ``batch_size`` >= 1; ``augment`` as for `parse_augment`; ``validation`` is the fraction
    (0 <= f < 1) of the training examples that is held out, stratified over the labels and chosen
    by ``seed``. After `setup` there are ``train``, ``validation`` (or None) and ``test`` (or None).
    Raises UserError for values outside their range.
    """

    train: Split
    validation: Split | None
    test: Split | None
    source: ImageData

    def __init__(
        self,
        batch_size: int = 128,
        augment: str | None = None,
        validation: float = 0.1,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        if not 0 <= validation < 1:
            raise UserError(f"validation is {validation}; it must be at least 0 and less than 1.")
        self.batch_size = batch_size
        self.augment = parse_augment(augment)
        self.validation_fraction = validation
        self.seed = seed
        self._ready = False

    def load(self) -> ImageData:
        """Return the examples; called once, before training."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def setup(self) -> DataModule:
        """Load and split the data, once; returns the module."""
        if self._ready:
            return self
        self.source = self.load()
        self.train, self.validation = _split(self.source.train, self.validation_fraction, self.seed)
        self.test = self.source.test if len(self.source.test) else None
        if self.batch_size > len(self.train):
            raise UserError(
                f"batch_size {self.batch_size} is larger than the {len(self.train)} training "
                f"examples. Type --batch_size {len(self.train)} or less."
            )
        self._ready = True
        return self

    def describe(self) -> dict[str, Any]:
        """Return name, source, sizes and checksum, as they stand in a run's summary."""
        return {
            "name": self.source.name,
            "source": self.source.source,
            "train": len(self.train),
            "validation": len(self.validation) if self.validation is not None else 0,
            "test": len(self.test) if self.test is not None else 0,
            "sha256": self.source.sha256,
            "note": self.source.note,
            "classes": list(self.source.class_names),
        }


class FashionMNIST(DataModule):
    """Fashion-MNIST, or what ``data`` names: "auto", "fashion_mnist", "synthetic", "tfds:NAME".

    ``data_dir`` is a folder with the four IDX files (default: `FMNIST_DATA_DIR`); "auto" falls
    back to a TFDS copy, a download, and at last to generated garments (see `data.sources.load`).
    Images are uint8 ``[N, 28, 28, 1]``, labels int32 ``[N]``. Raises UserError where data is
    missing or damaged.

    Example: ``FashionMNIST(batch_size=128, augment="flip,crop")``
    """

    def __init__(
        self,
        batch_size: int = 128,
        augment: str | None = None,
        validation: float = 0.1,
        seed: int = 0,
        data: str = "auto",
        data_dir: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, augment, validation, seed)
        self.data, self.data_dir = data, data_dir

    def load(self) -> ImageData:
        from fmnist_keras3.data import sources

        return sources.load(self.data, self.data_dir)


class ArrayData(DataModule):
    """Arrays in memory: ``x [N, ...]``, ``y [N, ...]``, and optionally a test pair."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        test: tuple[np.ndarray, np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._data = Split(np.asarray(x), _labels(y))
        self._test = Split(np.asarray(test[0]), _labels(test[1])) if test else None

    def load(self) -> ImageData:
        test = self._test or self._data.take(np.arange(0))
        labels = self._data.y
        count = int(labels.max()) + 1 if labels.ndim == 1 and labels.dtype.kind in "iu" else 0
        names = tuple(str(i) for i in range(count))
        return ImageData("arrays", "memory", self._data, test, names)


def as_datamodule(data: Any) -> DataModule:
    """Return ``data`` as a DataModule; a pair ``(x, y)`` or a dataset becomes `ArrayData`.

    A `tf.data.Dataset` is read into memory, once, so that its examples can be shuffled exactly.
    """
    if isinstance(data, DataModule):
        return data.setup()
    if isinstance(data, tuple) and len(data) == 2:
        return ArrayData(*data).setup()
    if hasattr(data, "element_spec") and hasattr(data, "as_numpy_iterator"):
        return ArrayData(*_from_dataset(data)).setup()
    raise UserError(
        f"Cannot train on a {type(data).__name__}. Give a DataModule (FashionMNIST(...)), a pair "
        "of arrays (x, y) or a finite tf.data.Dataset of such pairs."
    )


def _from_dataset(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read a `tf.data.Dataset` of pairs, batched or not, into arrays."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise UserError(f"The dataset gives {spec}; it must give pairs (x, y).")
    if int(dataset.cardinality()) == -1:
        raise UserError("The dataset never ends. Leave out repeat(), or add take(N).")
    x, y = (part.shape for part in spec)
    batched = len(x) > 0 and len(y) > 0 and x[0] == y[0]  # both None, or the same number
    join = np.concatenate if batched else np.stack
    pairs = list(zip(*dataset.as_numpy_iterator(), strict=True))
    if not pairs:
        raise UserError("The dataset is empty.")
    return join(pairs[0]), join(pairs[1])


def _labels(y: np.ndarray) -> np.ndarray:
    y = np.asarray(y)
    return y.astype(np.int32) if y.dtype.kind in "iu" else y


def _split(data: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Hold out ``fraction`` of each class; both parts keep the order of ``data``."""
    if fraction == 0:
        return data, None
    rng = generator(seed, 0, "validation")
    stratify = data.y.ndim == 1 and data.y.dtype.kind in "iu"
    groups = data.y if stratify else np.zeros(len(data), np.int32)
    held = np.zeros(len(data), bool)
    for label in np.unique(groups):
        members = np.flatnonzero(groups == label)
        held[rng.permutation(members)[: round(fraction * len(members))]] = True
    if not held.any() or held.all():
        raise UserError(
            f"validation {fraction} of {len(data)} examples leaves one side empty. "
            "Type --validation 0 to train without, or another fraction."
        )
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))


def overfitted(data: DataModule, amount: int | float) -> DataModule:
    """Return ``data`` with so many training batches (or that fraction), validated on the same."""
    total = -(-len(data.train) // data.batch_size)
    count = amount if isinstance(amount, int) else max(1, int(amount * total))
    fewer = copy.copy(data)
    fewer.train = fewer.validation = limited(data.train, count, data.batch_size)
    return fewer


def limited(split: Split, batches: int, batch_size: int) -> Split:
    """Return the first ``batches`` batches of ``split``."""
    return dataclasses.replace(
        split, x=split.x[: batches * batch_size], y=split.y[: batches * batch_size]
    )
