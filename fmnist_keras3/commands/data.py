"""`fmnist data`: fetches, verifies and describes the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.data.augment import augmented, parse_augment
from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.data.plan import draws_of
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import save

if TYPE_CHECKING:
    from fmnist_keras3.data.survey import Survey

SAMPLE = 1000  # images that the mean is taken of, where they are read for it
UNBALANCED = 10  # times as many examples of one class as of another
PICTURES, EXAMPLES = 240, (3, 10)  # of a report: of all classes, the least and most of each
PAIRS = 24  # of duplicates of each kind


def describe(
    data: str = "auto",
    data_dir: str | None = None,
    preview: str | None = None,
    augment: str | None = None,
    report: str | None = None,
    **pixels: Any,
) -> int:
    """Print name, source, sizes and class counts; draw a preview and write a report if asked.

    ``pixels`` are the settings of the images' size and colour.
    """
    from rich.table import Table

    from fmnist_keras3.data import sources

    if augment and not preview:
        raise UserError("--augment changes the preview only. Add --preview FILE.png")
    parse_augment(augment)
    for option, path in (("preview", preview), ("report", report)):
        if path and not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{option} {path}: there is no folder {Path(path).resolve().parent}.")
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
    if text := unbalanced(found, train):
        console.print(screen.styled(("Warning: ", "bold yellow"), text), soft_wrap=True)
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
    if report:
        for line in write_report(found, Path(report)):
            console.print(line, soft_wrap=True)
        console.print(f"report in {report}", soft_wrap=True)
    return 0


def unbalanced(data: ImageData, counts: np.ndarray) -> str:
    """Return what is said of ``counts``, of the training examples of each class, or ""."""
    if counts.max() <= UNBALANCED * counts.min():
        return ""
    most, least = (data.class_names[i] for i in (counts.argmax(), counts.argmin()))
    return f"{most} has {counts.max():,} training examples, {least} only {counts.min():,}."


def write_report(data: ImageData, path: Path) -> list[str]:
    """Write a page about a data set; returns what it says of duplicates."""
    from fmnist_keras3.data import duplicates
    from fmnist_keras3.data.survey import survey
    from fmnist_keras3.evaluation.mistakes import thumbnail
    from fmnist_keras3.evaluation.report import render

    seen, names = survey(data), data.class_names
    counts = [np.bincount(split.y, minlength=len(names)) for split in seen.splits.values()]
    total, nbytes = sum(map(len, seen.splits.values())), seen.splits["train"].x[:1].nbytes
    each = int(np.clip(PICTURES // len(names), *EXAMPLES))

    def one(number: int) -> dict[str, Any]:
        split, row = seen.where(number)
        label = names[seen.label[number]]
        image = thumbnail(seen.picture(number))
        return {"split": split, "row": row, "label": label, "image": image}

    def shown(pairs: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "both": [one(i), one(j)],
                "leaks": seen.split[i] != seen.split[j],
                "conflicts": seen.label[i] != seen.label[j],
            }
            for i, j in pairs[:PAIRS].tolist()
        ]

    sizes = {name: f"{len(split):,}" for name, split in seen.splits.items()}
    height, width, channels = data.train.x.shape[1:]
    tiles = [(f"{name} images", size, "") for name, size in sizes.items()]
    tiles.append(("Classes", f"{len(names):,}", ""))
    tiles.append(("Height x width", f"{height} x {width}", ("grey", "colour")[channels > 1]))
    tiles.append(("Decoded", _bytes(total * nbytes), "as uint8"))
    said = _duplicates(seen)
    page = render(
        Path(__file__).parent / "data.html",
        data=data,
        names=names,
        seen=seen,
        total=total,
        shape=f"{height} x {width} pixels" + ", colour" * (channels > 1),
        unbalanced=unbalanced(data, counts[0]),
        tiles=[(label[:1].upper() + label[1:], *rest) for label, *rest in tiles],
        counts=[
            {
                "name": name,
                "share": 100 * counts[0][k] / counts[0].max(),
                "counts": [int(of[k]) for of in counts],
            }
            for k, name in enumerate(names)
        ],
        sheet=[
            {
                "name": name,
                "mean": None if (mean := seen.means[k]) is None else thumbnail(mean),
                "images": [thumbnail(seen.picture(i)) for i in seen.of_class(k, each)],
            }
            for k, name in enumerate(names[: PICTURES // EXAMPLES[0]])
        ],
        mean=thumbnail(seen.mean),
        brightness=_brightness(seen),
        said=said,
        exact=shown(seen.exact),
        near=shown(seen.near),
        bits=duplicates.BITS,
        alike=duplicates.ALIKE,
        facts={
            "name": data.name,
            "source": data.source,
            **sizes,
            "images": f"[{height}, {width}, {channels}], {data.train.x.dtype}",
            "sha256": data.sha256,
            "note": data.note,
        },
    )
    save(path, page)
    return said


def _bytes(number: int) -> str:
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1)) if number >= s)
    return f"{number / max(size, 1e3):,.1f} {unit}"


def _brightness(seen: Survey) -> str:
    """Say mean and deviation of the pixels, by channel."""
    channels = ("red ", "green ", "blue ") if len(seen.center) == 3 else ("",)
    parts = [
        f"{name}{mean:.1f} ± {deviation:.1f}"
        for name, mean, deviation in zip(channels, seen.center, seen.spread, strict=True)
    ]
    return f"The pixels' mean and standard deviation, of 0 to 255: {', '.join(parts)}."


def _duplicates(seen: Survey) -> list[str]:
    """Return what was found of duplicates in sentences."""
    within = [row for row in seen.copies if row.split == row.of]
    between = [row for row in seen.copies if row.split != row.of and row.exact + row.near]
    exact, near = (sum(getattr(row, key) for row in within) for key in ("exact", "near"))
    said = [
        f"Within splits, {exact:,} images repeat an earlier one to the bit, {near:,} nearly."
        if exact + near
        else "No image comes twice within a split, not even nearly."
    ]
    said += [
        f"Of {row.split}, {row.exact:,} images are in {row.of} to the bit, {row.near:,} nearly."
        for row in between
    ]
    if len(seen.splits) > 1 and not between:
        said.append("No image of one split is in another, not even nearly.")
    if apart := sum(row.exact_conflicts for row in seen.copies):
        said.append(f"{apart:,} of the exact ones have another label there.")
    if not seen.compared:
        said.append("So many images are alike that not all were compared: more are near ones.")
    if not seen.complete:
        said.append(f"Looked at were {len(seen.row):,} images, drawn at random.")
    return said


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
