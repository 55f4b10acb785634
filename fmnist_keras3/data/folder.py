"""A folder of images with a folder for each class, below train, test and val or without these."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.found import Found, assemble
from fmnist_keras3.data.labels import natural, readable
from fmnist_keras3.data.pixels import SUFFIXES, Pixels
from fmnist_keras3.ground.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
NEEDED = "Needed is PATH/train/CLASS/*.png (and test, val), or PATH/CLASS/*.png."


def read(path: Path, pixels: Pixels) -> ImageData:
    """Return the images below ``path``; classes are named as the folders.

    They come in the order of their files' names, whichever class they are of, so that numbered
    ones are in the order of what they were made from. Folders of a class may hold more of them;
    hidden files are passed over, others than images left out and counted. Raises UserError.
    """
    if not path.is_dir():
        raise UserError(f"{path} is a file; folder: takes a folder. {NEEDED}")
    folders = _folders(path)
    named = {SPLITS[f.name.lower()]: f for f in folders if f.name.lower() in SPLITS}
    if "train" not in named or not _folders(named["train"]):  # that may be a class, of vehicles
        named = {"train": path}
    found, others, empty = {}, Counter(), []
    for split, folder in named.items():
        examples: list[tuple[list, Path, str]] = []
        classes = _folders(folder)
        for of_class in classes:
            before = len(examples)
            for file in _files(of_class):
                if file.suffix.lower() in SUFFIXES:
                    order = natural(str(file.relative_to(of_class)))
                    examples.append((order, file, readable(of_class.name)))
                else:
                    others[file.suffix.lower() or file.name] += 1
            if len(examples) == before:
                empty.append(readable(of_class.relative_to(path)))
        if not examples:
            there = f"{len(classes)} folders, without an image" if classes else "no folders"
            raise UserError(f"{folder} has {there}. {NEEDED}")
        examples.sort(key=lambda example: (example[0], natural(example[2])))
        files, labels = [file for _, file, _ in examples], [name for *_, name in examples]
        found[split] = Found(files, labels)
    notes = []
    if empty:
        notes.append(f"Folders without an image are left out: {', '.join(empty)}.")
    if others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common())
        notes.append(f"Files of other kinds are left out: {kinds}.")
    return assemble(f"folder:{path.name}", path, found, pixels, notes=notes)


def _folders(path: Path) -> list[Path]:
    try:
        found = [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    hidden = (".", "__MACOSX")
    return sorted((f for f in found if not f.name.startswith(hidden)), key=lambda f: f.name)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder``, by way of links, too, each folder once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    seen, top = set(), os.path.realpath(folder)
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or top.startswith(f"{real}{os.sep}"):  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith((".", "Thumbs.db")))
