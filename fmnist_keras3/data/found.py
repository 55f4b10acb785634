"""From what a reader of files found to a data set: one way for all kinds of files.

A reader gives, for each split, images (an array, or files and encoded images) and labels as they
stand there. What is done to them is said in the set's note.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmnist_keras3.data import source as limits
from fmnist_keras3.data.dataset import ImageData, Split, checksum
from fmnist_keras3.data.decoded import Store, Writing
from fmnist_keras3.data.each import AT_ONCE, SHOWN, Found, each_image, files_of
from fmnist_keras3.data.labels import classes_of
from fmnist_keras3.data.pixels import (
    CHANNELS,
    Pixels,
    as_bytes,
    as_images,
    colored,
    decode,
    opaque,
    scaling,
    shape_of,
)
from fmnist_keras3.data.plan import held_out
from fmnist_keras3.data.source import (
    Decoded,
    MappedArray,
    Rows,
    Source,
    identity_of_files,
    parts_of,
)
from fmnist_keras3.ground.errors import UserError

SPLITS = {"test": "test", "t10k": "test", "val": "validation", "train": "train"}
TEST_FRACTION = 0.1  # of a set without a test split


def split_of(name: str) -> str | None:
    """Return the split that a file, folder or array is of, by its name, or None."""
    return next((split for word, split in SPLITS.items() if word in name.lower()), None)


def files_in(path: Path, suffixes: Iterable[str], needed: str) -> dict[str, list[Path]]:
    """Return the files of each split: ``path`` itself, or those in that folder by their names.

    Raises UserError where there are none, or where a name tells no split.
    """
    if not path.is_dir():
        return {"train": [path]}
    found: dict[str, list[Path]] = {}
    files = [f for f in sorted(path.iterdir()) if f.is_file() and not f.name.startswith(".")]
    files = [file for file in files if file.name.lower().endswith(tuple(suffixes))]
    for file in files:
        split = split_of(file.stem) or ("train" if len(files) == 1 else None)
        if split is None:
            raise UserError(
                f"{file} is of no known split. Give the path of one file, or put train, test or "
                "val into the names of several."
            )
        found.setdefault(split, []).append(file)
    if not found:
        raise UserError(f"{path} holds no file {' or '.join(suffixes)}. {needed}")
    return found


def assemble(
    name: str,
    source: Path,
    splits: dict[str, Found],
    pixels: Pixels,
    *,
    classes: tuple[str, ...] = (),
    notes: Iterable[str] = (),
) -> ImageData:
    """Return the data set of what was found, by split: "train", "test", "validation".

    ``classes`` are the names of the labels 0, 1, 2, ... where the source has them. Without a test
    split the validation split is the test, else a tenth of each class, always the same. Raises
    UserError for what is no set of images of one size with a class each.
    """
    said = list(notes)
    if "train" not in splits:
        raise UserError(f"{source} has no training examples, only {', '.join(splits) or 'none'}.")
    for split in [split for split, found in splits.items() if found.labels is None]:
        if split == "train":
            raise UserError(f"{source} has no labels for its training examples.")
        said.append(f"The {split} split has no labels and is left out.")
        del splits[split]
    for split, found in splits.items():
        if 0 in (np.ndim(found.labels), getattr(found.images, "ndim", 1)):
            raise UserError(f"{source} has one number for {split}, where all examples should be.")
        if len(found.images) != len(found.labels):
            raise UserError(
                f"{source} has {len(found.images):,} images but {len(found.labels):,} labels for "
                f"{split}. Each image needs one."
            )
    if pixels.cache == "disk" and not isinstance(splits["train"].images, np.ndarray):
        splits = _stored(source, splits, pixels, said)
    size = sum(_size(f.images, pixels) for f in splits.values())
    lazy = size > limits.MEMORY_BYTES and pixels.cache != "memory"
    images = (_sources if lazy else _arrays)(source, splits, pixels, said)
    labels, classes, note = classes_of({s: f.labels for s, f in splits.items()}, classes)
    said.append(note)
    made = {split: Split(images[split], labels[split]) for split in splits}
    train, test, validation = (made.get(split) for split in ("train", "test", "validation"))
    assert train is not None
    if test is None and validation is not None:
        said.append("The set has no test split: validation is used.")
        test, validation = validation, None
    elif test is None:
        held = held_out(train.y, TEST_FRACTION, 0, "test")
        train, test = train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
        said.append(f"The set has no test split: {len(test):,} examples are held out for it.")
    if lazy:
        total = sum(split.nbytes for split in made.values())
        said.append(f"Images are read as they are needed: {total / 2**30:.1f} GB in all.")
        sha256 = _identity(source, splits, pixels, labels)
    else:
        sha256 = checksum(train, validation, test)
    note = " ".join(filter(None, said)) or None
    return ImageData(name, str(source), train, test, classes, sha256, note, validation)


def _arrays(
    source: Path, splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, np.ndarray]:
    """Return the images of each split as uint8 ``[N, H, W, C]`` of one size and colour."""
    blocks: dict[str, list[np.ndarray]]  # [n, H, W, C] each
    if splits["train"].ready:
        return {split: np.array(found.images) for split, found in splits.items()}
    if isinstance(splits["train"].images, np.ndarray):
        numbers, note = as_bytes({split: found.images for split, found in splits.items()})
        said.append(note)
        blocks = {}
        for split, array in numbers.items():
            array = as_images(array, pixels.size, f"{source} ({split})")
            blocks[split] = [pixels.all(opaque(array) if array.shape[-1] == 4 else array)]
    else:
        blocks = _decoded(splits, pixels, said)
    shapes = {split: [part.shape for part in parts] for split, parts in blocks.items()}
    _check_sizes(source, shapes, said)
    channels = max(part.shape[-1] for parts in blocks.values() for part in parts)
    return {
        split: np.concatenate([colored(part, channels) for part in parts])
        for split, parts in blocks.items()
    }


def _check_sizes(source: Path, shapes: dict[str, list[tuple[int, ...]]], said: list[str]) -> None:
    """Raise UserError for a split without images, and for blocks ``[n, H, W, C]`` of other sizes.

    ``shapes`` are those of the blocks of each split.
    """
    sizes: Counter[tuple[int, ...]] = Counter()
    for split, of_split in shapes.items():
        if not sum(shape[0] for shape in of_split):
            raise UserError(
                f"{source} has no image for {split} that can be used. {' '.join(said)}".strip()
            )
        for shape in of_split:
            sizes[shape[1:3]] += shape[0]
    if any(0 in size for size in sizes):
        raise UserError(f"{source} has images without pixels.")
    if len(sizes) > 1:
        most = sizes.most_common(SHOWN)
        shown = ", ".join(f"{height}x{width} ({count:,})" for (height, width), count in most)
        size = ",".join(map(str, most[0][0]))
        more = f" and {len(sizes) - SHOWN:,} more" * (len(sizes) > SHOWN)
        raise UserError(
            f"{source} has images of {len(sizes):,} sizes, height x width: {shown}{more}. Type "
            f"--image_size H,W to bring them to one, as --image_size {size}"
        )


def _decoded(
    splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, list[np.ndarray]]:
    """Decode the files of each split, in parallel; those that cannot be are left out and named."""
    limit, nbytes = psutil.virtual_memory().available // 2, 0

    def load(source: Any) -> np.ndarray:
        return pixels.one(decode(source))[None]

    blocks: dict[str, list[np.ndarray]] = {}
    for split, image in each_image(splits, load, pixels, said):
        blocks.setdefault(split, []).append(image)
        nbytes += image.nbytes
        if nbytes > limit:
            raise UserError(
                f"The images take more than {limit / 2**30:.1f} GB, half of the free "
                "memory, into which they are read. Type --image_size 64,64"
            )
    return {split: blocks.get(split, []) for split in splits}


def _size(images: Any, pixels: Pixels) -> int:
    """Return how many bytes images will take in memory, about; 0 for those that are there."""
    if isinstance(images, np.ndarray):
        shape, channels = images.shape[1:], 3 if images.ndim == 4 and 3 in images.shape[1:] else 1
        each = math.prod(pixels.size) * channels if pixels.size else math.prod(shape)
        return len(images) * each if isinstance(images, np.memmap) else 0
    for i in range(min(len(images), AT_ONCE)):
        with contextlib.suppress(Exception):  # said by whoever reads all of them
            *sides, channels = shape_of(images[i])
            sides, channels = pixels.size or sides, CHANNELS.get(pixels.color, channels)
            return len(images) * math.prod(sides) * channels
    return 0


def _sources(
    path: Path, splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, Rows]:
    """Return the images of each split to be read when they are needed, as `_arrays` would be."""
    made: dict[str, Source] = {}
    if splits["train"].ready:
        made = {split: MappedArray(found.images, np.asarray) for split, found in splits.items()}
    elif isinstance(splits["train"].images, np.ndarray):
        change, note = scaling({split: found.images for split, found in splits.items()})
        said.append(note)
        of_splits = {
            split: as_images(found.images, pixels.size, f"{path} ({split})")
            for split, found in splits.items()
        }
        channels = max(3 if a.shape[-1] > 1 else 1 for a in of_splits.values())
        channels = CHANNELS.get(pixels.color, channels)
        for split, array in of_splits.items():
            made[split] = MappedArray(array, partial(_as_asked, change, pixels, channels))
        shapes = {s: [(len(a), *(pixels.size or a.shape[1:3]))] for s, a in of_splits.items()}
        _check_sizes(path, shapes, said)
    else:
        shape = _shape(path, splits, pixels, said)
        made = {split: Decoded(found.images, pixels, shape) for split, found in splits.items()}
    return {split: parts_of(of) for split, of in made.items()}


def _shape(
    path: Path, splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> tuple[int, int, int]:
    """Return the shape that the images in files will have, by the head of each."""
    sizes: dict[str, Counter[tuple[int, ...]]] = {split: Counter() for split in splits}
    for split, shape in each_image(splits, shape_of, pixels, said):
        sizes[split][*(pixels.size or shape[:2]), shape[2]] += 1
    _check_sizes(
        path, {s: [(n, *shape) for shape, n in of.items()] for s, of in sizes.items()}, said
    )
    each = [shape for found in sizes.values() for shape in found]
    height, width, _ = each[0]
    return height, width, CHANNELS.get(pixels.color, max(shape[2] for shape in each))


def _stored(
    path: Path, splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, Found]:
    """Return the images of all splits from a copy of the decoded ones, which is made if need be."""
    nothing = dict.fromkeys(splits, np.zeros(0))
    store = Store(_identity(path, splits, pixels, nothing))
    files = {split: tuple(files_of(found)) for split, found in splits.items()}
    if (there := store.open()) is None:
        notes: list[str] = []
        labels = {split: found.labels for split, found in splits.items()}
        for found in splits.values():
            found.labels = range(len(found.images))
        shape = _shape(path, splits, pixels, notes)
        writing = Writing(store, shape)
        try:
            made = lambda image: colored(pixels.one(decode(image)), shape[2])  # noqa: E731
            for split, image in each_image(splits, made, pixels, notes):
                writing.add(split, image)
            kept = {split: list(found.labels) for split, found in splits.items()}
            writing.finish({"notes": notes, "kept": kept})
        finally:
            writing.close()
        for split, found in splits.items():
            found.labels = labels[split]
        there = store.open()
        assert there is not None
    arrays, index = there
    if index["notes"] and pixels.on_bad_file == "stop":
        raise UserError(f"{index['notes'][0]} Mend or remove them, or type --on_bad_file skip")
    said += [*index["notes"], f"Decoded images are in {store.folder}."]
    if gone := splits.keys() - arrays.keys():
        raise UserError(f"{path} has no image for {gone.pop()} that can be used. {said[0]}")
    result = {}
    for split, found in splits.items():
        kept = index["kept"][split]
        own = found.files or tuple(files[split][i] for i in kept)
        result[split] = Found(arrays[split], [found.labels[i] for i in kept], own, ready=True)
    return result


def _as_asked(change: Any, pixels: Pixels, channels: int, images: np.ndarray) -> np.ndarray:
    images = change(images)
    return colored(pixels.all(opaque(images) if images.shape[-1] == 4 else images), channels)


def _identity(
    path: Path, splits: dict[str, Found], pixels: Pixels, labels: dict[str, np.ndarray]
) -> str:
    parts = []
    for split, found in splits.items():
        files = files_of(found)
        more = (split, pixels.size, pixels.color, pixels.resize, labels[split])
        parts.append(identity_of_files(path, files, *more))
    return hashlib.sha256("".join(parts).encode()).hexdigest()
