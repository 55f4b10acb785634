"""The command line: parses and checks everything before Keras is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_keras3 import settings
from fmnist_keras3.commands.parser import Parser, add_option, add_settings, setting_options
from fmnist_keras3.ground.errors import EXIT_USER, TOLD, UserError, nearest, told
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.recipes import layered
from fmnist_keras3.training.signals import terminable


def train_options(parser: Parser) -> None:
    add_option(parser, "print_config", action="store_true", help="print the settings and end")
    setting_options(parser)


def run_train(options: argparse.Namespace) -> int:
    file, typed = _read(options)
    from fmnist_keras3.commands import train

    if typed.get("resume") not in (None, "auto"):
        return train.resume(layered(file, typed))  # under which lie the run's settings
    chosen = layered(file, settings.read_environment(), typed)
    if chosen.get("resume"):
        return train.resume(chosen)
    resolved = settings.TrainConfig(**chosen)
    if "print_config" in options:
        import yaml

        print(yaml.safe_dump(resolved.to_dict(), sort_keys=False), end="")
        return 0
    return train.start(resolved)


def _read(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings in the file of ``--config``, and those that were typed."""
    given, table, path = vars(options), settings.SETTINGS, vars(options).get("config")
    file = {} if path is None else settings.typed(settings.mapping(path), path)
    return file, {name: table[name].read(v) for name, v in given.items() if name in table}


FINDS = ("lr", "batch_size")
PIXELS = ("image_size", "color", "resize", "on_bad_file", "cache")  # what is done to images


def find_options(parser: Parser) -> None:
    parser.add_argument("what", metavar="lr|batch_size", help="what to look for")
    add_option(parser, "output", metavar="PNG", help="where the plot goes, of lr [lr_find.png]")
    setting_options(parser)


def run_find(options: argparse.Namespace) -> int:
    what = options.what.replace("-", "_")
    if what not in FINDS:
        guess = nearest(what, FINDS)
        raise UserError(f"{what!r} cannot be looked for.{guess} Type fmnist find lr or batch_size")
    file, typed = _read(options)
    chosen = layered(file, settings.read_environment(), typed)
    if chosen.get("resume"):
        raise UserError("find looks before a training begins. Leave --resume out.")
    words = ["--config", options.config] if "config" in options else []
    for name in typed:
        words += [f"--{name}", str(getattr(options, name))] if name != what else []
    from fmnist_keras3.commands import find

    output = Path(vars(options).get("output", "lr_find.png"))
    return find.find(what, settings.TrainConfig(**chosen), words, output)


def tune_options(parser: Parser) -> None:
    from fmnist_keras3.tuning.plan import OPTIONS
    from fmnist_keras3.tuning.space import DEFAULT, FORMS

    group = parser.add_argument_group("study")
    space = " ".join(f"{name}={values}" for name, values in DEFAULT.items())
    text = f"a setting to tune, any number of times: NAME={FORMS} [{space}]"
    add_option(group, "param", action="append", metavar="NAME=VALUES", help=text)
    add_settings(group, *OPTIONS, table=OPTIONS)
    text = "train the best with five seeds in the end, and test them on the test set"
    add_option(group, "final", action="store_true", help=text)
    text = "print a SLURM job script of --workers tasks, and end"
    add_option(group, "sbatch", action="store_true", help=text)
    setting_options(parser)


def run_tune(options: argparse.Namespace) -> int:
    from fmnist_keras3.tuning.plan import OPTIONS

    file, typed = _read(options)
    given = vars(options)
    own = {name: OPTIONS[name].read(value) for name, value in given.items() if name in OPTIONS}
    chosen = layered(file, settings.read_environment(), typed)
    from fmnist_keras3.commands import tune

    order = tune.Order(own, tuple(given.get("param", ())), chosen, typed, sys.argv[1:])
    if "sbatch" in options:
        return tune.sbatch(order)
    return tune.start(order, final="final" in options)


