"""`python -m bench [options]` measures; `compare A.json B.json` compares two results, `scaling`
measures how cost grows with work, `devices` how speed grows with devices, `study RECIPE` runs a
recipe with several seeds, `tune` measures what a trial costs beside other tuners, `data` how fast
images come from files beside other pipelines.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench import cells, study, tables, tuners
from bench import data as pipelines
from bench import devices as sharing
from bench import scaling as growth
from bench.cells import CONTESTANTS, DEVICES, PRECISIONS, Settings
from bench.output import about, keep, output_folder
from fmnist_keras3 import recipes, runtime
from fmnist_keras3.cli import Parser, add_option
from fmnist_keras3.ground.errors import EXIT_USER, UserError, exit_code
from fmnist_keras3.models import MODELS
from fmnist_keras3.settings import typed
from fmnist_keras3.training.signals import terminable

QUICK = {"contestants": ("trainer", "fit"), "epochs": 2, "rounds": 1, "limit_train": 3840}


def parser() -> Parser:
    """Return the parser of the measuring command."""
    made = Parser(
        prog="python -m bench",
        description="Measure training speed, each cell in a process of its own. "
        "`python -m bench compare A.json B.json` compares two results; `python -m bench scaling` "
        "measures how cost grows with images and epochs; `python -m bench study RECIPE` runs a "
        "recipe with several seeds, and without each of its parts.",
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
    given = vars(parser().parse(words))
    for name in ("contestants", "precisions", "batch_sizes", "limit_train", "peers", "quick"):
        if name in given:
            raise UserError(f"scaling measures our Trainer as it is; it takes no --{name}.")
    settings = settings_from({"models": ["lenet"], "epochs": 2 * growth.EARLY, **given})
    path = output_folder(given) / "scaling.json"
    found = growth.measure(settings)
    content = {"settings": dataclasses.asdict(settings), "cells": found}
    return keep(path, "Cost as work grows", growth.COLUMNS, growth.table(found), content)


def tuning(words: Sequence[str]) -> int:
    """Measure what a trial costs beside other tuners; prints the table and writes the result."""
    made = Parser(
        prog="python -m bench tune",
        description="The same random search with `fmnist tune`, KerasTuner, and Optuna and "
        "PyTorch Lightning, one after another; pip install '.[peers]'.",
    )
    for name, kind, text in (
        ("trials", int, "of each tuner [25]"),
        ("epochs", int, "of each trial [2]"),
        ("limit_train", int, "images an epoch, 0 for all [0]"),
        ("timeout", int, "seconds that each tuner may take [3600]"),
    ):
        add_option(made, name, type=kind, metavar="N", help=text)
    choices: dict[str, Any] = {"nargs": "+", "choices": list(runtime.BACKENDS), "metavar": "NAME"}
    add_option(made, "backends", **choices, help="of Keras [all]")
    add_option(made, "data", choices=["auto", "synthetic"], metavar="DATA", help="as above [auto]")
    add_option(made, "output", metavar="DIR", help="folder for the results [bench/results]")
    given = vars(made.parse(words))
    trials = given.get("trials", 25)
    if trials < 2:
        raise UserError(f"--trials is {trials}; it must be at least 2.")
    defaults = {"models": ["lenet"], "epochs": 2, "rounds": 1, "limit_train": 0, "timeout": 3600}
    settings = settings_from({**defaults, **given})
    path = output_folder(given) / "tuners.json"
    found = tuners.measure(settings, trials, lambda cell: print(tuners.line(cell), flush=True))
    synthetic = settings.data == "synthetic"
    content = {"settings": dataclasses.asdict(settings), "synthetic": synthetic, "cells": found}
    said = [tables.SYNTHETIC] * synthetic + tuners.costs(found)
    return keep(path, "Tuning", tuners.COLUMNS, tuners.table(found), content, said)


def data(words: Sequence[str]) -> int:
    """Measure how fast images come from files; prints the tables and writes the results."""
    made = Parser(
        prog="python -m bench data",
        description="A small network on folders of JPEG files with our Trainer, with Keras' "
        "image_dataset_from_directory, and with torchvision and PyTorch Lightning, and lenet from "
        "the device, memory and disk, one after another; pip install '.[peers]' torchvision.",
    )
    sets: dict[str, Any] = {"nargs": "+", "choices": list(pipelines.SETS), "metavar": "NAME"}
    add_option(made, "sets", **sets, help=f"of {', '.join(pipelines.SETS)} [all]")
    choices: dict[str, Any] = {"nargs": "+", "choices": list(runtime.BACKENDS), "metavar": "NAME"}
    add_option(made, "backends", **choices, help="of Keras [all]")
    for name, text in (
        ("epochs", "timed, after one of warm-up [3]"),
        ("rounds", "of all contestants, interleaved [3]"),
        ("timeout", "seconds that each may take [900]"),
    ):
        add_option(made, name, type=int, metavar="N", help=text)
    add_option(made, "output", metavar="DIR", help="folder for the result [bench/results]")
    given = vars(made.parse(words))
    settings = settings_from({"epochs": 3, "rounds": 3, "data": "synthetic", **given})
    folder, results = output_folder(given), []
    tell = lambda cell: print(pipelines.line(cell), flush=True)  # noqa: E731
    about_all = {name: getattr(settings, name) for name in ("backends", "epochs", "rounds")}
    for name in given.get("sets", [*pipelines.SETS]):
        found = pipelines.measure(settings, name, tell)
        content, rows = {"settings": about_all, "cells": found}, pipelines.table(found)
        path, title = folder / f"data-{name}.json", f"Images from files, {name}"
        results.append(keep(path, title, pipelines.COLUMNS, rows, content, pipelines.said(name)))
    return min(results)


def devices(words: Sequence[str]) -> int:
    """Measure how speed grows with devices; prints the table and writes the result."""
    made = Parser(
        prog="python -m bench devices",
        description="Measure training speed on 1, 2, 4 ... devices with JAX: one batch that they "
        "share (strong scaling), and one of that size for each (weak scaling).",
    )
    add_option(made, "models", nargs="+", metavar="NAME", help="[lenet cnn]")
    add_option(made, "counts", nargs="+", type=int, metavar="N", help="numbers of devices [1 2 4]")
    add_option(made, "batch_size", type=int, metavar="N", help="that is shared [128]")
    add_option(made, "epochs", type=int, metavar="N", help="timed, after one of warm-up [3]")
    add_option(made, "rounds", type=int, metavar="N", help="of all cells, interleaved [1]")
    add_option(made, "output", metavar="DIR", help="folder for the result [bench/results]")
    default = {"models": ["lenet", "cnn"], "counts": [1, 2, 4], "batch_size": 128}
    given = {**default, "epochs": 3, "rounds": 1, **vars(made.parse(words))}
    path = output_folder(given) / "devices.json"
    found = sharing.measure(
        *(given[name] for name in ("models", "counts", "batch_size", "epochs", "rounds"))
    )
    settings = {name: value for name, value in given.items() if name != "output"}
    content, rows = {"settings": settings, "cells": found}, sharing.table(found)
    return keep(path, "Speed as devices are added", sharing.COLUMNS, rows, content)


def study_parser() -> Parser:
    """Return the parser of the study."""
    made = Parser(
        prog="python -m bench study",
        description="Run a recipe with several seeds; store each run, and print mean, deviation, "
        "curves. The same command goes on after a stop, and does nothing twice.",
    )
    made.add_argument(
        "recipe", metavar="RECIPE", help=f"{', '.join(recipes.names())}, or a YAML file"
    )
    add_option(made, "seeds", type=int, metavar="N", help="seeds 0 to N - 1 [5]")
    text = f"of {', '.join(runtime.BACKENDS)} [jax]"
    choices: dict[str, Any] = {"nargs": "+", "choices": list(runtime.BACKENDS), "metavar": "NAME"}
    add_option(made, "backends", **choices, help=text)
    text = "leave out these parts of the recipe, or each, one at a time; on the validation split"
    add_option(made, "ablation", nargs="*", metavar="PART", help=text)
    text = "settings over the recipe's, for a trial: epochs=1 (needs --output)"
    add_option(made, "set", nargs="+", action="extend", metavar="NAME=VALUE", help=text)
    text = "stop after so many, within a run if need be; type the same to go on"
    add_option(made, "minutes", type=float, metavar="M", help=text)
    text = "run stored seeds once more and compare every value"
    add_option(made, "again", action="store_true", help=text)
    add_option(made, "output", metavar="DIR", help="folder for the results [bench/results]")
    text = "folder for the runs themselves [runs/study]"
    add_option(made, "work", metavar="DIR", help=text)
    return made


def run_study(words: Sequence[str]) -> int:
    """Run what is missing of a study and say what it found.

    Returns 0, 1 if a repetition differs, or 143 if --minutes ended it.
    """
    from rich.console import Console

    given = vars(study_parser().parse(words))
    recipe, own = given["recipe"], _pairs(given.get("set", []))
    about = recipes.read(recipe)[0]["about"]
    if own and "output" not in given:
        raise UserError(
            "--set makes other runs than the recipe's, which must not lie among them. Give "
            "--output DIR"
        )
    if given.get("seeds", 5) < 1 or given.get("minutes", 1) <= 0:
        raise UserError("--seeds must be at least 1, --minutes above 0.")
    name = Path(recipe).stem
    results = output_folder(given) / name
    work = Path(given.get("work", "runs/study")) / name
    jobs = study.plan(
        recipe, given.get("backends", ["jax"]), given.get("seeds", 5), given.get("ablation"), own
    )
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    if "again" in given:
        differences = study.again(jobs, results, work, say)
        for text in differences or ["All values are equal to the bit."]:
            say(text)
        return 1 if differences else 0
    complete = study.run(jobs, results, work, given.get("minutes"), say)
    tell(name, about, results, console)
    if not complete:
        say("Stopped; nothing is lost. Type the same command to go on.")
    return 0 if complete else 143


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings ``NAME=VALUE``; raises UserError for anything else."""
    for text in texts:
        if "=" not in text:
            raise UserError(f"--set has {text!r}; it takes NAME=VALUE, as epochs=1.")
    return typed(dict(text.split("=", 1) for text in texts), "--set")


