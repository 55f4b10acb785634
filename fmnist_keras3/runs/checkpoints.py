"""The checkpoints of a run beside each other: names, order, pointers, removal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import remove, temporary, write_errors, write_json

MANIFEST = "manifest.json"  # without which it is no checkpoint of ours
LABEL = 150  # characters of a label, at most: names of files have 255, and half a name beside it
_LABEL = re.compile(rf"[\w.,=+@%-]{{1,{LABEL}}}", re.ASCII)
_NAME = re.compile(rf"step-(\d{{8,}})(?:-{_LABEL.pattern}?)??(?:-(\d+))?", re.ASCII)


def new_path(folder: Path, step: int, label: str = "", taken: Iterable[str] = ()) -> Path:
    """Return a path for a checkpoint of ``step`` that is not there yet; see `is_label`.

    Its number is above those of the same step, whatever their labels: the newest is the last.
    Names that are ``taken`` count as there.
    """
    name = f"step-{step:08d}" + f"-{label}" * bool(label)
    there = [*saved(folder), *map(Path, taken)]
    numbers = [number for at, number in map(order, there) if at == step]
    return folder / (f"{name}-{max(numbers) + 1}" if numbers else name)


def point(folder: Path, name: str, checkpoint: str, **more: Any) -> None:
    """Let the pointer ``name`` ("last", "best") show to ``checkpoint``, a name in ``folder``."""
    write_json(folder / f"{name}.json", {"checkpoint": checkpoint, **more})


def pointed(folder: Path, name: str) -> Path | None:
    """Return the checkpoint that the pointer ``name`` shows to, or None."""
    try:
        target = json.loads((folder / f"{name}.json").read_text())["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    # A pointer is a file that anyone may have written; it cannot lead out of the folder.
    return folder / str(target) if _NAME.fullmatch(str(target)) else None


def is_label(label: str) -> bool:
    """Tell whether a checkpoint's name can hold ``label``, on every file system and in a shell."""
    return _LABEL.fullmatch(label) is not None


def is_name(name: str) -> bool:
    """Tell whether a checkpoint can have this name."""
    return _NAME.fullmatch(name) is not None


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints of ``folder``, sound or not, the newest first.

    None where there is no such folder; raises UserError where it cannot be read.
    """
    try:
        found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)]
    except FileNotFoundError:
        return []
    except OSError as error:  # there may be some, so nobody must begin anew
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    return sorted(found, key=order, reverse=True)


def retire(folder: Path, keep: set[str]) -> None:
    """Remove the checkpoints whose names are not in ``keep``; leaves alone what is not ours."""
    for path in saved(folder):
        if path.name not in keep and (path / MANIFEST).is_file():
            beside = temporary(path)
            with write_errors(path):
                os.rename(path, beside)  # at once: half a checkpoint would look damaged
            remove(beside)


def order(path: Path) -> tuple[int, int]:
    """Return the step of a checkpoint and its number among those of the same step."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)
