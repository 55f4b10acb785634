"""`fmnist train`: from settings to a complete run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime
from fmnist_keras3.commands import launch
from fmnist_keras3.data.sources import is_place
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import TOLD, UserError, exit_code, told
from fmnist_keras3.runs import checkpoint, checkpoints, rundir
from fmnist_keras3.runs.locate import locate, newest_run
from fmnist_keras3.runs.lock import locked
from fmnist_keras3.settings import PROCESSES, SETTINGS, TrainConfig
from fmnist_keras3.training import profiler

RUNS = Path("runs")


def start(config: TrainConfig) -> int:
    """Train from the beginning; returns the exit code."""
    with _together(dataclasses.asdict(config)):
        return _train(config, ckpt_path=None)


@contextlib.contextmanager
def _together(chosen: dict[str, Any]) -> Iterator[None]:
    """Join the other processes of this training, if it is one of many, and leave them at last.

    Unless `launch` started it, this process watches over another one that does so.
    """
    if chosen.get("coordinator") is None:
        yield
        return
    if launch.WATCHED not in os.environ and sys.argv[1:2] == ["train"]:
        raise SystemExit(launch.watch(sys.argv[1:]))
    runtime.join_processes(*map(chosen.get, PROCESSES))
    try:
        yield
        runtime.leave_processes()
    except BaseException as error:
        message, code = told(error) if isinstance(error, TOLD) else ("", 1)
        lost = not message and runtime.LOST.search(str(error)) is not None
        if not lost:
            print(message or "".join(traceback.format_exception(error)), file=sys.stderr)
        runtime.end_one_of_many(code, lost)


def resume(chosen: dict[str, Any]) -> int:
    """Continue a run where a checkpoint stands, with its settings under the ``chosen`` ones.

    Raises UserError for a setting that may not change, and where there is nothing to resume.
    """
    with _together(chosen):
        return _resume(chosen)


def _resume(chosen: dict[str, Any]) -> int:
    which, run_dir = chosen["resume"], chosen.get("run_dir")
    if which in ("last", "best"):
        run_dir = run_dir or newest_run(RUNS)
    run, which = locate(which, run_dir)
    if which is None:
        return _train(TrainConfig(**chosen), "auto")
    stored = _stored_config(run, which)
    for name, value in chosen.items():
        before = stored.get(name, value)
        if name == "data" and is_place(value) and is_place(before):
            continue  # they may lie elsewhere now; their checksum tells whether they are the same
        if SETTINGS[name].fixed and value != before:
            raise UserError(
                f"{name} was {stored[name]!r} when {run} was started and may not be {value!r} now: "
                f"it decides the data or the weights. Leave --{name} out, or start a new run."
            )
    config = TrainConfig(**{**stored, **chosen, "run_dir": str(run)})
    return _train(config, run / rundir.CHECKPOINTS / which if checkpoints.is_name(which) else which)


def _stored_config(run: Path, which: str) -> dict[str, Any]:
    """Return the settings that a checkpoint keeps; unlike config.yaml they have a checksum."""
    folder = run / rundir.CHECKPOINTS
    with locked(run) if runtime.rank() == 0 else contextlib.nullcontext():
        if checkpoints.is_name(which):
            manifest = checkpoint.read_manifest(folder / which)
        else:
            manifest, _ = checkpoint.find(folder, which, checkpoint.read_manifest)
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{run} cannot be resumed: its checkpoints hold no settings.")
    if "trainer" in config:
        raise UserError(
            f"{run} was started from Python, whose model and data are in your program. To go on: "
            f"Trainer(run_dir={str(run)!r}, ...).fit(model, data, ckpt_path='last')"
        )
    return {k: SETTINGS[k].read(v) for k, v in config.items() if k in SETTINGS}


def build(config: TrainConfig, console: Any) -> tuple[Any, Any, Any]:
    """Return the data, the model and the Trainer of ``config``, and announce the data."""
    runtime.prepare()
    runtime.import_keras_alone()
    from fmnist_keras3 import experiment

    data = experiment.load_data(config)
    _announce(console, data)
    return experiment.build(config, data)


def _train(config: TrainConfig, ckpt_path: str | Path | None) -> int:
    console = screen.console(quiet=runtime.rank() > 0)
    backend = runtime.prepare()
    leaves = not (config.fast_dev_run or config.barebones) and runtime.rank() == 0
    if ckpt_path is None and config.run_dir is not None and leaves:
        rundir.check_new(Path(config.run_dir))
    data, model, trainer = build(config, console)
    if leaves and trainer.run_dir is None:
        synthetic = data.source.name == "synthetic"
        trainer.run_dir = rundir.new_run_path(RUNS, model.name, backend, synthetic)
    where = ["run directory ", (str(trainer.run_dir), "bold")]
    if config.fast_dev_run:
        where = [f"a trial of {config.fast_dev_run} batches, which leaves no files"]
    elif config.barebones:
        where = ["no files"]
    about = f"{config.model} on {backend}, {config.epochs} epochs, batch {config.batch_size}; "
    console.print(screen.styled(about, *where), soft_wrap=True)
    with warnings.catch_warnings(), trainer.loggers.held():  # the test's record is to come
        warnings.showwarning = lambda message, *_: console.print(
            screen.styled(("Warning:", "bold yellow"), f" {message}"), soft_wrap=True
        )
        try:
            result = trainer.fit(model, data, ckpt_path=ckpt_path, config=config.to_dict())
        except UserError:
            with contextlib.suppress(OSError):  # it is not empty, or was never made
                Path(trainer.run_dir or "").rmdir()
            raise
        return _conclude(console, config, trainer, model, data, result)


def _conclude(
    console: Any, config: TrainConfig, trainer: Any, model: Any, data: Any, result: Any
) -> int:
    """Say how the training ended, and evaluate what is complete; returns the exit code."""
    from fmnist_keras3.experiment import conclude

    backend = runtime.choose_backend()
    if result.run_dir is None:
        if result.status == "interrupted":
            stopped = (f"Stopped by {result.reason}", "bold yellow")
            console.print(screen.styled(stopped, "; nothing was kept."))
            return exit_code(str(result.reason))
        if config.barebones:
            console.print(f"{result.summary['images_per_second']:,.0f} images/s. Nothing was kept.")
            return 0
        trainer.test(model, data, tta=config.tta)
        console.print("Training, validation and test work. Nothing was kept.")
        return 0
    if result.status == "interrupted":
        stopped = (f"Stopped by {result.reason}", "bold yellow")
        after = f" after step {result.summary['steps']}; nothing is lost. To go on:\n  "
        command = _resume_command(backend, result.run_dir)
        console.print(screen.styled(stopped, after, command), soft_wrap=True)
        return exit_code(str(result.reason))
    if result.profile is not None:
        console.print(profiler.table(result.profile))
    if config.profile == "trace":
        _say_how_to_read_a_trace(console, result.run_dir / "profile")
    if result.reason:
        console.print(f"Ended early: {result.reason}.", soft_wrap=True)
    try:
        conclusion = conclude(trainer, model, data, result, config.tta)
    except (KeyboardInterrupt, UserError) as error:
        error.add_note(
            "The training is complete; its evaluation and report are not. To make them:\n  "
            + _resume_command(backend, result.run_dir)
        )
        raise
    _show(console, result.run_dir, conclusion)
    _announce_synthetic(console, data)
    return 0


def _say_how_to_read_a_trace(console: Any, folder: Path) -> None:
    how = f"pip install xprof && xprof --logdir {folder}"
    if files := sorted(folder.rglob("perfetto_trace.json.gz")):
        how = f"open {files[-1]} at https://ui.perfetto.dev, or {how}"
    console.print(f"Trace: {how}", soft_wrap=True)


def _show(console: Any, run: Path, conclusion: Any) -> None:
    """Print the tables of a finished run: the scores of the classes, and the figures."""
    from rich.table import Table

    from fmnist_keras3.evaluation.metrics import per_class_table

    summary = conclusion.summary
    if conclusion.evaluation is not None:
        console.print(per_class_table(conclusion.evaluation))
    table = Table(show_header=False, box=None)
    kinds = ("test", "test_raw", "validation", "validation_averaged")
    keys = [f"{kind}_{name}" for kind in kinds for name in ("accuracy", "loss")]
    for key in (*keys[:2], "test_accuracy_tta", "test_loss_tta", *keys[2:]):
        if summary.get(key) is not None:
            table.add_row(key.replace("_", " "), screen.styled((f"{summary[key]:.4f}", "bold")))
    if summary.get("images_per_second"):
        table.add_row("training speed", f"{summary['images_per_second']:,.0f} images/s")
    table.add_row("model", str(run / rundir.MODEL))
    table.add_row("report", str(conclusion.report))
    console.print(table)


def _announce(console: Any, data: Any) -> None:
    source = data.source
    held = f", {len(data.validation):,} for validation" if data.validation is not None else ""
    console.print(
        f"{source.name} from {source.source}: {len(data.train):,} training examples{held}, "
        f"{len(source.test):,} for the test",
        soft_wrap=True,
    )
    if source.note and source.name != "synthetic":
        console.print(f"Note: {source.note}", soft_wrap=True)
    _announce_synthetic(console, data)


def _announce_synthetic(console: Any, data: Any) -> None:
    if data.source.name != "synthetic":
        return
    from rich.panel import Panel

    console.print(
        Panel(
            "These are GENERATED GARMENTS, not Fashion-MNIST. The figures say nothing about "
            f"Fashion-MNIST.\n{data.source.note or ''}\nFor the real data: --data_dir FOLDER, or "
            "FMNIST_DATA_DIR=FOLDER, with its four files; see `fmnist data`.",
            title="SYNTHETIC DATA",
            border_style="bold yellow",
        )
    )


def _resume_command(backend: str, run: Path) -> str:
    return command_line(backend, "train", "--resume", "last", "--run_dir", str(run))


def command_line(backend: str, *words: str) -> str:
    """Return the `fmnist` command of ``words`` as it is to be typed here, for ``backend``."""
    folder = os.environ.get("FMNIST_DATA_DIR")
    where = f"FMNIST_DATA_DIR={shlex.quote(folder)} " if folder else ""
    return f"{where}KERAS_BACKEND={backend} fmnist {shlex.join(words)}"