def tell(recipe: str, about: str, results: Path, console: Any) -> None:
    """Print what is stored of a study, and write it as Markdown and pictures."""
    from bench import findings

    stored = study.stored(results)
    synthetic = any(map(tables.is_synthetic, itertools.chain(*stored.values())))
    title = f"Recipe {recipe}" + ", SYNTHETIC DATA" * synthetic
    if None in stored:
        said = list(filter(None, [findings.agreement(stored[None])]))
        columns, rows = findings.columns(stored[None]), findings.runs_table(stored[None])
        console.print(tables.rich_table(title, columns, rows, said))
        console.print(yaml.safe_dump(findings.header(stored[None]), sort_keys=False), end="")
        findings.curves(recipe, stored[None], results / "curves.png")
    if study.FULL in stored:
        rows = findings.parts_table(stored)
        console.print(tables.rich_table(f"{title}, ablation", findings.PARTS, rows, []))
        if stored.keys() - {None, study.FULL}:
            findings.ablation(recipe, stored, results / "ablation.png")
    if stored:
        text = findings.markdown(recipe, about, stored)
        (results / "README.md").write_text(text)
        console.print(str(results / "README.md"), soft_wrap=True)


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
        commands = {"compare": compare, "data": data, "devices": devices, "scaling": scaling}
        commands |= {"study": run_study, "tune": tuning}
        with terminable():
            if words and words[0] in commands:
                return commands[words[0]](words[1:])
            return measure(words)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt as error:
        print("bench: interrupted; what was measured is kept", file=sys.stderr)
        return exit_code(getattr(error, "signal", "SIGINT"))


if __name__ == "__main__":
    sys.exit(main())