def evaluate_options(parser: Parser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    add_option(parser, "split", metavar="SPLIT", help="test or validation [test]")
    add_settings(parser, "data", "data_dir", *PIXELS, "batch_size", "tta")
    text = "fit a temperature on the validation split, by which the run's probabilities get as sure"
    text += " as they are right; predict and export use it"
    add_option(parser, "temperature", action="store_true", help=text)
    text = "accuracy under noise, blur, shift, rotation, contrast and brightness, in five strengths"
    add_option(parser, "robustness", action="store_true", help=text)


def run_evaluate(options: argparse.Namespace) -> int:
    from fmnist_keras3.commands import evaluate

    given = vars(options)
    split = given.get("split", "test")
    if split not in ("test", "validation"):
        guess = nearest(split, ("test", "validation"))
        raise UserError(f"--split is {split!r}; it must be test or validation.{guess}")
    _, chosen = _read(options)
    for name, value in chosen.items():
        settings.SETTINGS[name].check(value)
    where = (chosen.get("data"), chosen.get("data_dir"))
    size = chosen.get("batch_size", settings.SETTINGS["batch_size"].default)
    pixels = {name: chosen[name] for name in PIXELS if name in chosen}
    more = (chosen.get("tta"), "temperature" in given, "robustness" in given)
    return evaluate.evaluate(given["target"], split, *where, size, *more, **pixels)


def predict_options(parser: Parser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    text = "pictures, folders of pictures, or patterns as 'shoes/*.jpg'"
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=text)
    text = "what is printed: table, json or csv [table]"
    add_option(parser, "output", metavar="table|json|csv", help=text)
    text = "draw pictures, what the model saw, and probabilities [predictions.png]"
    add_option(parser, "show", metavar="PNG", nargs="?", const="predictions.png", help=text)
    text = "make dark bright: auto (unless the border is dark), yes or no [auto]"
    add_option(parser, "invert", metavar="auto|yes|no", help=text)
    text = "brightest pixel of the model's training: 255, or 1 [255]"
    add_option(parser, "scale", metavar="255|1", help=text)


PREDICT = {
    "output": ("table", "json", "csv"),
    "invert": ("auto", "yes", "no"),
    "scale": ("255", "1"),
}


def run_predict(options: argparse.Namespace) -> int:
    return named("commands.predict:predict")(**_chosen(options, PREDICT))


SERVE = {name: PREDICT[name] for name in ("invert", "scale")}


def serve_options(parser: Parser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    text = "address to listen on; 0.0.0.0 lets other machines in [127.0.0.1]"
    add_option(parser, "host", metavar="HOST", help=text)
    add_option(parser, "port", metavar="PORT", help="0 for a free one [8000]")
    add_option(parser, "invert", metavar="auto|yes|no", help="as for predict [auto]")
    add_option(parser, "scale", metavar="255|1", help="as for predict [255]")


def run_serve(options: argparse.Namespace) -> int:
    given = {"host": "127.0.0.1", "port": "8000", **_chosen(options, SERVE)}
    return named("commands.serve:serve")(**given)


def _chosen(options: argparse.Namespace, table: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the options; of those in ``table`` the first word allowed is the default."""
    given = vars(options)
    for name, allowed in table.items():
        value = given.setdefault(name, allowed[0])
        if value not in allowed:
            guess = nearest(value, allowed)
            words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise UserError(f"--{name} is {value!r}; it must be {words}.{guess}")
    return given


def export_options(parser: Parser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="run directory or .keras file")
    add_option(parser, "format", metavar="|".join(EXPORT["format"]), help="what is written [onnx]")
    text = "new file, of saved_model, openvino and hub a new folder [model.onnx, hub, ...]"
    add_option(parser, "output", metavar="PATH", help=text)
    text = "what the file returns [probabilities]"
    add_option(parser, "outputs", metavar="|".join(EXPORT["outputs"]), help=text)
    text = "brightest pixel of the model's training: 255, or 1 [255]"
    add_option(parser, "scale", metavar="255|1", help=text)
    text = "8 bits, for onnx, litert and html: a quarter or half of the size [none]"
    add_option(parser, "quantize", metavar="none|int8", help=text)
    group = parser.add_argument_group("images of the check", "those of the run, unless given")
    add_settings(group, "data", "data_dir")


EXPORT = {
    "format": ("onnx", "keras", "saved_model", "litert", "openvino", "html", "hub"),
    "outputs": ("probabilities", "logits"),
    "scale": ("255", "1"),
    "quantize": ("none", "int8"),
}


def run_export(options: argparse.Namespace) -> int:
    return named("commands.export:export")(**_chosen(options, EXPORT))


def report_options(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    add_option(parser, "output", metavar="FILE", help="where to write the page")


def run_report(options: argparse.Namespace) -> int:
    print(named("evaluation.report:build")(options.runs, vars(options).get("output")))
    return 0


def runs_options(parser: Parser) -> None:
    text = "prune, to delete all but the best, after saying which; or the folder"
    parser.add_argument("what", metavar="[prune] [FOLDER]", nargs="*", help=f"{text} [runs]")
    text = "column to sort by: run, status, model, ..., validation, test, time, size [run]"
    add_option(parser, "sort", metavar="COLUMN", help=text)
    add_option(parser, "reverse", action="store_true", help="the other way round")
    text = "only runs like that, any number of times: model=lenet, 'validation>0.92'"
    add_option(parser, "filter", metavar="CONDITION", action="append", help=text)
    add_option(parser, "output", metavar="table|json", help="what is printed [table]")
    group = parser.add_argument_group("prune")
    text = "so many of each data set, of the highest validation accuracy [1]"
    add_option(group, "keep", metavar="N", help=text)
    add_option(group, "yes", action="store_true", help="delete without asking")


def run_runs(options: argparse.Namespace) -> int:
    given = _chosen(options, {"output": ("table", "json")})
    prune = given["what"][:1] == ["prune"]
    folders = given["what"][prune:]
    if len(folders) > 1:
        raise UserError(f"Unexpected {folders[1]!r}. Type fmnist runs [prune] [FOLDER]")
    folder, filters = (folders or ["runs"])[0], given.get("filter", [])
    alien = {"keep", "yes"} & given.keys() if not prune else {"sort", "reverse"} & given.keys()
    if alien or (prune and given["output"] == "json"):
        name = f"--{min(alien)}" if alien else "--output json"
        raise UserError(f"{name} is of fmnist runs{' prune' * (not prune)}, not of this.")
    if not prune:
        return named("commands.runs:show")(
            folder, given.get("sort", "run"), "reverse" in given, filters, given["output"]
        )
    keep = given.get("keep", "1")
    if not keep.isdecimal():
        raise UserError(f"--keep is {keep!r}; it must be a whole number, at least 0.")
    return named("commands.runs:prune")(folder, filters, int(keep), "yes" in given)


def preview_options(parser: Parser) -> None:
    add_settings(parser, "data", "data_dir", *PIXELS)
    add_option(parser, "preview", metavar="PNG", help="draw examples of each class into a file")
    add_option(parser, "augment", help="augmentation of the preview, as for train [none]")
    add_option(parser, "report", metavar="HTML", help="write a page: examples, means, duplicates")


def run_data(options: argparse.Namespace) -> int:
    given = vars(options)
    for name in {*PIXELS, "data"} & given.keys():
        settings.SETTINGS[name].check(given[name])
    return named("commands.data:describe")(**given)


def models_options(parser: Parser) -> None:
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="models, as airnet:widths=16-32 [all]"
    )


def run_models(options: argparse.Namespace) -> int:
    return named("commands.models:show")(options.models)


def run_recipes(_: argparse.Namespace) -> int:
    return named("commands.recipes:show")()


def run_doctor(_: argparse.Namespace) -> int:
    return named("commands.doctor:report")()


def no_options(parser: Parser) -> None:
    pass


COMMANDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Any], int]]] = {
    "train": ("train a model; writes a run directory", train_options, run_train),
    "find": ("a learning rate or batch size for a training", find_options, run_find),
    "tune": ("search the settings that train best, with Optuna", tune_options, run_tune),
    "evaluate": ("metrics of a run or model on a split", evaluate_options, run_evaluate),
    "predict": ("what your own pictures show", predict_options, run_predict),
    "export": ("a file for other programs, checked", export_options, run_export),
    "serve": ("a web server for your model, with a page to play with", serve_options, run_serve),
    "report": ("rebuild a run's HTML report, or compare runs", report_options, run_report),
    "runs": ("the runs in a folder; prune keeps the best", runs_options, run_runs),
    "data": ("fetch, verify and describe the data", preview_options, run_data),
    "models": ("the models, their options, parameters and MACs", models_options, run_models),
    "recipes": ("settings under a name, and their measured accuracy", no_options, run_recipes),
    "launch": (
        "a training in several processes of this machine",
        lambda parser: named("commands.launch:options")(parser),
        lambda options: named("commands.launch:run")(options),
    ),
    "doctor": ("versions, backends, devices, and a short test of each", no_options, run_doctor),
}


COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("fit", "run", "start"), "train"),
    **dict.fromkeys(("test", "eval", "validate"), "evaluate"),
    **dict.fromkeys(("classify", "infer"), "predict"),
    **dict.fromkeys(("convert", "save", "onnx"), "export"),
    "lr_find": "find",
    **dict.fromkeys(("search", "optimize", "sweep", "hpo"), "tune"),
    "download": "data",
    **dict.fromkeys(("ls", "list", "prune"), "runs"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see the README)."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        with terminable():
            return _dispatch(words)
    except TOLD as error:
        message, code = told(error)
        print(message, file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left; Python would complain once more
        return 1


def _dispatch(words: list[str]) -> int:
    overview = Parser(
        prog="fmnist",
        description="Train, evaluate and compare Fashion-MNIST classifiers on Keras 3.",
        epilog="The backend is KERAS_BACKEND (jax or tensorflow). "
        "`fmnist COMMAND --help` shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("--version", action="store_true", help="print the version and end")
    listing = "\n".join(f"  {name:10} {about}" for name, (about, _, _) in COMMANDS.items())
    overview.description = f"{overview.description}\n\ncommands:\n{listing}"
    overview.usage = "fmnist COMMAND [options]"
    if words and not words[0].startswith("-"):
        name = words[0]
        if name not in COMMANDS:
            guess = nearest(COMMANDS_ELSEWHERE.get(name, name), COMMANDS)
            raise UserError(
                f"There is no command {name!r}.{guess} "
                f"Commands: {', '.join(COMMANDS)}. Type fmnist --help"
            )
        about, options, run = COMMANDS[name]
        parser = Parser(prog=f"fmnist {name}", description=f"{about[:1].upper()}{about[1:]}.")
        options(parser)
        return run(parser.parse(words[1:]))
    if "--version" in words:
        from fmnist_keras3 import __version__

        print(__version__)
        return 0
    if words not in (["-h"], ["--help"], []):
        overview.parse(words)
    overview.print_help()
    return 0 if words else EXIT_USER
