"""Fashion-MNIST, and whatever else a name says, as a DataModule."""

from __future__ import annotations

from pathlib import Path

from fmnist_keras3.data.datamodule import BATCH_SIZE, DataModule
from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.settings import check_arguments


class FashionMNIST(DataModule):
    """Fashion-MNIST, or what ``data`` names: "auto", "fashion_mnist", "synthetic", "tfds:NAME".

    Or somebody's own images, "KIND:PATH" (see `FolderData` and `TableData`). ``image_size``,
    ``color``, ``resize``, ``on_bad_file`` and ``cache`` are those of `FolderData`.
    ``data_dir`` is a folder with the four IDX files (default: `FMNIST_DATA_DIR`); "auto" falls
    back to a TFDS copy, a download, and at last to generated garments (see `data.sources.load`).
    Images are uint8 ``[N, 28, 28, 1]``, labels int32 ``[N]``. Raises UserError where data is
    missing or damaged.

    Example: ``FashionMNIST(batch_size=128, augment="flip,crop")``
    """

    def __init__(
        self,
        batch_size: int = BATCH_SIZE,
        augment: str | None = None,
        validation: float = 0.1,
        seed: int = 0,
        data: str = "auto",
        data_dir: str | Path | None = None,
        *,
        image_size: str | tuple[int, int] | None = None,
        color: str = "auto",
        resize: str = "crop",
        on_bad_file: str = "skip",
        cache: str = "none",
        views: int = 1,
        sampling: str = "all",
    ) -> None:
        super().__init__(batch_size, augment, validation, seed, views=views, sampling=sampling)
        self.pixels = Pixels(image_size, color, resize, on_bad_file, cache)
        check_arguments(FashionMNIST, vars(self.pixels))
        self.data, self.data_dir = data, data_dir

    def load(self) -> ImageData:
        from fmnist_keras3.data import sources

        return sources.load(self.data, self.data_dir, pixels=self.pixels)
