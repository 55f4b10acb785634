"""`fmnist data`: fetches, verifies and describes the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.augment import augmented, parse_augment
from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.data.plan import draws_of
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError

SAMPLE = 1000  # images that the mean is taken of, where they are read for it
UNBALANCED = 10  # times as many examples of one class as of another


def describe(
    data: str = "auto",
    data_dir: str | None = None,
    preview: str | None = None,
    augment: str | None = None,
    **pixels: Any,
) -> int:
    """Print name, source, sizes and class counts; draw a preview if asked.

    ``pixels`` are the settings of the images' size and colour.
    """
    from rich.table import Table

    from fmnist_keras3.data import sources

    if augment and not preview:
        raise UserError("--augment changes the preview only. Add --preview FILE.png")
    parse_augment(augment)
    if preview and not Path(preview).resolve().parent.is_dir():
        raise UserError(
            f"--preview {preview}: there is no folder {Path(preview).resolve().parent}."
        )
    found = sources.load(data, data_dir, pixels=Pixels(**pixels))
    console = screen.console()
    table = Table(title=f"{found.name} from {found.source}")
    table.add_column("class")
    table.add_column("training", justify="right")
    table.add_column("test", justify="right")
    k = len(found.class_names)
    train, test = (np.bincount(split.y, minlength=k) for split in (found.train, found.test))
    for i, name in enumerate(found.class_names):
        table.add_row(f"{i} {name}", f"{train[i]:,}", f"{test[i]:,}")
    table.add_section()
    table.add_row("all", f"{len(found.train):,}", f"{len(found.test):,}")
    console.print(table)
    if train.max() > UNBALANCED * train.min():
        most, least = (found.class_names[i] for i in (train.argmax(), train.argmin()))
        text = f" {most} has {train.max():,} training examples, {least} only {train.min():,}."
        console.print(screen.styled(("Warning:", "bold yellow"), text), soft_wrap=True)
    shape, images, about = found.train.x.shape[1:], found.train.x, "mean"
    if not found.train.in_memory:
        places = np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(np.int64)
        images, about = images[places], f"mean of {len(places):,}"
    console.print(f"images {shape}, {images.dtype}, {about} {images.mean():.1f}")
    if found.sha256:
        console.print(f"sha256 {found.sha256}", soft_wrap=True)
    if found.note:
        console.print(f"note: {found.note}", soft_wrap=True)
    if preview:
        draw_preview(found, Path(preview), augment)
        console.print(f"preview in {preview}", soft_wrap=True)
    return 0


def draw_preview(data: ImageData, path: Path, augment: str | None = None) -> None:
    """Write a sheet with a row of training images a class, or one of what ``augment`` does."""
    from fmnist_keras3.evaluation import plots, sheets

    synthetic = data.name == "synthetic"
    rows = [np.flatnonzero(data.train.y == k) for k in range(len(data.class_names))]
    named = parse_augment(augment)
    if not named:
        images = [data.train.x[row[:12]] for row in rows]
        title = f"{data.name}, training images"
        plots.examples(images, data.class_names, path, title, synthetic=synthetic)
        return
    # One of each class, in turn, so that each is mixed with one of another class.
    chosen = np.concatenate([row[:1] for row in rows])
    images = data.train.x[np.resize(chosen, np.clip(len(chosen), 10, 12))]
    blocks = {text: _drawn(images, parse_augment(text)) for text in _texts(augment)}
    if len(named) > 1:
        blocks["all of them"] = _drawn(images, named)
    title = f"{data.name}, {augment}"
    sheets.augmentations(images, blocks, path, title, synthetic=synthetic)


def _texts(augment: str | None) -> list[str]:
    return [part.strip() for part in (augment or "").split(",") if part.strip()]


def _drawn(images: np.ndarray, augment: Any, epochs: int = 3) -> np.ndarray:
    """Return ``images [n, H, W, C]`` as a training would see them, ``[epochs, n, H, W, C]``."""
    from fmnist_keras3 import runtime

    runtime.prepare()
    from keras import ops

    order, seen = np.arange(len(images)), []
    for epoch in range(epochs):
        draws = {
            name: draws_of(name, augmentation, 0, epoch, order, images.shape[1:])
            for name, augmentation in augment
        }
        batches = ops.convert_to_tensor(images[None])
        draws = {name: ops.convert_to_tensor(drawn[None]) for name, drawn in draws.items()}
        seen.append(ops.convert_to_numpy(augmented(dict(augment), batches, draws))[0])
    return np.stack(seen)
