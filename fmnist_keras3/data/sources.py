"""Where the images come from: the names given to ``--data``, and what is tried in which order."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from functools import partial
from pathlib import Path

from fmnist_keras3.data import idx, mirrors, synthetic, tfds
from fmnist_keras3.data.dataset import ImageData, Split, checksum
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named

NAMES = ("auto", "fashion_mnist", "synthetic")
# Kinds of files, as KIND:PATH: a function of the path and of what is done to the images.
KINDS = {
    "folder": "data.folder:read",
    "csv": "data.table:read_csv",
    "npz": "data.npz:read",
    "idx": "data.pairs:read",
    "parquet": "data.table:read_parquet",
    "hf": "data.hub:read",
}
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".npz": "npz", ".npy": "npz", ".parquet": "parquet"}
FILES_OF_DATA = (".h5", ".pkl", ".mat", ".zip", ".json")


def load(
    data: str = "auto",
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    pixels: Pixels | None = None,
) -> ImageData:
    """Return the data set that ``data`` names, its images as ``pixels`` asks for.

    "auto" and "fashion_mnist" take the IDX files or a TFDS copy in ``data_dir``, else in
    ``$FMNIST_DATA_DIR`` (a folder that is given must work); else a prepared TFDS copy; else the
    files downloaded earlier; else they download: TFDS, then the mirrors. If all that fails,
    "auto" gives the generated garments of ``seed`` with the reasons in ``note``, "fashion_mnist"
    raises UserError. "tfds:NAME" is any TFDS set of labelled images, with ``data_dir`` as TFDS'
    folder. "synthetic" is the generated garments. "KIND:PATH" are somebody's own images, see
    `KINDS`. With ``FMNIST_OFFLINE=1`` in the environment nothing is downloaded.
    """
    pixels = pixels or Pixels()
    check_name(data)
    if data.startswith("tfds:"):
        options = {"data_dir": data_dir, "download": not is_offline(), "pixels": pixels}
        found = tfds.load(data.removeprefix("tfds:"), **options)
        return _changed(found, pixels) if found.name == tfds.FASHION_MNIST else found
    if not is_place(data):
        return _changed(_load(data, data_dir, seed), pixels)
    kind, _, place = data.partition(":")
    if data_dir is not None:
        raise UserError(
            f"data_dir {data_dir} is not used with data {data!r}, which has its own path. Leave "
            "out --data_dir."
        )
    path = Path(place).expanduser().absolute()
    if kind == "hf" and not path.exists() and not place.startswith(("/", ".", "~")):
        return named(KINDS[kind])(place, pixels)  # the name of a set in the cache of `datasets`
    if not path.exists() and (kind != "idx" or not list(path.parent.glob(f"{path.name}*"))):
        raise UserError(f"--data {data}: {path} does not exist.")
    try:
        return named(KINDS[kind])(path, pixels)
    except OSError as error:
        place = error.filename or path
        raise UserError(f"{place} cannot be read: {error.strerror or error}.") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory, into which it is read.") from error


def _load(data: str, data_dir: str | Path | None, seed: int) -> ImageData:
    if data == "synthetic":
        if data_dir is not None:
            raise UserError(
                f"data_dir {data_dir} is not used with data 'synthetic', which is generated. "
                "Leave out --data_dir, or use --data auto."
            )
        return synthetic.generate(seed=seed)
    if data_dir is not None:
        return _from_folder(data_dir, data)
    if folder := os.environ.get("FMNIST_DATA_DIR"):
        try:
            return _from_folder(folder, data)
        except UserError as error:
            raise UserError(f"{error} (FMNIST_DATA_DIR={folder})") from error
    found, failures = _find()
    if found is not None:
        return found
    if data == "fashion_mnist":
        raise UserError(
            "Fashion-MNIST was not found and could not be downloaded:\n"
            + "".join(f"  - {failure}\n" for failure in failures)
            + f"{idx.NEEDED} Put them in a folder and type --data_dir FOLDER, or set "
            "FMNIST_DATA_DIR=FOLDER. To try without them: fmnist train --data synthetic"
        )
    reasons = "; ".join(failures)
    note = f"Generated garments, not Fashion-MNIST, which could not be had: {reasons}."
    return dataclasses.replace(synthetic.generate(seed=seed), note=note)


def _changed(data: ImageData, pixels: Pixels) -> ImageData:
    """Return ``data`` in the size and colour that are asked for, with a checksum of its own."""
    if pixels.size is None and pixels.color == "auto":
        return data
    train, test = (Split(pixels.all(split.x), split.y) for split in (data.train, data.test))
    return dataclasses.replace(data, train=train, test=test, sha256=checksum(train, test))


def is_place(data: str) -> bool:
    """Return whether ``data`` is of the form KIND:PATH, of one of `KINDS`."""
    return data.partition(":")[0] in KINDS


def absolute(data: str) -> str:
    """Return ``data`` as it may be typed in any folder: the path of KIND:PATH made absolute."""
    kind, _, place = data.partition(":")
    path = Path(place).expanduser().absolute()
    is_path = is_place(data) and (kind != "hf" or path.exists())
    return f"{kind}:{path}" if is_path else data


def cache_folder() -> Path:
    """Return where files from the mirrors are kept; it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fmnist-keras3" / "fashion-mnist"


