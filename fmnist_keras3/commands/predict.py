"""`fmnist predict`: what the user's own pictures show."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import EXIT_USER, UserError

if TYPE_CHECKING:
    from fmnist_keras3.inference.predictor import Prediction

SHOWN = 24  # pictures on the sheet


def predict(
    target: str, images: list[str], output: str, invert: str, scale: str, show: str | None = None
) -> int:
    """Print the likeliest classes of each picture; returns 2 if one of them cannot be read.

    ``output`` is table, json or csv, ``show`` a file for the sheet, the rest as for `Predictor`.
    """
    if show is not None and not Path(show).resolve().parent.is_dir():
        raise UserError(f"--show {show}: there is no folder {Path(show).resolve().parent}.")
    if show is not None and not show.lower().endswith(".png"):
        raise UserError(f"--show {show}: the sheet is a PNG. Type --show predictions.png")
    runtime.prepare()
    runtime.import_keras_alone()
    from fmnist_keras3.inference import pictures
    from fmnist_keras3.inference.predictor import Predictor, Unreadable

    predictor = Predictor(target, invert=invert, scale=float(scale))
    errors = screen.console(stderr=True, soft_wrap=True)
    if predictor.scale_unknown and scale == "255":
        errors.print("Note: a model trained on pixels divided by 255 wants --scale 1.")
    files = list(pictures.found(images))
    sheet: list[Prediction] = []
    broken = 0

    def results() -> Iterator[Prediction]:
        nonlocal broken
        # Rows that appear on the screen as they come are progress enough.
        rows = output == "csv" and sys.stdout.isatty()
        with _bar(errors, 0 if rows else len(files)) as move:
            for number, result in enumerate(predictor.stream(files), 1):
                move(number)
                if isinstance(result, Unreadable):
                    broken += 1
                    errors.print(f"fmnist: {result.reason}")
                    continue
                if show is not None and len(sheet) < SHOWN:
                    sheet.append(result)
                yield result

    _WRITERS[output](results())
    if show is not None and sheet:
        from fmnist_keras3.inference.sheet import draw

        draw(sheet, show, Path(target).name, len(files) - broken)
        errors.print(f"sheet in {show}")
    if broken:
        errors.print(f"fmnist: {broken:,} of {len(files):,} pictures could not be read.")
    return EXIT_USER if broken else 0


@contextlib.contextmanager
def _bar(console: Any, total: int) -> Iterator[Any]:
    """Lend what moves a bar on a terminal, where there is something to wait for."""
    if total < 10 or not console.is_terminal:
        yield lambda done: None
        return
    from fmnist_keras3.callbacks.progress import TerminalBar

    bar = TerminalBar(console)
    bar.begin("pictures", total, 0)
    try:
        yield lambda done: bar.move(done, "")
    finally:
        bar.stop()


def _table(results: Iterator[Prediction]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("picture", overflow="fold")
    table.add_column("class", style="bold")
    table.add_column("probability", justify="right")
    table.add_column("then")
    table.add_column("note")
    for one in results:
        others = ", ".join(f"{n} {_percent(share)}" for n, share in one.top[1:] if share >= 5e-4)
        note = "unusual picture" if one.unusual else ""
        table.add_row(one.file, one.label, _percent(one.probability), others, note)
    if not table.rows:
        return
    if all(not cell for cell in table.columns[-1].cells):
        table.columns.pop()
    console = screen.console()
    if not console.is_terminal:
        console = screen.console(width=200)  # a log: better a long line than a broken one
    console.print(table)


def _percent(share: float) -> str:
    return f"{min(100 * share, 99.9):.1f} %"  # a rounded certainty would be a false one


def _json(results: Iterator[Prediction]) -> None:
    print(json.dumps([one.to_dict() for one in results], indent=2, ensure_ascii=False))


def _csv(results: Iterator[Prediction]) -> None:
    # Before the bar begins, which takes what is printed from then on to its own console.
    writer = csv.writer(sys.stdout, lineterminator="\n")
    first = next(results, None)
    top = range(1, (len(first.top) if first else 3) + 1)
    pairs = [(f"class_{n}", f"probability_{n}") for n in top]
    writer.writerow(["file", *itertools.chain(*pairs), "note"])
    for one in itertools.chain([first] if first else [], results):
        values = [value for name, share in one.top for value in (name, f"{share:.6f}")]
        writer.writerow([one.file, *values, "unusual picture" if one.unusual else ""])


_WRITERS = {"table": _table, "json": _json, "csv": _csv}
