"""Examples by random access: read when a batch needs them, so that a set need not fit in memory.

A `Source` gives examples by their numbers, `Rows` stands for one part of them (the images, the
labels) where an array would be. The epoch plan says which examples a batch has, so what is read is
shuffled, resumed and equal on every backend as arrays are.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from fmnist_keras3.data.labels import readable
from fmnist_keras3.data.pixels import Pixels, colored, decode, why_not
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import release
from fmnist_keras3.ground.tree import leaves, packed

MEMORY_BYTES = 2**29  # of images: a set that takes more is read when it is needed
# Threads that decode smaller images wait for Python's lock, and for one another, most of the time.
# Two of them made of PNG files of 28x28 pixels half as many a second as one, of 32x32 in colour two
# thirds; of 48x48 in colour 1.15 times as many, of 64x64 1.6 times.
ALONE_BYTES = 5_000
BLOCK_BYTES = 2**24  # that are read at once, where many examples are
# A mapped file counts as memory of the process, as far as it was read since it was let go.
MAPPED_BYTES, FAULT_BYTES = 2**27, 2**16


class Source(Protocol):
    """What gives examples by their numbers, for `SourceData`.

    ``gather(indices)``, of int64 ``[n]``, returns arrays ``[n, ...]``: x, (x, y) or
    (x, y, sample_weight), each of one shape and dtype for all examples, the same whenever they are
    asked for; several threads call it at once. Besides, a source may have ``identity``, a text
    that changes when its examples do, ``class_names``, and ``labels``, int ``[N]``, where they are
    known without reading the images, and ``at_once``, how many threads profit from one another.
    """

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> Any: ...


class Rows:
    """One part of the examples of a `Source`, in place of an array: ``x[indices]`` reads them.

    ``part`` is the place of the part among those of an example, ``like`` an array ``[1, ...]`` of
    its shape and dtype, ``nbytes_each`` what all parts of an example take, ``rows`` the examples
    that are meant (all).
    """

    def __init__(
        self, source: Source, part: int, like: np.ndarray, nbytes_each: int, rows: Any = None
    ) -> None:
        self.source, self.part, self.nbytes_each = source, part, nbytes_each
        self.rows = np.arange(len(source)) if rows is None else rows
        self.dtype, self.shape = like.dtype, (len(self.rows), *like.shape[1:])
        self.ndim, self._like = like.ndim, like

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return len(self) * self._like.nbytes

    def take(self, indices: Any) -> Rows:
        """Return the rows at ``indices`` (int array or slice); nothing is read."""
        return Rows(self.source, self.part, self._like, self.nbytes_each, self.rows[indices])

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.asarray(self.rows[key])
        flat, nbytes = rows.reshape(-1), rows.size * self._like.nbytes
        if nbytes > (limit := psutil.virtual_memory().available // 2):
            raise UserError(
                f"The examples take {nbytes / 2**30:.1f} GB, more than {limit / 2**30:.1f} GB, "
                "half of the free memory, into which they would be read. Leave out what asks for "
                "all of them, as --pipeline resident does."
            )
        result = np.empty((rows.size, *self.shape[1:]), self.dtype)
        step = max(1, BLOCK_BYTES // max(1, self.nbytes_each))

        def fill(start: int) -> None:
            block = slice(start, start + step)
            result[block] = _gathered(self.source, flat[block], {self.part: self})[self.part]

        if len(flat) <= step:
            fill(0)
        else:
            with ThreadPoolExecutor(threads_of(self.source), "fmnist-read") as threads:
                list(threads.map(fill, range(0, len(flat), step)))
        return result.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def threads_of(source: Source) -> int:
    """Return how many threads are to ask a source at once."""
    return getattr(source, "at_once", None) or os.cpu_count() or 2


def in_memory(tree: Any) -> bool:
    """Return whether all parts of ``tree`` are arrays."""
    return not any(isinstance(array, Rows) for array in leaves(tree))


def taken(array: Any, indices: Any) -> Any:
    """Return the rows of an array, or of `Rows` (which are not read), at ``indices``."""
    return array.take(indices) if isinstance(array, Rows) else array[indices]


def read(arrays: Sequence[Any], indices: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each of ``arrays`` at ``indices [...]``; an example is read once."""
    found: dict[tuple[int, bytes], list[np.ndarray]] = {}
    result = []
    for array in arrays:
        if not isinstance(array, Rows):
            result.append(array[indices])
            continue
        rows = array.rows[indices].reshape(-1)
        key = id(array.source), rows.tobytes()
        if key not in found:
            parts = {a.part: a for a in arrays if getattr(a, "source", None) is array.source}
            found[key] = _gathered(array.source, rows, parts)
        part = found[key][array.part]
        result.append(part.reshape(*np.shape(indices), *part.shape[1:]))
    return result


