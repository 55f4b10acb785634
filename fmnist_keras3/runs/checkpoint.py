"""Checkpoints: a directory a step, written beside and renamed, loaded strictly.

``step-00000469/state.safetensors`` holds every array of the training state, and ``manifest.json``
their order, paths, shapes, dtypes and sha256, the position, the seed and the callbacks' state, with
a checksum of its own. ``last.json`` and ``best.json`` point to a checkpoint and are replaced after
it is complete. A second checkpoint of the same step is ``step-00000469-1``: what is good is never
touched before the next one is. Between step and number there may be a label of a `ModelCheckpoint`:
``step-00000469-epoch=02-val_loss=0.32-1``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmnist_keras3.engines import MAY_BE_INFINITE
from fmnist_keras3.ground.errors import Diverged, UserError
from fmnist_keras3.ground.files import remove, sync_directory, temporary, write_errors, write_json
from fmnist_keras3.runs.checkpoints import MANIFEST, order, pointed, saved
from fmnist_keras3.runs.matching import State, describe

FORMAT = 2
STATE = "state.safetensors"
T = TypeVar("T")
_HEADER = 10_000  # bytes that a safetensors header may take for each array, at most


class Damaged(UserError):
    """A checkpoint that is not whole; an earlier one may be."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found sound."""

    path: Path
    state: State
    manifest: dict[str, Any]


def check_finite(state: State, step: int) -> None:
    """Raise Diverged, naming the array, if a weight or an optimizer's value is not finite."""
    for name, array in state:
        kept = array.dtype.kind == "f" and not name.startswith(MAY_BE_INFINITE)
        if kept and not np.isfinite(array).all():
            raise Diverged(f"{name} is not finite after step {step}.", step)


def save(path: Path, state: State, manifest: dict[str, Any]) -> None:
    """Write the checkpoint ``path``, which must be new; raises UserError where it cannot be."""
    from safetensors.numpy import save as serialize

    # The position in the list is part of the name: paths alone need not be unique.
    keyed = {_key(i, name): np.array(a, order="C") for i, (name, a) in enumerate(state)}
    content = serialize(keyed)
    manifest = {
        "format": FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "arrays": describe(state),
        **manifest,
    }
    beside = temporary(path)
    try:
        with write_errors(path):
            path.parent.mkdir(exist_ok=True)
            beside.mkdir()
            with open(beside / STATE, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            write_json(beside / MANIFEST, {**manifest, "checksum": _checksum(manifest)})
            sync_directory(beside)
            os.rename(beside, path)
            sync_directory(path.parent)
    finally:
        remove(beside)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; raises Damaged unless it is whole and the state has its size.

    Reads nothing of the state.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, checksum = manifest["format"], manifest.pop("checksum", None)
        arrays = manifest["arrays"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: {MANIFEST} cannot be read ({_reason(error)}).") from error
    if version != FORMAT:
        raise Damaged(f"{path}: format {version!r}; this version reads format {FORMAT}.")
    if checksum != _checksum(manifest):
        raise Damaged(f"{path}: {MANIFEST} is damaged (its checksum is another).")
    if not isinstance(arrays, list) or not all(_is_described(a) for a in arrays):
        raise Damaged(f"{path}: {MANIFEST} lists arrays without path, shape and dtype.")
    try:
        size = (path / STATE).stat().st_size
        bytes_told = sum(math.prod(a["shape"]) * np.dtype(a["dtype"]).itemsize for a in arrays)
    except (OSError, TypeError) as error:
        raise Damaged(f"{path}: {STATE} cannot be read ({_reason(error)}).") from error
    if not bytes_told <= size <= bytes_told + _HEADER * (1 + len(arrays)):
        raise Damaged(f"{path}: {STATE} has {size} bytes, for arrays of {bytes_told} bytes.")
    return manifest


def load(path: Path, check: Callable[[list[Any]], object] | None = None) -> Checkpoint:
    """Read one checkpoint; raises Damaged with what is wrong, and what ``check`` raises.

    ``check`` is given the description of the arrays before they are read, see `matching`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    manifest = read_manifest(path)
    if check is not None:
        check(manifest["arrays"])
    try:
        content = (path / STATE).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
            raise Damaged(f"{path}: {STATE} is damaged (its sha256 is not the manifest's).")
        stored = deserialize(content)
    except (OSError, SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise Damaged(f"{path}: {STATE} cannot be read ({_reason(error)}).") from error
    keys = [_key(i, a["path"]) for i, a in enumerate(manifest["arrays"])]
    state = [(key.split("/", 1)[1], stored[key]) for key in keys if key in stored]
    if len(stored) != len(state) or describe(state) != manifest["arrays"]:
        raise Damaged(f"{path}: {STATE} does not hold the arrays that {MANIFEST} lists.")
    return Checkpoint(path, state, manifest)


def find(folder: Path, which: str, read: Callable[[Path], T]) -> tuple[T, list[str]]:
    """Return what ``read`` gives for the checkpoint ``which`` ("last", "best"), and warnings.

    ``read`` is `load` or `read_manifest`. Where the one that is pointed to is damaged, the newest
    sound one before it is taken, with a warning. Raises UserError, deleting nothing, when none is
    sound.
    """
    if not saved(folder):
        raise UserError(
            f"There is no checkpoint in {folder} yet. Type --resume auto to begin again in that "
            "run, or give another --run_dir."
        )
    wanted = pointed(folder, which)
    if wanted is not None and not os.path.exists(wanted):
        wanted = None  # the pointer is damaged, as far as anybody can tell
    others = [p for p in saved(folder) if wanted is None or order(p) < order(wanted)]
    problems = [] if wanted else [f"{folder / which}.json is missing or damaged."]
    if which == "last" and len(others) == 1 and not (folder / "last.json").exists():
        problems = []  # the process was killed between its first checkpoint and the pointer
    if not wanted and which == "best":
        others = []  # the newest is something else than the best
    for path in [wanted, *others] if wanted else others:
        try:
            return read(path), problems
        except Damaged as error:
            problems.append(str(error))
    raise UserError(
        f"No sound checkpoint {which!r} in {folder}:\n  - "
        + "\n  - ".join(problems)
        + "\nNothing was deleted. Give --resume and another checkpoint's folder"
        + (" (or last)" if which == "best" else "")
        + ", or start again with another --run_dir."
    )


def _is_described(array: Any) -> bool:
    return (
        isinstance(array, dict)
        and isinstance(array.get("path"), str)
        and isinstance(array.get("dtype"), str)
        and isinstance(array.get("shape"), list)
        and all(isinstance(n, int) and n >= 0 for n in array["shape"])
    )


def _key(i: int, name: str) -> str:
    return f"{i:04d}/{name}"


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__}: {error}"
