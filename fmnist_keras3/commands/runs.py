"""`fmnist runs`: the runs below a folder; `fmnist runs prune` keeps the best of them."""

from __future__ import annotations

import fnmatch
import json
import math
import operator
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmnist_keras3.ground import files, screen
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.files import read_json
from fmnist_keras3.runs import rundir
from fmnist_keras3.runs.lock import locked

# Columns: of the JSON and of --sort and --filter, by the words of the table.
COLUMNS = {
    "run": "run",
    "status": "status",
    "model": "model",
    "data": "data",
    "backend": "backend",
    "epochs": "epochs",
    "validation_accuracy": "validation",
    "test_accuracy": "test",
    "seconds": "time",
    "bytes": "size",
}
WORDS = ("run", "status", "model", "data", "backend")
NAMES = {shown: name for name, shown in COLUMNS.items()} | {n: n for n in COLUMNS}
NAMES["accuracy"] = "test_accuracy"
STYLES = {"completed": "", "running": "bold", "diverged": "red", "failed": "red"}
BROKEN = ("diverged", "failed")
_TRIAL = re.compile(r"trial-\d+")

Row = dict[str, Any]


def show(folder: str, sort: str, reverse: bool, filters: Sequence[str], output: str) -> int:
    """Print a table, or with ``output`` "json" a list, of the runs below ``folder``."""
    rows = chosen(folder, sort, filters, reverse)
    if output == "json":
        print(json.dumps([{k: v for k, v in row.items() if k != "path"} for row in rows], indent=2))
        return 0
    if not rows:
        print(f"No run below {folder}" + " is like that." * bool(filters) + "." * (not filters))
        return 0
    _print(rows)
    total = sum(row["bytes"] for row in rows)
    print(f"{len(rows)} run{'s' * (len(rows) > 1)}, {_size(total)}")
    return 0


def prune(folder: str, filters: Sequence[str], keep: int, yes: bool) -> int:
    """Delete runs below ``folder`` but the best ``keep`` of each data set, after saying which.

    The best are those of the highest validation accuracy. Runs that are being written, trials of a
    study, and runs that hold others stay, and, unless ``keep`` is 0, those without such an
    accuracy. Without ``yes`` a person is asked, and where there is none nothing is deleted. Returns
    2 where one could not be.
    """
    rows = chosen(folder, "run", filters)
    going, staying = _parted(rows, keep)
    for row, reason in staying:
        print(f"stays: {row['run']} ({reason})")
    if not going:
        print("Nothing is to be deleted.")
        return 0
    _print(going)
    size = _size(sum(row["bytes"] for row in going))
    text = f"{len(going)} run{'s' * (len(going) > 1)}, {size}"
    if not yes:
        if not sys.stdin.isatty():
            print(f"Would delete {text}. Nothing was deleted; type it with --yes.")
            return 0
        if input(f"Delete {text}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 0
    failed = 0
    for row in going:
        try:
            with locked(row["path"]), files.write_errors(row["path"]):
                shutil.rmtree(row["path"])
        except UserError as error:
            failed += 1
            print(f"fmnist: {row['run']} was not deleted: {error}", file=sys.stderr)
    print(f"deleted {len(going) - failed} of {len(going)}")
    return 2 if failed else 0


def _parted(rows: list[Row], keep: int) -> tuple[list[Row], list[tuple[Row, str]]]:
    """Return which runs go, and which stay, with the reason."""
    going: list[Row] = []
    staying: list[tuple[Row, str]] = []
    ranks: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: -_number(row["validation_accuracy"], -math.inf)):
        path = row["path"]
        known = _finite(row["validation_accuracy"])
        rank = ranks[row["data"]] = ranks.get(row["data"], 0) + known
        inner = any(path in other["path"].parents for other in rows)
        if row["status"] == "running":
            staying.append((row, "it is running, or its process died; resume it, or delete it"))
        elif path.parent.name == "trials" and _TRIAL.fullmatch(path.name):
            staying.append((row, f"it is a trial of {path.parent.parent.name}"))
        elif inner or path.is_symlink() or Path.cwd().is_relative_to(path.resolve()):
            staying.append((row, "its folder holds other runs, is a link, or you are in it"))
        elif known and rank <= keep:
            best = "best" if keep == 1 else f"number {rank}"
            staying.append((row, f"{best} of {row['data']} by validation accuracy"))
        elif not known and keep and row["status"] not in BROKEN:  # as those of the recipes
            staying.append((row, "it has no validation accuracy to compare; --keep 0 takes it"))
        else:
            going.append(row)
    return going, staying


