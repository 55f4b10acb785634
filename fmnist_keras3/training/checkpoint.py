"""Checkpoints: a directory a step, written beside and renamed, loaded strictly.

``step-00000469/state.safetensors`` holds every array of the training state, and ``manifest.json``
their order, paths, shapes, dtypes and sha256, the position, the seed and the callbacks' state.
``last.json`` and ``best.json`` point to a checkpoint and are replaced after it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3.errors import Diverged, UserError
from fmnist_keras3.training.files import sync_directory, write_json

FORMAT = 1
STATE, MANIFEST = "state.safetensors", "manifest.json"
State = list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found sound."""

    path: Path
    state: State
    manifest: dict[str, Any]


def save(folder: Path, step: int, state: State, manifest: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` below ``folder`` and return its path.

    Raises Diverged, and writes nothing, if a value of ``state`` is not finite.
    """
    from safetensors.numpy import save_file

    for name, array in state:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Diverged(f"{name} is not finite at step {step}; no checkpoint was written")
    final = folder / f"step-{step:08d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        # The position in the list is part of the name: paths alone need not be unique.
        keys = [f"{i:04d}/{name}" for i, (name, _) in enumerate(state)]
        save_file(
            {k: np.array(a, order="C") for k, (_, a) in zip(keys, state, strict=True)},
            beside / STATE,
        )
        arrays = [
            {"path": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in state
        ]
        digest = _sha256(beside / STATE)
        write_json(
            beside / MANIFEST,
            {"format": FORMAT, "sha256": digest, "step": step, "arrays": arrays, **manifest},
        )
        sync_directory(beside)
        shutil.rmtree(final, ignore_errors=True)  # the same step, written again after a resume
        os.replace(beside, final)
        sync_directory(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def point(folder: Path, name: str, checkpoint: Path, **more: Any) -> None:
    """Let the pointer ``name`` ("last", "best") show to ``checkpoint``."""
    write_json(folder / f"{name}.json", {"checkpoint": checkpoint.name, **more})


def pointed(folder: Path, name: str) -> Path | None:
    """Return the checkpoint that the pointer ``name`` shows to, or None."""
    try:
        target = json.loads((folder / f"{name}.json").read_text())["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A pointer is a file that anyone may have written; it cannot lead out of the folder.
    return folder / Path(str(target)).name


def load(path: Path) -> Checkpoint:
    """Read and check one checkpoint directory; raises UserError that says what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        manifest = json.loads((path / MANIFEST).read_text())
        arrays, digest, version = manifest["arrays"], manifest["sha256"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {MANIFEST} cannot be read ({error}).") from error
    if version != FORMAT:
        raise UserError(f"{path}: format {version!r}; this version reads format {FORMAT}.")
    try:
        if _sha256(path / STATE) != digest:
            raise UserError(f"{path}: {STATE} is damaged (its sha256 is not the manifest's).")
        stored = load_file(path / STATE)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: {STATE} cannot be read ({error}).") from error
    keys = [f"{i:04d}/{array['path']}" for i, array in enumerate(arrays)]
    if sorted(keys) != sorted(stored):
        raise UserError(f"{path}: {STATE} does not hold the arrays that {MANIFEST} lists.")
    return Checkpoint(
        path, [(a["path"], stored[k]) for a, k in zip(arrays, keys, strict=True)], manifest
    )


def find(folder: Path, which: str) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint ``which`` ("last", "best") of ``folder``, and warnings.

    Where the one that is pointed to is damaged, the newest sound one before it is taken, with a
    warning. Raises UserError, deleting nothing, when none is sound.
    """
    wanted = pointed(folder, which)
    others = sorted(folder.glob("step-*"), reverse=True)
    candidates = [wanted] if wanted else []
    if wanted is None or which == "last":
        candidates += [p for p in others if wanted is None or p.name < wanted.name]
    problems = [] if wanted else [f"{folder / which}.json is missing or unreadable."]
    for path in candidates:
        try:
            return load(path), problems
        except UserError as error:
            problems.append(str(error))
    raise UserError(
        f"No sound checkpoint {which!r} in {folder}:\n  - "
        + "\n  - ".join(problems)
        + "\nNothing was deleted. Start again with another --run_dir, or give --resume PATH."
    )


# Keras numbers what is made twice in a process: "adam_2/iteration", "adam_2/dense_3_kernel_m".
_AUTO_NUMBER = re.compile(r"_\d+(?=[_/ ])")


def check_matches(state: State, expected: State) -> None:
    """Raise UserError, naming the array, unless paths, shapes and dtypes agree in order."""
    for i in range(max(len(state), len(expected))):
        here = _describe(expected[i]) if i < len(expected) else "nothing"
        there = _describe(state[i]) if i < len(state) else "nothing"
        if _AUTO_NUMBER.sub("", here) != _AUTO_NUMBER.sub("", there):
            raise UserError(
                f"The checkpoint does not fit this model and optimizer: array {i} is {there} in "
                f"the checkpoint and {here} here. Resume with the settings of the first run."
            )


def _describe(named: tuple[str, np.ndarray]) -> str:
    name, array = named
    return f"{name} {tuple(array.shape)} {array.dtype}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
