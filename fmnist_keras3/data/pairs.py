"""Any IDX files of images and labels, such as EMNIST's; those of Fashion-MNIST are idx.py's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData
from fmnist_keras3.data.found import Found, assemble, split_of
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError

# By the third byte of a file.
TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
NEEDED = "Needed are files with images and labels in their names, and train or test."


def read(path: Path, pixels: Pixels) -> ImageData:
    """Return the IDX files in the folder ``path``, or those whose names begin as that path does.

    Plain or ``.gz``; images of rank 3 or 4, labels of rank 1 or one-hot. Raises UserError.
    """
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    files = sorted(folder.glob(f"{start}*"))
    found: dict[tuple[str, str], Path] = {}
    for file in files:
        name = file.name.lower()
        role = next((role for role in ("images", "labels") if role in name), None)
        if role is None or name.startswith(".") or not file.is_file():
            continue
        key = split_of(name) or "train", role
        other = found.setdefault(key, file)
        if other.with_suffix("").name == file.name or other.name == file.with_suffix("").name:
            found[key] = min(other, file)  # plain and packed: the plain one
        elif other != file:
            raise UserError(
                f"{folder} has several files of {key[0]} {key[1]}: {other.name}, {file.name}. Type "
                f"--data idx:PATH/BEGINNING with the beginning of the names that you want."
            )
    splits = {}
    for (split, role), file in found.items():
        if role == "images":
            labels = found.get((split, "labels"))
            splits[split] = Found(array(file), None if labels is None else array(labels))
    if not splits:
        there = ", ".join(file.name for file in files[:5]) or "nothing"
        raise UserError(f"{path} has no IDX files of images, but {there}. {NEEDED}")
    data = assemble(f"idx:{path.name}", path, splits, pixels)
    is_fashion = idx.digests(data.train, data.test) == list(idx.FILES.values())
    return dataclasses.replace(data, class_names=FASHION_CLASSES) if is_fashion else data


def array(file: Path) -> np.ndarray:
    """Return the array of an IDX file, of any rank and type; raises UserError."""
    content = idx.content_of(file)
    kind, rank = (content[2], content[3]) if len(content) > 3 else (0, 0)
    if content[:2] != b"\0\0" or kind not in TYPES or not 1 <= rank <= 4:
        raise UserError(
            f"{file} is no IDX file (it starts with {content[:4]!r}). Put one in its place."
        )
    return idx.values_of(file, content, rank, np.dtype(TYPES[kind]))
