"""The record files of TensorFlow Datasets, by random access: images and labels of any example.

ArrayRecord is made for that. TFRecords are read through once, for where each example begins and
for its label; what was found is kept in the cache.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.each import Found
from fmnist_keras3.data.source import identity_of_files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import atomic, write_errors
from fmnist_keras3.runtime import cache_dir

AT_ONCE = 1024  # records of an ArrayRecord
HEAD, TAIL = 12, 4  # bytes before and after a record: its length, checksums


def read(builder: Any, split: str) -> Found:
    """Return the examples of a prepared TFDS set's ``split``; images are encoded bytes.

    Raises UserError for files of another format, and whatever TFDS and TensorFlow do for damaged
    ones.
    """
    from tensorflow_datasets.core.decode import DeserializeMethod

    files = tuple(Path(os.fspath(path)) for path in builder.info.splits[split].filepaths)
    form = builder.info.file_format.value
    known = cache_dir() / "records" / f"{identity_of_files(files[0].parent, files)[:32]}.npz"
    found = _kept(known)
    if form == "array_record":
        raw: Any = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
        if found is None:
            found = {"labels": np.array([_label(record) for record in _all(raw)], np.int64)}
            _keep(known, found)
    elif form == "tfrecord":
        if found is None:
            found = _index(files)
            _keep(known, found)
        raw = Spans(files, found["which"], found["offset"], found["length"])
    else:
        raise UserError(
            f"The files in {files[0].parent} are in the format {form}; ArrayRecord and TFRecord "
            "are read. Prepare it so: builder.download_and_prepare(file_format='array_record')."
        )
    if found["labels"].min() < 0:
        raise UserError(f"The split {split!r} of {builder.name} has no labels. Use another set.")
    return Found(Images(raw), found["labels"], files)


class Spans:
    """Pieces of files, by their number: of which file, from which byte on, how long."""

    def __init__(
        self, files: Sequence[Path], file: np.ndarray, offset: np.ndarray, length: np.ndarray
    ) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._opened = [os.open(path, os.O_RDONLY) for path in files]
        weakref.finalize(self, lambda opened: [os.close(one) for one in opened], self._opened)

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> bytes:
        length = int(self._length[index])
        # Which needs no place in the file, and so may be called by many threads.
        piece = os.pread(self._opened[self._file[index]], length, int(self._offset[index]))
        if len(piece) < length:
            raise ValueError("its file has become shorter")
        return piece


class Images:
    """The encoded images of serialized examples."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return _features(self._records[index])["image"].bytes_list.value[0]


def _features(record: bytes) -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _label(record: bytes) -> int:
    return _features(record)["label"].int64_list.value[0]


def _all(raw: Any) -> Iterator[bytes]:
    for start in range(0, len(raw), AT_ONCE):
        yield from raw.__getitems__(list(range(start, min(start + AT_ONCE, len(raw)))))


def _index(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Return where the examples of TFRecords lie, and their labels; checksums are looked at."""
    from fmnist_keras3.runtime import import_tensorflow_for_data

    tf, rows = import_tensorflow_for_data(), []
    for number, file in enumerate(files):
        offset = HEAD
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            rows.append((number, offset, len(record), _label(record)))
            offset += len(record) + TAIL + HEAD
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return dict(zip(("which", "offset", "length", "labels"), columns, strict=True))


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except Exception:  # none, or one that is damaged: it is made again
        return None


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as beside, open(beside, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
