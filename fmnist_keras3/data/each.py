"""What a reader of files found, and how all of its images are looked at, in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data.labels import readable
from fmnist_keras3.data.pixels import Pixels, why_not
from fmnist_keras3.ground.errors import UserError

SHOWN = 3
AT_ONCE = 256  # images that threads are asked for


@dataclass
class Found:
    """The examples of a split: images ``[N, ...]`` or a list of paths and bytes; labels or None.

    ``files``: where they were read from, if the images themselves are neither paths nor in memory.
    ``ready``: the images are as they are asked for.
    """

    images: Any
    labels: Any
    files: tuple[Path, ...] = ()
    ready: bool = False


def files_of(found: Found) -> Iterable[Any]:
    """Return the files that examples come from."""
    images: Any = found.images
    if found.files:
        return found.files
    if isinstance(images, np.memmap):
        return (str(images.filename),)
    return tuple(images[i] for i in range(len(images)))


def each_image(
    splits: dict[str, Found], function: Callable[[Any], Any], pixels: Pixels, said: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield ``function`` of each image with its split, made in parallel, in their order.

    Those of which it cannot be made are left out of ``splits`` and named.
    """

    def tried(image: Any) -> Any:
        try:
            return function(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise of all kinds for damaged files
            return error

    bad = []
    with ThreadPoolExecutor(os.cpu_count(), "fmnist-decode") as threads:
        for split, found in splits.items():
            kept: list[int] = []
            # In parts: what is asked of the threads at once stands in a queue with its result.
            for start in range(0, len(found.images), AT_ONCE):
                part = range(start, min(start + AT_ONCE, len(found.images)))
                results = threads.map(lambda i, of=found.images: tried(of[i]), part)
                for i, result in zip(part, results, strict=True):
                    if isinstance(result, Exception):
                        place = found.images[i]
                        named = isinstance(place, (str, Path))
                        at = readable(place) if named else f"example {i} of {split}"
                        bad.append(f"{at} ({why_not(result)})")
                        if pixels.on_bad_file == "stop":
                            raise UserError(
                                f"This cannot be read as an image: {bad[0]}. Mend or remove it, "
                                "or leave such files out: --on_bad_file skip"
                            )
                        continue
                    kept.append(i)
                    yield split, result
            if len(kept) < len(found.images):
                found.images = Chosen(found.images, np.array(kept, np.int64))
                found.labels = [found.labels[i] for i in kept]
    if bad:
        shown, more = "; ".join(bad[:SHOWN]), "; ..." * (len(bad) > SHOWN)
        said.append(f"{len(bad):,} images that cannot be read are left out: {shown}{more}.")


class Chosen:
    """Those of a sequence of images that are in ``places``."""

    def __init__(self, images: Any, places: np.ndarray) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return self.images[int(self.places[index])]