def chosen(folder: str, sort: str, filters: Sequence[str], reverse: bool = False) -> list[Row]:
    """Return the rows of the runs below ``folder``, sorted, of which all ``filters`` are true.

    Raises UserError for a folder that is not there, and for names that are no columns.
    """
    if not os.path.isdir(folder):
        raise UserError(
            f"There is no folder {folder}. Type fmnist runs FOLDER; fmnist train makes its runs "
            "in runs."
        )
    tests = [_filter(text) for text in filters]
    column = _column(sort, "--sort")
    rows = [row for row in map(read, find(Path(folder))) if all(test(row) for test in tests)]
    if column in WORDS:
        rows.sort(key=lambda row: str(row[column]), reverse=reverse)
    else:  # the largest first; what is not known last
        known = [row for row in rows if _finite(row[column])]
        known.sort(key=lambda row: row[column], reverse=not reverse)
        rows = known + [row for row in rows if not _finite(row[column])]
    return rows


def _column(word: str, option: str) -> str:
    if word not in NAMES:
        known = [*COLUMNS.values()]
        raise UserError(
            f"{option}: there is no column {word!r}; there are {', '.join(known)}."
            + nearest(word, known)
        )
    return NAMES[word]


_COMPARE = {"=": None, ">": operator.gt, "<": operator.lt}


def _filter(text: str) -> Any:
    """Return whether a row is as ``text`` says: "model=air*", "validation>0.92"."""
    match = re.fullmatch(r"(\w+)([=<>])(.*)", text)
    if match is None:
        raise UserError(
            f"--filter {text!r} is no condition. Type --filter model=lenet, 'data=*mnist' or "
            "'validation>0.92'"
        )
    column, compare, value = _column(match[1], "--filter"), _COMPARE[match[2]], match[3]
    if compare is None:
        return lambda row: fnmatch.fnmatchcase(_plain(row[column]), value)
    try:
        limit = float(value)
    except ValueError:
        raise UserError(f"--filter {text!r}: {value!r} is no number.") from None
    return lambda row: _finite(row[column]) and compare(row[column], limit)


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def find(folder: Path) -> Iterator[Path]:
    """Yield the run directories in and below ``folder``, by name."""
    for place, folders, names in os.walk(folder):
        hidden = (rundir.CHECKPOINTS, rundir.PLOTS)
        folders[:] = sorted(f for f in folders if f not in hidden and not f.startswith("."))
        if {rundir.SUMMARY, rundir.CONFIG} <= {*names}:
            yield Path(place)


def read(path: Path) -> Row:
    """Return the row of a run; None for what its summary does not tell."""
    summary = read_json(path / rundir.SUMMARY)
    summary = summary if isinstance(summary, dict) else {"status": "damaged summary"}
    dataset = summary.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    wanted = ("status", "model", "backend", "epochs", "validation_accuracy", "test_accuracy")
    known = {name: summary.get(name) for name in wanted}
    return {
        "run": os.path.relpath(path),
        **known,
        "data": dataset.get("name"),
        "seconds": summary.get("total_seconds"),
        "bytes": sum(_bytes(Path(place) / n) for place, _, names in os.walk(path) for n in names),
        "path": path,
    }


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # it went meanwhile, as a training's checkpoints do
        return 0


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any, otherwise: float) -> float:
    return value if _finite(value) else otherwise


def _print(rows: Sequence[Row]) -> None:
    from rich.table import Table

    from fmnist_keras3.evaluation.report import duration, figure, percent

    forms: dict[str, Any] = {
        **dict.fromkeys(WORDS, lambda value: _plain(value) or "—"),
        "epochs": figure,
        **dict.fromkeys(("validation_accuracy", "test_accuracy"), percent),
        "seconds": duration,
        "bytes": _size,
    }
    table = Table()
    for name, shown in COLUMNS.items():
        right = name not in WORDS
        justify: Any = "right" if right else "left"
        table.add_column(shown, justify=justify, no_wrap=right, overflow="fold")
    for row in rows:
        style = STYLES.get(str(row["status"]), "yellow")
        cells = [forms[name](row[name]) for name in COLUMNS]
        cells[1] = screen.styled((cells[1], style))
        table.add_row(*cells)
    console = screen.console()
    if not console.is_terminal:
        console = screen.console(width=200)  # a log: better a long line than a broken one
    console.print(table)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