def is_offline() -> bool:
    """Return whether the environment forbids downloads (FMNIST_OFFLINE is set, and not to 0)."""
    return os.environ.get("FMNIST_OFFLINE", "") not in ("", "0")


def check_name(data: str) -> None:
    """Raise UserError, with what to type, unless `load` knows the name ``data``."""
    kind, colon, place = data.partition(":")
    if data in NAMES or data.startswith("tfds:") or (kind in KINDS and place):
        return
    plain = data.lower().replace("-", "").replace("_", "")
    path = Path(data).expanduser()
    how, quoted = nearest(data, NAMES), shlex.quote(data)
    if plain in ("fashion", "fashionmnist", "fmnist"):
        how = " Type --data fashion_mnist"
    elif kind in KINDS:
        how = f" Give a path: --data {kind}:PATH"
    elif colon:
        how = nearest(kind, ("tfds", *KINDS))
    elif path.suffix in SUFFIXES:
        how = f" Type --data {SUFFIXES[path.suffix]}:{quoted}"
    elif path.suffix in FILES_OF_DATA:
        how = (
            f" Files of this kind are not read: load {path.name} in Python, and give "
            "ArrayData(x, y) to a Trainer."
        )
    elif path.is_dir() or os.sep in data or data.startswith("."):
        how = (
            f" If it holds a folder of images for each class, type --data folder:{quoted}; if it "
            f"holds Fashion-MNIST's four files, --data_dir {quoted}"
        )
    elif not how and re.fullmatch(r"[a-z][a-z0-9_]*", data):
        how = f" If it is a data set of TensorFlow Datasets, type --data tfds:{data}"
    kinds = " or ".join((", ".join([*KINDS][:-1]), [*KINDS][-1]))
    raise UserError(
        f"There is no data {data!r}; {', '.join(NAMES)}, tfds:NAME and KIND:PATH with {kinds} are "
        f"allowed.{how}"
    )


def _from_folder(folder: str | Path, data: str) -> ImageData:
    if tfds.is_prepared(data_dir=folder):
        return tfds.load(tfds.FASHION_MNIST, data_dir=folder, download=False)
    found = idx.read_folder(folder)
    if found.name == "mnist" and data == "fashion_mnist":
        raise UserError(
            f"{found.note} They are in {found.source}. Put Fashion-MNIST's files there, or type "
            "--data auto to train on the digits."
        )
    return found


def _find() -> tuple[ImageData | None, list[str]]:
    """Return Fashion-MNIST from this machine or the network, and what failed on the way."""
    failures: list[str] = []
    cache, attempts = cache_folder(), []
    if tfds.is_prepared():
        attempts.append(partial(tfds.load, tfds.FASHION_MNIST, download=False))
    if cache.is_dir():
        attempts.append(partial(_genuine, cache))
    if not tfds.is_prepared() and not is_offline():
        attempts.append(partial(tfds.load, tfds.FASHION_MNIST))
    for attempt in attempts:
        try:
            return attempt(), failures
        except UserError as error:
            failures.append(str(error))
    if is_offline():
        return None, [*failures, "downloads are off (FMNIST_OFFLINE is set)"]
    try:
        mirrors.download(cache)  # replaces cached files that are damaged
    except mirrors.Unreachable as error:
        return None, [*failures, str(error)]
    return idx.read_folder(cache), failures


def _genuine(cache: Path) -> ImageData:
    data = idx.read_folder(cache)
    if data.name != "fashion_mnist":
        raise UserError(f"{cache}: {data.note}")
    return data
