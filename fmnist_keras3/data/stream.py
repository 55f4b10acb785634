"""A `tf.data.Dataset` that does not fit, or never ends: taken in its own order, as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fmnist_keras3.data.arrays import split_of
from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.plan import EpochPlan, epoch_plan
from fmnist_keras3.data.source import Rows
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, packed

SEEN = 2**13  # examples from the beginning that may be looked at
SAMPLE = 16  # by which a dataset is known again


class Stream:
    """A `tf.data.Dataset` as a source of which only the beginning can be asked for.

    ``examples`` are those of an epoch, which goes on where the one before ended; at its end the
    dataset begins again. ``batched`` tells whether its elements are batches.
    """

    def __init__(self, dataset: Any, examples: int, *, batched: bool) -> None:
        self.dataset, self.batched, self._examples = dataset, batched, examples

    def __len__(self) -> int:
        return self._examples

    def gather(self, indices: np.ndarray) -> Any:
        """Return examples of the beginning."""
        need = int(indices.max()) + 1
        if need > min(SEEN, len(self)):
            raise UserError(
                "The dataset is streamed in its own order: its examples come one after the other, "
                "and cannot be asked for by their numbers."
            )
        parts, count = [], 0
        for batch in self.batches():
            parts.append(batch)
            count += len(batch[0])
            if count >= need:
                break
        arrays = [np.concatenate(arrays)[indices] for arrays in zip(*parts, strict=True)]
        return packed(self.dataset.element_spec, arrays)

    def batches(self, skip: int = 0) -> Iterator[list[np.ndarray]]:
        """Yield the parts of the examples, some at a time, without the first ``skip``."""
        for element in self.dataset.repeat().prefetch(2).as_numpy_iterator():
            arrays = [np.asarray(part) for part in leaves(element)]
            arrays = arrays if self.batched else [array[None] for array in arrays]
            size = len(arrays[0])
            if skip < size:
                yield [array[skip:] for array in arrays]
            skip = max(0, skip - size)


def stream_of(split: Split) -> Stream | None:
    """Return the stream that the examples of ``split`` come from, or None."""
    source = getattr(leaves(split.x)[0], "source", None)
    return source if isinstance(source, Stream) else None


def plan_of(data: DataModule, seed: int, epoch: int, limit: int | None = None) -> EpochPlan:
    """Return the plan of an epoch of the training examples of ``data``, or of its first batches.

    Those of a stream come in its own order, the others in that of chance.
    """
    examples = len(data.train)
    return epoch_plan(
        seed,
        epoch,
        examples=examples,
        first=None if stream_of(data.train) is None else epoch * examples,
        classes=data.balanced_by,
        batch_size=data.batch_size,
        image_shape=data.train.image_shape,
        augment=data.augment,
        views=data.train.views,
        limit=limit,
    )


class StreamData(DataModule):
    """The examples of a `Stream`, and ``validation``, examples (x, y) or None."""

    def __init__(self, stream: Stream, validation: tuple[Any, ...] | None, batch_size: int) -> None:
        super().__init__(batch_size, validation=0.0)
        self._stream, self._validation = stream, validation

    def load(self) -> ImageData:
        stream, rows = self._stream, np.arange(min(SAMPLE, len(self._stream)))
        first, again = (stream.gather(rows) for _ in range(2))
        arrays = [np.asarray(array) for array in leaves(first)]
        each = sum(array.nbytes for array in arrays) // len(rows)
        parts = [Rows(stream, i, array[:1], each) for i, array in enumerate(arrays)]
        parts = packed(stream.dataset.element_spec, parts)
        parts = parts if isinstance(parts, tuple) else (parts,)
        batches = -(-len(stream) // self.batch_size)
        note = f"The dataset is streamed in its own order, {batches:,} batches an epoch."
        same = all(map(np.array_equal, leaves(first), leaves(again)))
        if not same:
            note += " It begins otherwise each time: no run on it can be repeated to the same bits."
        digest = hashlib.sha256(repr((stream.dataset.element_spec, len(stream))).encode())
        for array in arrays if same else ():
            digest.update(np.ascontiguousarray(array).data)
        train = Split(*parts)
        test = split_of(*(np.zeros((0, *a.shape[1:]), a.dtype) for a in arrays[:2]))
        validation = None if self._validation is None else split_of(*self._validation)
        sha256 = digest.hexdigest()
        return ImageData("dataset", "tf.data", train, test, (), sha256, note, validation)
