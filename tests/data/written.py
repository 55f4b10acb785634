"""The same examples written as each kind of file that is read."""

import csv
import io

import numpy as np
from PIL import Image

from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import ImageData, Split

KINDS = ("idx", "npz", "npy", "csv", "list", "folder", "parquet")


def examples(n=200, test=40, classes=10, size=(28, 28), channels=1, seed=0):
    """Random images, brighter in a band whose row tells the class: x, y, x_test, y_test."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n + test) % classes).astype(np.uint8)
    x = rng.integers(0, 100, (n + test, *size, channels), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        row = int(label) * size[0] // classes
        image[row : row + 2] += 150
    return x[:n], y[:n], x[n:], y[n:]


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    array = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write(folder, kind, x, y, x_test, y_test):
    """Write the examples as ``kind`` below ``folder``; returns what --data is to be."""
    folder.mkdir()
    splits = {"train": (x, y), "test": (x_test, y_test)}
    if kind == "idx":
        parts = [Split(*part) for part in splits.values()]
        idx.write_folder(folder, ImageData("", "", *parts, ()))
    elif kind == "npz":
        np.savez(folder / "set.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        return f"npz:{folder / 'set.npz'}"
    elif kind == "npy":
        for name, (images, labels) in splits.items():
            np.save(folder / f"{name}_images.npy", images[..., 0] if x.shape[-1] == 1 else images)
            np.save(folder / f"{name}_labels.npy", labels.astype(np.int64)[:, None])
        return f"npz:{folder}"
    elif kind == "csv":
        for name, (images, labels) in splits.items():
            flat = images.reshape(len(images), -1)
            header = ",".join(["label", *(f"pixel{i + 1}" for i in range(flat.shape[1]))])
            rows = np.concatenate([labels[:, None], flat], axis=1)
            options = {"fmt": "%d", "delimiter": ",", "header": header, "comments": ""}
            np.savetxt(folder / f"fashion-mnist_{name}.csv", rows, **options)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        for name, (images, labels) in splits.items():
            columns = {
                "image": [{"bytes": encoded(image), "path": None} for image in images],
                "label": labels.astype(np.int64),
            }
            path = folder / f"{name}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:  # images as files
        for name, (images, labels) in splits.items():
            rows = []
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                path = folder / name / str(label) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(image))
                rows.append((path.relative_to(folder), label))
            if kind == "list":
                with open(folder / f"{name}.csv", "w", newline="") as file:
                    csv.writer(file).writerows([("path", "label"), *rows])
        return f"{'csv' if kind == 'list' else 'folder'}:{folder}"
    return f"{kind}:{folder}"
