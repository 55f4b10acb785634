"""Hugging Face's data sets: saved to disk, or in the cache of the package `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.found import Found, assemble, split_of
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.data.table import LABELS
from fmnist_keras3.ground.errors import UserError


def read(path: str | Path, pixels: Pixels) -> ImageData:
    """Return the set NAME that is in the cache of `datasets`, or that was saved to a folder.

    Nothing is downloaded. Raises UserError for what is not there, or has no images with labels.
    """
    place, splits = str(path), _load(str(path))
    found, names = {}, ()
    for name, rows in splits.items():
        split = split_of(name) or ("train" if len(splits) == 1 else None)
        if split is None or split in found:
            raise UserError(
                f"hf:{place} has the splits {', '.join(splits)}; one each of train, test and "
                "validation is needed."
            )
        image, label = _columns(rows, place)
        kinds = rows.features
        names = names or tuple(getattr(kinds[label], "names", None) or ())
        labels: Any = np.asarray(rows[label]) if names else list(rows[label])
        if names and (labels < 0).any():  # as a split without labels is marked
            labels = None
        files = tuple(Path(part["filename"]) for part in rows.cache_files)
        found[split] = Found(_Images(rows.select_columns([image]), image), labels, files)
    source = Path(place) if Path(place).is_dir() else Path(f"hf:{place}")
    return assemble(f"hf:{Path(place).name}", source, found, pixels, classes=names)


class _Images:
    """The encoded images of a column, as bytes or paths."""

    def __init__(self, rows: Any, column: str) -> None:
        from datasets import Image  # type: ignore[import-not-found]

        self._column = column
        kind = rows.features[column]
        self._rows = (
            rows.cast_column(column, Image(decode=False)) if hasattr(kind, "decode") else rows
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        value = self._rows[index][self._column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return value


def _columns(rows: Any, place: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    kinds = {name: type(kind).__name__ for name, kind in rows.features.items()}
    image = next((name for name, kind in kinds.items() if kind == "Image"), None)
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    named = [name for name in kinds if name.lower() in LABELS]
    label = next((name for name in (*(n for n in named if n in classes), *classes, *named)), None)
    if image is None or label is None:
        shown = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(
            f"hf:{place} has the columns {shown}; one of images and one of labels are needed."
        )
    return image, label


def _load(place: str) -> dict[str, Any]:
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            "hf: needs the package datasets. Run: pip install 'fmnist-keras3[hf]'"
        ) from error
    folder = Path(place)
    try:
        if folder.is_dir():
            found: Any = datasets.load_from_disk(str(folder))
        else:
            with _offline(datasets):
                found = datasets.load_dataset(place)
    except Exception as error:  # of many kinds
        text = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        how = f"Download it first: python -c \"import datasets; datasets.load_dataset('{place}')\""
        if folder.is_dir():
            how = "Give a folder that save_to_disk made, or --data folder:PATH for image files."
        raise UserError(f"hf:{place} cannot be read: {text} {how}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep the package from asking the network, which takes minutes where there is none."""
    from huggingface_hub import constants  # type: ignore[import-not-found]

    places = (datasets.config, constants)  # read from the environment when they were imported
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