def _gathered(source: Source, rows: np.ndarray, parts: dict[int, Rows]) -> list[np.ndarray]:
    """Return what a source gives; raises UserError where that has changed its shape or dtype."""
    found = [np.asarray(part) for part in leaves(source.gather(rows))]
    for number, part in parts.items():
        given = (found[number].shape, found[number].dtype) if number < len(found) else None
        expected = ((len(rows), *part.shape[1:]), part.dtype)
        if given != expected:
            raise UserError(
                f"{type(source).__name__} gave {given or 'nothing'} for {len(rows)} examples "
                f"({', '.join(map(str, rows[:5]))}, ...), where its first example is of "
                f"{expected}. All must have one shape and dtype."
            )
    return found


def parts_of(source: Source) -> Any:
    """Return `Rows` for what ``source`` gives, in its structure; reads the first example."""
    if not len(source):
        raise UserError(f"{type(source).__name__} has no example.")
    tree = source.gather(np.zeros(1, np.int64))
    arrays = [np.asarray(part) for part in leaves(tree)]
    each = sum(array.nbytes for array in arrays)
    return packed(tree, [Rows(source, i, a, each) for i, a in enumerate(arrays)])


class Decoded:
    """A source of images in files, or of encoded ones, decoded when they are asked for.

    ``images`` is a list of paths and bytes, or what has ``len`` and ``[i]`` as one; they come as
    ``pixels`` asks, of one size and ``channels``.
    """

    def __init__(self, images: Sequence[Any], pixels: Pixels, shape: tuple[int, int, int]) -> None:
        self.images, self.pixels, self.shape = images, pixels, shape
        self.at_once = 1 if math.prod(shape) < ALONE_BYTES else None

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        result = np.empty((len(indices), *self.shape), np.uint8)
        for place, index in enumerate(indices.tolist()):
            result[place] = self._one(index)
        return result

    def _one(self, index: int) -> np.ndarray:
        image = self.images[index]
        try:
            found = colored(self.pixels.one(decode(image)), self.shape[-1])
            if found.shape != self.shape:
                raise ValueError(f"its shape is {found.shape}, not {self.shape}")
            return found
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise of all kinds for damaged files
            at = readable(image) if isinstance(image, (str, Path)) else f"example {index}"
            raise UserError(
                f"This cannot be read as an image: {at} ({why_not(error)}). It seemed to be one "
                "when the training began, and now its place in the batches is taken: mend or "
                "remove it, and start a new run."
            ) from error


class LetGo:
    """Lets go of a mapped file from time to time, as what was read counts as memory."""

    def __init__(self, mapping: Any) -> None:
        self._mapping, self._lock, self._touched = mapping, threading.Lock(), 0

    def after(self, count: int, nbytes_each: int) -> None:
        """Count so many reads; the system maps more than is asked for."""
        if self._mapping is None:
            return
        with self._lock:
            self._touched += count * max(FAULT_BYTES, nbytes_each)
            if self._touched > MAPPED_BYTES:
                self._touched = 0
                release(self._mapping)


class MappedArray:
    """A source of the rows of an array in a file, mapped into memory; ``change`` is done to each.

    What was read is let go from time to time: a file that was read through would else count as
    memory of the process.
    """

    def __init__(self, array: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.array, self.change = array, change
        mapping = getattr(array, "_mmap", None)
        # A small file may stay: it costs little, and to map its pages again takes time.
        self._let_go = LetGo(mapping if mapping and len(mapping) > MAPPED_BYTES else None)

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        rows = self.array.view(np.ndarray)[indices]
        self._let_go.after(len(indices), self.array[:1].nbytes)
        return self.change(rows)


def identity_of_files(base: Path, files: Iterable[str | Path | bytes], *more: Any) -> str:
    """Return a checksum over names below ``base``, sizes and times of ``files``, and of ``more``.

    It stands for the contents, which it would take long to read; of bytes these count.
    """
    digest = hashlib.sha256()
    for file in files:
        if isinstance(file, bytes):
            digest.update(f"\0{len(file)}\0".encode() + file)
            continue
        about = os.stat(file)
        digest.update(os.fsencode(os.path.relpath(file, base)))
        digest.update(f"\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    for part in more:
        digest.update(part.data if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
