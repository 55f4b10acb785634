"""Finding a run or a checkpoint by what a user types."""

from __future__ import annotations

import os
from pathlib import Path

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.runs import checkpoints
from fmnist_keras3.runs.rundir import CHECKPOINTS, CONFIG, MODEL


def find_run(path: Path) -> Path:
    """Return the run directory that ``path`` is or lies in; raises UserError without one."""
    for folder in (path, *path.parents[:2]):
        try:
            if (folder / CONFIG).exists() or (folder / CHECKPOINTS).is_dir():
                return folder
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    raise UserError(
        f"{path} is no run directory (there is no {CONFIG} in it). "
        "Give a folder that `fmnist train` wrote, such as runs/20261122-231500-baseline-jax."
    )


def locate(ckpt_path: str | Path, run_dir: str | Path | None) -> tuple[Path, str | None]:
    """Return the run directory that ``ckpt_path`` means, and "last", "best" or a checkpoint's name.

    ``ckpt_path`` is "last", "best" or "auto" (of ``run_dir``), or a run's or checkpoint's folder;
    "auto" is "last", or None where no checkpoint was written yet. Raises UserError where there is
    nothing of the kind.
    """
    if str(ckpt_path) in ("last", "best", "auto"):
        if run_dir is None:
            raise UserError(f"{ckpt_path!r} of which run? Give run_dir, or type --run_dir DIR.")
        run = Path(run_dir)
        if ckpt_path == "auto":
            found = checkpoints.saved(run / CHECKPOINTS)
            if not found and os.path.exists(run / MODEL):
                raise UserError(
                    f"{run} holds a finished run, but no checkpoint to go on from, and runs are "
                    "never overwritten. Give another --run_dir."
                )
            return run, "last" if found else None
        return find_run(run), str(ckpt_path)
    path = Path(ckpt_path)
    run = find_run(path)
    if path.resolve() == run.resolve():
        return run, "last"
    if not checkpoints.is_name(path.name):
        raise UserError(
            f"{path} is neither a run directory nor a checkpoint. Give {run}, or one of the "
            f"folders in {run / CHECKPOINTS}."
        )
    return run, path.name


def newest_run(root: Path) -> Path:
    """Return the run below ``root`` that was started last; raises UserError where there is none."""
    runs = sorted(p.parent for p in root.glob(f"*/{CONFIG}"))
    if not runs:
        raise UserError(f"There is no run in {root} to resume. Give --run_dir DIR.")
    return max(runs, key=lambda run: (run / CONFIG).stat().st_mtime)
