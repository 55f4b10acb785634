"""Data sets of other libraries, as they are: torch's, Grain's, TFDS' and Hugging Face's.

All have `len` and ``[i]``, an example each; none of the libraries is imported.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from fmnist_keras3.data.arrays import split_of
from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.fashion import FashionMNIST
from fmnist_keras3.data.pixels import CHANNELS, Pixels, array_of, colored, decode
from fmnist_keras3.data.source import Rows, Source, parts_of
from fmnist_keras3.data.table import IMAGES, LABELS
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, packed
from fmnist_keras3.settings import check_arguments

SAMPLE = 16  # examples by which a source without an identity is known again


class SourceData(DataModule):
    """Examples that are read by their numbers, as they are needed, so that they need not fit.

    ``source`` is a `Source`, or anything with `len` and ``[i]``: a torch Dataset, a Grain data
    source, a `datasets.Dataset`. An example is (x, y), (x, y, sample_weight), a dict with an image
    and a label, or x alone; pictures of Pillow and encoded ones are decoded, ``[C, H, W]`` becomes
    ``[H, W, C]``. ``validation`` is a fraction, a source, or arrays (x, y); ``test`` one of the
    latter. ``workers`` threads read at once: more than one only where the source bears it.
    ``image_size``, ``color`` and ``resize`` are those of `FolderData`, for uint8 images; the other
    ``options`` those of `DataModule`. Raises UserError for what cannot be read so.

    Example: ``SourceData(data, image_size=(64, 64), augment="flip")``
    """

    def __init__(
        self,
        source: Any,
        *,
        validation: Any = 0.1,
        test: Any = None,
        workers: int = 1,
        image_size: str | tuple[int, int] | None = None,
        color: str = "auto",
        resize: str = "crop",
        **options: Any,
    ) -> None:
        given = None if isinstance(validation, (int, float)) else validation
        super().__init__(validation=0.0 if given is not None else validation, **options)
        pixels = Pixels(image_size, color, resize)
        check_arguments(FashionMNIST, {"image_size": image_size, "color": color, "resize": resize})
        if not isinstance(workers, int) or workers < 1:
            raise UserError(f"workers is {workers!r}; it must be a whole number, at least 1.")
        self._sources = {"train": source, "validation": given, "test": test}
        self._as_source = lambda given: as_source(given, pixels, workers)

    def load(self) -> ImageData:
        splits, identities, notes, names = {}, [], [], ()
        for name, given in self._sources.items():
            if given is None:
                continue
            if isinstance(given, tuple):
                splits[name] = split_of(*given)
                continue
            source = self._as_source(given)
            split, same = _split_of_source(source)
            splits[name] = split
            identities.append(f"{name} {len(split)} {same or ''}")
            if same is None:
                notes.append(
                    f"The {name} source gives other values for the same example each time it is "
                    "asked: no run on it can be repeated, nor resumed to the same bits."
                )
            names = names or tuple(map(str, getattr(source, "class_names", None) or ()))
        train = splits["train"]
        return ImageData(
            f"source:{type(self._sources['train']).__name__}",
            "read as it is needed",
            train,
            splits.get("test", train.take(slice(0))),
            names,
            hashlib.sha256("\n".join(identities).encode()).hexdigest(),
            " ".join(notes) or None,
            splits.get("validation"),
        )


def as_source(given: Any, pixels: Pixels, workers: int = 1) -> Source:
    """Return ``given`` as a `Source`; raises UserError, by its name, for what cannot be one."""
    kinds = {kind.__name__ for kind in type(given).__mro__}
    name = type(given).__name__
    if "DataLoader" in kinds:
        raise UserError(
            f"A {name} gives batches in an order of its own. Give the data set that it reads: "
            "SourceData(loader.dataset, batch_size=...)."
        )
    if "PyDataset" in kinds:
        raise UserError(
            f"{name} is a PyDataset, which gives whole batches; examples are shuffled one by one "
            "here. Give what it reads as a class with __len__ and __getitem__ of one example, or "
            "pass it to Trainer.fit, which reads it into memory."
        )
    if not hasattr(given, "__len__"):
        raise UserError(
            f"{name} has no length, and no example of a number, which a training needs to shuffle "
            "and to resume. Give a data set with __len__ and __getitem__ (not streaming=True, no "
            "IterableDataset)."
        )
    if hasattr(given, "gather"):
        return given
    if not hasattr(given, "__getitem__"):
        raise UserError(f"{name} has no __getitem__(i), which gives one example.")
    return Items(given, pixels, workers)


def is_source(data: Any) -> bool:
    """Return whether ``data`` is of another library's data sets, or a `Source`."""
    plain = isinstance(data, (np.ndarray, Mapping, tuple, list, str, bytes))
    reads = hasattr(data, "gather") or hasattr(data, "__getitem__")
    kinds = {kind.__name__ for kind in type(data).__mro__}
    array = hasattr(data, "dtype") or hasattr(data, "iloc")  # tensors, and what pandas has
    loads = kinds & {"IterableDataset", "DataLoader"}
    return not plain and not array and bool(loads or (reads and hasattr(data, "__len__")))


