"""DataModules of somebody's own files; on the command line they are --data KIND:PATH."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmnist_keras3.data.fashion import FashionMNIST
from fmnist_keras3.data.sources import SUFFIXES, absolute
from fmnist_keras3.ground.errors import UserError


class FolderData(FashionMNIST):
    """Images below the folder ``path``: ``train/CLASS/*.png``, and test and val, or ``CLASS/*``.

    Also jpg, webp, bmp and gif. ``options`` are those of `DataModule`, and ``image_size``, "H,W" or
    (H, W), to which images are brought; ``color``, "auto", "grey" or "rgb"; ``resize``, "crop",
    "pad" or "stretch", for images of another ratio of sides; ``on_bad_file``, "skip" or "stop";
    ``cache``, of decoded images that take more than 0.5 GB: "none", "disk" or "memory".
    Images are uint8 ``[N, H, W, 1 or 3]``, 0..255, labels int32 ``[N]``. Raises UserError for what
    cannot be used.

    Example: ``FolderData("photos", image_size=(64, 64), augment="flip")``
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(data=absolute(f"folder:{path}"), **options)


class TableData(FashionMNIST):
    """Rows of labels and pixels, paths or encoded images: a CSV, Parquet or NumPy file at ``path``.

    Or a folder of such files with train, test or val in their names. ``kind`` is "csv", "parquet",
    "npz" or "idx" where the name does not tell. ``options`` are those of `FolderData`.
    Raises UserError for what cannot be used.

    Example: ``TableData("fashion-mnist_train.csv", batch_size=64)``
    """

    def __init__(self, path: str | Path, kind: str | None = None, **options: Any) -> None:
        files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
        kinds = {SUFFIXES[file.suffix] for file in files if file.suffix in SUFFIXES}
        kind = kind or (kinds.pop() if len(kinds) == 1 else None)
        if kind is None:
            raise UserError(f"{path} does not tell what it is. Give kind='csv', or another kind.")
        super().__init__(data=absolute(f"{kind}:{path}"), **options)
