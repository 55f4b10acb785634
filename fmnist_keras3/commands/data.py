"""`fmnist data`: fetches, verifies and describes the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.errors import UserError


def describe(
    data: str = "auto",
    data_dir: str | None = None,
    preview: str | None = None,
    augment: str | None = None,
) -> int:
    """Print name, source, sizes and class counts; draw a preview if asked."""
    from rich.console import Console
    from rich.table import Table

    from fmnist_keras3.data import sources

    if augment and not preview:
        raise UserError("--augment changes the preview only. Add --preview FILE.png")
    parse_augment(augment)
    if preview and not Path(preview).resolve().parent.is_dir():
        raise UserError(
            f"--preview {preview}: there is no folder {Path(preview).resolve().parent}."
        )
    found = sources.load(data, data_dir)
    console = Console()
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
    shape, pixels = found.train.x.shape[1:], found.train.x
    console.print(f"images {shape}, {pixels.dtype}, mean {pixels.mean():.1f}", highlight=False)
    if found.sha256:
        console.print(f"sha256 {found.sha256}", highlight=False, soft_wrap=True)
    if found.note:
        console.print(f"note: {found.note}", highlight=False, soft_wrap=True)
    if preview:
        draw_preview(found, Path(preview), augment)
        console.print(f"preview in {preview}", highlight=False, soft_wrap=True)
    return 0


def draw_preview(data: ImageData, path: Path, augment: str | None = None, each: int = 12) -> None:
    """Write a sheet with a row of ``each`` training images a class, augmented if asked."""
    from fmnist_keras3.data.plan import generator
    from fmnist_keras3.evaluation import plots

    rows = [np.flatnonzero(data.train.y == k)[:each] for k in range(len(data.class_names))]
    images = [data.train.x[row] for row in rows]
    if augment:
        from fmnist_keras3 import runtime

        runtime.prepare()
        import keras

        for name, augmentation in parse_augment(augment):
            for k, x in enumerate(images):
                draws = augmentation.draw(generator(0, k, name), len(x), *x.shape[1:3])
                x, draws = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(draws)
                images[k] = np.asarray(augmentation.apply(x, draws))
    title = f"{data.name}, training images" + (f", {augment}" if augment else "")
    plots.examples(images, data.class_names, path, title, synthetic=data.name == "synthetic")