class Items:
    """A source of what has `len` and ``[i]``; see `SourceData`."""

    def __init__(self, given: Any, pixels: Pixels, workers: int) -> None:
        self.given, self.pixels = given, pixels
        self._turns = threading.BoundedSemaphore(workers)
        self._channels = CHANNELS.get(pixels.color)
        features = getattr(given, "features", None)  # Hugging Face's
        self.labels, self.class_names = None, getattr(given, "classes", None) or ()
        if isinstance(features, Mapping):
            label = next((n for n in features if n.lower() in LABELS), None)
            names = getattr(features.get(label), "names", None)
            self.class_names = tuple(names or ())
            if names and getattr(given, "format", {}).get("type") != "custom":
                self.labels = np.asarray(given[label], np.int32)
        tree, arrays = self._example(0)
        self._tree, self._shapes = tree, [(a.shape, a.dtype) for a in arrays]

    def __len__(self) -> int:
        return len(self.given)

    def gather(self, indices: np.ndarray) -> Any:
        with self._turns:
            at_once = getattr(self.given, "__getitems__", None)  # faster, where there is one
            items = at_once(indices.tolist()) if at_once else [None] * len(indices)
            found = [
                self._example(index, item)[1]
                for index, item in zip(indices.tolist(), items, strict=True)
            ]
        for index, arrays in zip(indices.tolist(), found, strict=True):
            shapes = [(array.shape, array.dtype) for array in arrays]
            if shapes != self._shapes:
                raise UserError(
                    f"Example {index} is of {_readable(shapes)}, the first of "
                    f"{_readable(self._shapes)}. All must have one shape and dtype: give "
                    "image_size=(H, W), and color='rgb' or 'grey', to bring images to one."
                )
        return packed(self._tree, [np.stack(parts) for parts in zip(*found, strict=True)])

    def _example(self, index: int, item: Any = None) -> tuple[Any, list[np.ndarray]]:
        """Return the structure and the arrays of an example."""
        item = self.given[index] if item is None else item
        if isinstance(item, Mapping):
            item = self._of_dict(item)
        parts = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        if not 1 <= len(parts) <= 3:
            raise UserError(
                f"{type(self.given).__name__} gives {len(parts)} things for an example; it must be "
                "(x, y) or (x, y, sample_weight)."
            )
        x = [self._input(value, index) for value in leaves(parts[0])]
        rest = [_number(value) for value in leaves(parts[1:])]
        if self.labels is not None and rest and rest[0] != self.labels[index]:
            raise UserError(
                f"Example {index} has the label {rest[0]}, where the column of labels has "
                f"{self.labels[index]}. Leave out the transform that changes it."
            )
        return parts, [*x, *rest]

    def _of_dict(self, item: Mapping[str, Any]) -> tuple[Any, ...]:
        def named(words: Any) -> Any:
            return next((key for key in item if str(key).lower() in words), None)

        image, label = named(IMAGES), named(LABELS)
        if image is None or label is None:
            raise UserError(
                f"{type(self.given).__name__} gives examples with {', '.join(map(str, item))}; an "
                "image and a label are needed. Rename them so, or give (x, y)."
            )
        return item[image], item[label]

    def _input(self, value: Any, index: int) -> np.ndarray:
        picture = isinstance(value, Image.Image)
        if picture or isinstance(value, bytes):
            array = array_of(value) if isinstance(value, Image.Image) else decode(value)
        else:
            array = np.asarray(value)
            if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
                array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            if self.pixels.size or self._channels:
                raise UserError(
                    f"Example {index} is of {_readable([(array.shape, array.dtype)])}; image_size "
                    "and color are for images in uint8. Leave out the transform that makes other "
                    "numbers of them, as ToTensor()."
                )
            return np.ascontiguousarray(array)
        array = self.pixels.one(array[..., None] if array.ndim == 2 else array)
        if not picture:
            return array
        self._channels = self._channels or array.shape[-1]  # those of the first one, for all
        return colored(array, self._channels)


def _number(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.int32) if array.dtype.kind in "iub" else array


def _readable(shapes: list[Any]) -> str:
    return ", ".join(f"{list(shape)} {dtype}" for shape, dtype in shapes)


def _split_of_source(source: Source) -> tuple[Split, str | None]:
    """Return the examples of a source, and what it is known by; None where it is not the same."""
    parts = parts_of(source)
    x, y, weight = (*parts, None, None)[:3] if isinstance(parts, tuple) else (parts, None, None)
    labels = getattr(source, "labels", None)
    if labels is not None and isinstance(y, Rows):
        y = np.asarray(labels).astype(np.int32)
    split, identity = Split(x, y, weight), getattr(source, "identity", None)
    if identity is not None:
        return split, str(identity)
    rows = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(np.int64))
    found = [hashlib.sha256() for _ in range(2)]
    for digest in found:
        for part in leaves(source.gather(rows)):
            digest.update(np.ascontiguousarray(part).data)
    once, twice = (digest.hexdigest() for digest in found)
    return split, once if once == twice else None
