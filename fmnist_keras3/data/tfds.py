"""TensorFlow Datasets as a source: Fashion-MNIST and any other set of labelled images.

TFDS prepares a set once, under ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``, as
``NAME[/CONFIG]/VERSION/dataset_info.json`` and record files, which `records` reads. TFDS and
TensorFlow are imported only when a set is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.data import idx, records
from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.each import Chosen, Found
from fmnist_keras3.data.found import assemble
from fmnist_keras3.data.mirrors import Unreachable, reach
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.runtime import import_tensorflow_for_data

FASHION_MNIST = "fashion_mnist"
log = logging.getLogger(__name__)
SPLITS = ("train", "test", "validation")
OTHER = "Use a set like tfds:cifar10."
NAME = re.compile(r"(?P<name>[a-z]\w*)(/(?P<config>\w[\w+.-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


def is_prepared(name: str = FASHION_MNIST, data_dir: str | Path | None = None) -> bool:
    """Return whether ``NAME[/CONFIG][:VERSION]`` lies ready in ``data_dir``; imports nothing."""
    return _prepared(name, _root(data_dir)) is not None


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    pixels: Pixels | None = None,
) -> ImageData:
    """Return the TFDS set ``NAME[/CONFIG][:VERSION]``, prepared in ``data_dir`` if it is not yet.

    Images are uint8 ``[N, H, W, C]`` as ``pixels`` asks for, labels int32 ``[N]``; what does not
    fit is read when it is needed. For splits see `found.assemble`. Fashion-MNIST comes as it is, in
    the order of the IDX files, so that a seed means the same run from either, with the ``sha256``
    of `idx.combine`; other sets in TFDS' order.
    Raises Unreachable when it has to be downloaded and cannot be (or ``download`` is False),
    UserError for an unknown name, a set of another kind, a damaged copy, a missing package.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name!r} is not the name of a TFDS set: NAME, NAME/CONFIG or NAME:1.0.0 is expected, "
            "for example tfds:mnist."
        )
    for package in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"TFDS needs the package {package}, which is not installed. "
                "Run: pip install tensorflow tensorflow-datasets"
            )
    root = _root(data_dir)
    with _quiet():
        import tensorflow_datasets as tfds

        folder = _prepared(name, root) or _prepare(tfds, name, root, download)
        import_tensorflow_for_data()  # before TFDS does, who would let it take a GPU
        is_fashion = match["name"] == FASHION_MNIST
        try:
            builder: Any = tfds.builder_from_directory(folder)
            _check_features(builder, name)
            infos = builder.info.splits.items()
            splits = [s for s in SPLITS if any(s == n and info.num_examples for n, info in infos)]
            if "train" not in splits:
                raise UserError(
                    f"tfds:{name} has the splits {', '.join(n for n, _ in infos)}; train is needed."
                    f" {OTHER}"
                )
            found = {split: records.read(builder, split) for split in splits}
            if is_fashion:
                found = {split: _unshuffled(part, split) for split, part in found.items()}
            data = assemble(
                f"tfds:{name}",
                folder,
                found,
                Pixels() if is_fashion or pixels is None else pixels,
                classes=tuple(builder.info.features["label"].names),
            )
        except UserError:
            raise
        except Exception as error:  # whatever TFDS and TensorFlow raise for a damaged copy
            raise UserError(
                f"The TFDS copy in {folder} cannot be read ({type(error).__name__}: "
                f"{_first_line(error)}). Delete that folder; it is prepared again."
            ) from error
    data = dataclasses.replace(data, source=f"TFDS, {folder}")
    if not is_fashion:
        return data
    digests, note = idx.digests(data.train, data.test), None
    if digests != list(idx.FILES.values()):
        note = "This TFDS copy differs from the genuine Fashion-MNIST release."
    sha256 = idx.combine(digests)
    return dataclasses.replace(data, name=FASHION_MNIST, sha256=sha256, note=note)


def _root(data_dir: str | Path | None) -> Path:
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(folder).expanduser().absolute()


def _prepared(name: str, root: Path) -> Path | None:
    """Return the folder of the newest prepared version; none for an invalid name."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    base = root / match["name"] / (match["config"] or "")
    # TFDS prepares in a folder "incomplete.*" and renames it: that one must not be found.
    folders = [info.parent for info in base.glob(f"{match['version'] or '*'}/dataset_info.json")]
    found = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    return max(found, key=lambda f: tuple(map(int, f.name.split("."))), default=None)


def _prepare(tfds: Any, name: str, root: Path, download: bool) -> Path:
    """Return the folder of a set, downloaded and prepared if it is not yet."""
    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    if base not in known:
        raise UserError(
            f"TFDS has no set {base!r}.{nearest(base, known)} "
            "All names: https://www.tensorflow.org/datasets/catalog/overview"
        )
    try:
        builder = tfds.builder(name, data_dir=root)
    except Exception as error:  # configs, versions: TFDS' own words name what there is
        raise UserError(f"TFDS cannot give {name!r}: {_first_line(error)}") from error
    if builder.is_prepared():  # the default config of a set that has several
        return Path(builder.data_dir)
    if not download:
        raise Unreachable(f"tfds:{name} is not prepared in {root}, and downloads are off")
    log.info("downloading %s with TFDS", name)
    urls = [url for url in builder.url_infos or () if url.startswith("http")]
    if urls:
        # TFDS itself tries ten times, for minutes. Neither it nor this imports TensorFlow so far.
        reach(urls[0])
    _check_features(builder, name)
    import_tensorflow_for_data()
    # Refuses a URL without a registered SHA-256; fashion_mnist comes over plain http.
    options = {"force_checksums_validation": True, "try_download_gcs": False}
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))
    except Exception as error:  # requests', TFDS', TensorFlow's and the operating system's
        raise Unreachable(
            f"TFDS could not download and prepare {name} in {root}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return Path(builder.data_dir)


def _check_features(builder: Any, name: str) -> None:
    """Raise UserError unless these are labelled uint8 images."""
    features = builder.info.features
    found = {key: type(features[key]).__name__ for key in features}
    if found.get("image") != "Image" or found.get("label") != "ClassLabel":
        raise UserError(
            f"tfds:{name} is not for image classification: it needs the features image (Image) "
            f"and label (ClassLabel) and has {found}. {OTHER}"
        )
    image = features["image"]
    if image.np_dtype != np.uint8:
        raise UserError(
            f"tfds:{name} has images of type {image.np_dtype.__name__}; uint8 is needed. {OTHER}"
        )


def _unshuffled(found: Found, name: str) -> Found:
    """Return the examples in the order they were given to TFDS, who sorts by hashes of keys.

    The keys are 0, 1, 2..., the hash is the MD5 of split name and key (TFDS core/hashing.py).
    """

    def hashed(key: int) -> bytes:
        return hashlib.md5(f"{name}{key}".encode(), usedforsecurity=False).digest()

    order = np.argsort(sorted(range(len(found.images)), key=hashed))
    return Found(Chosen(found.images, order), found.labels[order], found.files)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS' prints out of stdout, its warnings and (not on a terminal) its bars away."""
    from absl import logging as absl

    verbosity = absl.get_verbosity()
    absl.set_verbosity(absl.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if not sys.stderr.isatty():
                import tensorflow_datasets as tfds

                tfds.disable_progress_bar()
            yield
    finally:
        absl.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
