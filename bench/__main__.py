"""`python -m bench [options]` measures; `compare A.json B.json` compares two results, `scaling`
measures how cost grows with work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import cells, tables
from bench import scaling as growth
from bench.cells import CONTESTANTS, DEVICES, PRECISIONS, Settings
from fmnist_keras3 import runtime
from fmnist_keras3.cli import Parser, add_option
from fmnist_keras3.errors import EXIT_USER, UserError
from fmnist_keras3.models import MODELS

DEFAULT_OUTPUT = Path(__file__).parent / "results"
QUICK = {"contestants": ("trainer", "fit"), "epochs": 2, "rounds": 1, "limit_train": 3840}


def parser() -> Parser:
    """Return the parser of the measuring command."""
    made = Parser(
        prog="python -m bench",
        description="Measure training speed, each cell in a process of its own. "
        "`python -m bench compare A.json B.json` compares two results; `python -m bench scaling` "
        "measures how cost grows with images and epochs.",
        epilog="contestants: " + "; ".join(f"{n}: {c.about}" for n, c in CONTESTANTS.items()),
    )
    for name, allowed in (
        ("models", MODELS),
        ("backends", runtime.BACKENDS),
        ("contestants", CONTESTANTS),
        ("precisions", PRECISIONS),
    ):
        default = ", ".join(getattr(Settings, name))
        text = f"of {', '.join(allowed)} [{default}]"
        add_option(made, name, nargs="+", choices=list(allowed), metavar="NAME", help=text)
    text = "examples a step, one or several [128]"
    add_option(made, "batch_sizes", nargs="+", type=int, metavar="N", help=text)
    text = f"of {', '.join(DEVICES)} [auto: a GPU if there is one]"
    add_option(made, "device", choices=list(DEVICES), metavar="NAME", help=text)
    for name, text in (
        ("epochs", "timed epochs, after one of warm-up"),
        ("rounds", "how often each cell is measured, with another seed each time"),
        ("limit_train", "images an epoch, 0 for all"),
        ("timeout", "seconds a cell may take"),
    ):
        text += f" [{getattr(Settings, name)}]"
        add_option(made, name, type=int, metavar="N", help=text)
    text = "auto (real if FMNIST_DATA_DIR is set) or synthetic [auto]"
    add_option(made, "data", choices=["auto", "synthetic"], metavar="DATA", help=text)
    add_option(made, "output", metavar="DIR", help="folder for the results [bench/results]")
    add_option(made, "peers", action="store_true", help="with engine, jax, torch and lightning")
    text = "two minutes: fewer images, one round, no streaming"
    add_option(made, "quick", action="store_true", help=text)
    return made


def settings_from(given: dict[str, Any]) -> Settings:
    """Return the settings that the options in ``given`` mean; raises UserError for bad ones."""
    fields = {field.name for field in dataclasses.fields(Settings)}
    chosen = {key: given[key] for key in given if key in fields}
    chosen = {k: tuple(dict.fromkeys(v)) if isinstance(v, list) else v for k, v in chosen.items()}
    chosen = {**(QUICK if "quick" in given else {}), **chosen}
    if "peers" in given:
        names = chosen.get("contestants", Settings.contestants)
        peers = [name for name, contestant in CONTESTANTS.items() if contestant.peer]
        chosen["contestants"] = tuple(dict.fromkeys([*names, *peers]))
    # A machine may have one backend only; then that is what is compared.
    installed = tuple(b for b in runtime.BACKENDS if runtime.version(b)) or runtime.BACKENDS
    chosen.setdefault("backends", installed)
    if chosen.get("data", "auto") == "auto":
        chosen["data"] = "real" if os.environ.get("FMNIST_DATA_DIR") else "synthetic"
    return Settings(**chosen)


def measure(words: Sequence[str]) -> int:
    """Measure all cells, print the table and write the results; returns 1 if all cells failed."""
    from rich.console import Console

    given = vars(parser().parse(words))
    settings = settings_from(given)
    path = output_folder(given) / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        result = collect(settings, Path(work), path, console)
    if not sys.stdout.isatty():
        console = Console(width=170)  # a log: better a long line than a cut word
    rows = cells.pool(result["cells"])
    title = "Training speed" + ", SYNTHETIC DATA" * tables.is_synthetic(result)
    said = tables.notes(result)
    console.print(tables.rich_table(title, tables.COLUMNS, tables.cells_of(rows), said))
    if outside := tables.outside_of(rows):
        heading = "Evaluation and prediction"
        console.print(tables.rich_table(heading, tables.OUTSIDE, outside, []))
    path.with_suffix(".md").write_text(tables.markdown(result))
    from bench import charts

    written = [path, path.with_suffix(".md"), charts.speeds(result, path.with_suffix(".png"))]
    written.append(charts.accuracies(result, path.with_name(f"{path.stem}-accuracy.png")))
    for file in written:
        console.print(str(file), soft_wrap=True, highlight=False)
    return 0 if any(rows) else 1


def output_folder(given: dict[str, Any]) -> Path:
    """Return the folder for the results, made if need be; raises UserError if it cannot be."""
    folder = Path(given.get("output", DEFAULT_OUTPUT))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made a folder: {error.strerror}.") from error
    return folder


def about() -> dict[str, Any]:
    """Return what every result begins with: command, date, machine, versions."""
    return {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
    }


def collect(settings: Settings, work: Path, path: Path, console: Any) -> dict[str, Any]:
    """Prepare the data, measure every cell and return the result, which is kept in ``path``."""
    dataset = cells.prepare(settings, work)
    result = {
        **about(),
        "settings": dataclasses.asdict(settings),
        "dataset": dataset,
        "synthetic": dataset["name"] == "synthetic",
        "cells": [],
    }
    if result["synthetic"]:
        console.print(f"[bold yellow]{tables.SYNTHETIC}[/]")
    plan = cells.plan(settings)
    for number, cell in enumerate(plan, 1):
        done = cells.measure(cell, settings, work)
        result["cells"].append(done)
        path.write_text(json.dumps(result, indent=1) + "\n")  # an interrupt loses one cell only
        row = cells.pool([done])[0]
        found = f"{row.rate():,.0f} images/s" if row else f"FAILED: {done['error']}"
        text = f"{number:3}/{len(plan)} round {cell.seed + 1}: {cell}: {found}"
        wall = f" ({done['wall_seconds']:.0f} s)"
        console.print(text + wall, soft_wrap=True, highlight=False, markup=False)
    return result


def scaling(words: Sequence[str]) -> int:
    """Measure how cost grows with images and epochs; prints the table and writes the result."""
    from rich.console import Console

    given = vars(parser().parse(words))
    for name in ("contestants", "precisions", "batch_sizes", "limit_train", "peers", "quick"):
        if name in given:
            raise UserError(f"scaling measures our Trainer as it is; it takes no --{name}.")
    settings = settings_from({"models": ["lenet"], "epochs": 2 * growth.EARLY, **given})
    path = output_folder(given) / "scaling.json"
    found = growth.measure(settings)
    rows = growth.table(found)
    result = {**about(), "settings": dataclasses.asdict(settings), "cells": found}
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(
        "\n".join([*tables.markdown_table(growth.COLUMNS, rows), "", f"`{result['command']}`", ""])
    )
    Console(width=None if sys.stdout.isatty() else 170).print(
        tables.rich_table("Cost as work grows", growth.COLUMNS, rows, [str(path)])
    )
    return 0 if any("error" not in cell for cell in found) else 1


def compare(words: Sequence[str]) -> int:
    """Print which cells got slower or faster from one result to another."""
    from rich.console import Console

    made = Parser(prog="python -m bench compare", description="Compare two results, B against A.")
    made.add_argument("a", metavar="A.json")
    made.add_argument("b", metavar="B.json")
    given = made.parse(words)
    results = []
    for path in (given.a, given.b):
        try:
            result = json.loads(Path(path).read_text())
            cells.pool(result["cells"])
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is no result of `python -m bench`.") from None
        results.append(result)
    found, said = tables.compare(*results)
    console = Console() if sys.stdout.isatty() else Console(width=170)
    title = "B against A" + ", SYNTHETIC DATA" * any(map(tables.is_synthetic, results))
    console.print(tables.rich_table(title, tables.COMPARED, found, said))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the bench and return its exit code: 0, 1 if no cell could be measured, 2 for misuse."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        commands = {"compare": compare, "scaling": scaling}
        if words and words[0] in commands:
            return commands[words[0]](words[1:])
        return measure(words)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
