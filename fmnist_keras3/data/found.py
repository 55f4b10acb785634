"""From what a reader of files found to a data set: one way for all kinds of files.

A reader gives, for each split, images (an array, or files and encoded images) and labels as they
stand there. What is done to them is said in the set's note.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmnist_keras3.data.dataset import ImageData, Split, checksum
from fmnist_keras3.data.labels import classes_of, readable
from fmnist_keras3.data.pixels import Pixels, as_bytes, as_images, colored, decode, opaque, why_not
from fmnist_keras3.data.plan import held_out
from fmnist_keras3.ground.errors import UserError

SPLITS = {"test": "test", "t10k": "test", "val": "validation", "train": "train"}
TEST_FRACTION = 0.1  # of a set without a test split
SHOWN = 3


@dataclass
class Found:
    """The examples of a split: images ``[N, ...]`` or a list of paths and bytes; labels or None."""

    images: Any
    labels: Any


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
        if len(found.images) != len(found.labels):
            raise UserError(
                f"{source} has {len(found.images):,} images but {len(found.labels):,} labels for "
                f"{split}. Each image needs one."
            )
    images = _arrays(source, splits, pixels, said)
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
    sha256 = checksum(train, validation, test)
    note = " ".join(filter(None, said)) or None
    return ImageData(name, str(source), train, test, classes, sha256, note, validation)


def _arrays(
    source: Path, splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, np.ndarray]:
    """Return the images of each split as uint8 ``[N, H, W, C]`` of one size and colour."""
    blocks: dict[str, list[np.ndarray]]  # [n, H, W, C] each
    if isinstance(splits["train"].images, np.ndarray):
        numbers, note = as_bytes({split: found.images for split, found in splits.items()})
        said.append(note)
        blocks = {}
        for split, array in numbers.items():
            array = as_images(array, pixels.size, f"{source} ({split})")
            blocks[split] = [pixels.all(opaque(array) if array.shape[-1] == 4 else array)]
    else:
        blocks = _decoded(splits, pixels, said)
    for split, parts in blocks.items():
        if not sum(map(len, parts)):
            raise UserError(
                f"{source} has no image for {split} that can be used. {' '.join(said)}".strip()
            )
    sizes: Counter[tuple[int, ...]] = Counter()
    for part in (part for parts in blocks.values() for part in parts):
        sizes[part.shape[1:3]] += len(part)
    if len(sizes) > 1:
        most = sizes.most_common(SHOWN)
        shown = ", ".join(f"{height}x{width} ({count:,})" for (height, width), count in most)
        size = ",".join(map(str, most[0][0]))
        more = f" and {len(sizes) - SHOWN:,} more" * (len(sizes) > SHOWN)
        raise UserError(
            f"{source} has images of {len(sizes):,} sizes, height x width: {shown}{more}. Type "
            f"--image_size H,W to bring them to one, as --image_size {size}"
        )
    channels = max(part.shape[-1] for parts in blocks.values() for part in parts)
    return {
        split: np.concatenate([colored(part, channels) for part in parts])
        for split, parts in blocks.items()
    }


def _decoded(
    splits: dict[str, Found], pixels: Pixels, said: list[str]
) -> dict[str, list[np.ndarray]]:
    """Decode the files of each split, in parallel; those that cannot be are left out and named."""

    def load(source: Path | bytes) -> np.ndarray | Exception:
        try:
            return pixels.one(decode(source))[None]
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise of all kinds for damaged files
            return error

    limit, nbytes, blocks, bad = psutil.virtual_memory().available // 2, 0, {}, []
    with ThreadPoolExecutor(os.cpu_count(), "fmnist-decode") as threads:
        for split, found in splits.items():
            kept: list[int] = []
            blocks[split] = []
            for i, image in enumerate(threads.map(load, found.images)):
                if isinstance(image, Exception):
                    place = found.images[i]
                    at = readable(place) if isinstance(place, Path) else f"example {i} of {split}"
                    bad.append(f"{at} ({why_not(image)})")
                    if pixels.on_bad_file == "stop":
                        raise UserError(
                            f"This cannot be read as an image: {bad[0]}. Mend or remove it, or "
                            "leave such files out: --on_bad_file skip"
                        )
                    continue
                kept.append(i)
                blocks[split].append(image)
                nbytes += image.nbytes
                if nbytes > limit:
                    raise UserError(
                        f"The images take more than {limit / 2**30:.1f} GB, half of the free "
                        "memory, into which they are read. Type --image_size 64,64"
                    )
            found.labels = [found.labels[i] for i in kept]
    if bad:
        shown, more = "; ".join(bad[:SHOWN]), "; ..." * (len(bad) > SHOWN)
        said.append(f"{len(bad):,} images that cannot be read are left out: {shown}{more}.")
    return blocks
