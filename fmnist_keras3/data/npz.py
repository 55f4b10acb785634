"""NumPy's files: an .npz archive with the arrays of a set, or a folder of .npy files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.found import SPLITS, Found, assemble, split_of
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError

IMAGES = {"x", "image", "images", "img", "imgs", "data", "features", "inputs", "input"}
LABELS = {"y", "label", "labels", "lbl", "target", "targets", "class", "classes"}
NEEDED = (
    "Needed are x_train, y_train and perhaps x_test, y_test; also train_images, train_labels and "
    "the like, or x and y."
)


def read(path: Path, pixels: Pixels) -> ImageData:
    """Return the arrays of an .npz file, or of a folder of .npy files, by their names.

    Those of a folder are mapped into memory. Pickles are never loaded. Raises UserError.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    passed = []
    for name, array in _arrays(path):
        role, split = _role(name), split_of(name) or "train"
        if role is None:
            passed.append(name)
        elif role in found.setdefault(split, {}):
            raise UserError(f"{path} has several arrays of {role} for {split}: {name}. {NEEDED}")
        else:
            found[split][role] = array
    for split, parts in found.items():
        if "images" not in parts:
            raise UserError(f"{path} has labels without images for {split}. {NEEDED}")
    if not found:
        raise UserError(f"{path} has the arrays {', '.join(passed) or 'none'}. {NEEDED}")
    note = f"Arrays that are not used: {', '.join(passed)}." if passed else ""
    splits = {s: Found(parts["images"], parts.get("labels")) for s, parts in found.items()}
    return assemble(f"npz:{path.name}", path, splits, pixels, notes=[note])


def _role(name: str) -> str | None:
    if re.fullmatch("arr_[01]", name):  # as np.savez names them
        return "images" if name == "arr_0" else "labels"
    plain = name.lower()
    for word in ("validation", "valid", *SPLITS):
        plain = plain.replace(word, " ")
    words = set(re.split(r"[^a-z]+", plain))
    return "labels" if words & LABELS else "images" if words & IMAGES else None


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays by their names."""
    place: Any = path
    try:
        if not path.is_dir():
            # Opened here: NumPy leaves a file that is damaged open.
            with open(path, "rb") as file:
                if file.peek(1)[:1] not in b"P\x93\x80":  # else NumPy says that it is a pickle
                    raise ValueError("it is neither an .npz nor an .npy file")
                archive = np.load(file)
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise UserError(f"{path} is a single array. Give a folder of several, or .npz.")
                for name in archive.files:
                    place = f"{path} ({name})"
                    yield name, archive[name]
            return
        for file in sorted(path.glob("*.npy")):
            place = file
            yield file.stem, np.load(file, mmap_mode="r")
        for file in sorted(path.glob("*.npz")):
            place = file
            for name, array in _arrays(file):
                yield (file.stem if name == "arr_0" else f"{file.stem} {name}"), array
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if "pickle" in str(error):
            raise UserError(
                f"{place} holds Python objects, which may run programs when they are loaded, and "
                "is not read. Store arrays of numbers: np.savez(..., x_train=np.asarray(x))."
            ) from error
        text = getattr(error, "strerror", None) or str(error).split("\n")[0] or "it ends early"
        raise UserError(f"{place} cannot be read as arrays of NumPy: {text}.") from error
