"""`fmnist tune`: the settings that train best, from a search with Optuna."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime
from fmnist_keras3.commands.train import command_line
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import EXIT_USER, UserError, exit_code
from fmnist_keras3.ground.files import read_json
from fmnist_keras3.tuning.plan import check_options, check_optuna, new_plan

FINAL_SEEDS = 5
LOOK = 1.0  # seconds between two looks at the workers


@dataclass(frozen=True)
class Order:
    """What was typed: options of the study, parameters, and the settings of all trials.

    ``typed`` are those of ``chosen`` that were given as options, ``words`` the command line.
    """

    own: dict[str, Any]
    params: tuple[str, ...]
    chosen: dict[str, Any]
    typed: dict[str, Any]
    words: list[str]

    @property
    def given(self) -> dict[str, Any]:
        """The options that say what the study is."""
        outside = ("study", "storage", "workers")
        return {name: value for name, value in self.own.items() if name not in outside}


def start(order: Order, final: bool) -> int:
    """Work on the study of the order until it has its trials; returns the exit code."""
    check_optuna()
    workers = order.own.get("workers", 1)
    check_options(order.own)
    backend = runtime.prepare() if workers == 1 else runtime.choose_backend()
    runtime.import_keras_alone()
    from fmnist_keras3.tuning import tune
    from fmnist_keras3.tuning.study import hidden, open_study

    name = order.own.get("study")
    if name is None:
        name = tune.new_name(str(order.chosen.get("model", "baseline")))
    storage = order.own.get("storage")
    arguments = (order.given, order.params, order.chosen, order.typed, backend)
    study, plan, folder = open_study(name, storage, *arguments)
    console = screen.console()
    words = ["tune", "--study", name]
    words += ["--storage", hidden(storage)] if storage else []
    words += ["--trials", str(plan.trials), *["--final"] * final]
    again = command_line(backend, *words)
    console.print(
        screen.styled("study ", (study.study_name, "bold"), f" in {folder}: ", _described(plan)),
        soft_wrap=True,
    )
    if plan.final_validation is not None:
        share = f"{100 * plan.settings['validation']:g} %"
        held = f"{share} of the training examples are held out to choose by"
        console.print(f"{held}; best.yaml trains on all of them, as the settings say.")
    try:
        if workers > 1:
            _oversee(study, plan, folder, storage, workers, console)
        else:
            tune.run(study, plan, folder, console=console)
        best = _conclude(console, study, plan, folder, again)
        if final and best is not None:
            _train_the_best(console, plan, best, folder)
    except KeyboardInterrupt as error:
        stopped = getattr(error, "signal", "SIGINT")
        text = "; nothing is lost. To go on, or to join in from another process:\n  "
        line = screen.styled((f"Stopped by {stopped}", "bold yellow"), text, again)
        console.print(line, soft_wrap=True)
        return exit_code(stopped)
    return 0


def _described(plan: Any) -> str:
    space = ", ".join(f"{name} {param}" for name, param in plan.space.items())
    how = f"sampler {plan.sampler}, pruner {plan.pruner}"
    seeds = f" of {plan.seeds} seeds" * (plan.seeds > 1)
    return f"{plan.most} trials{seeds}, {how}; {space}"


def _oversee(
    study: Any, plan: Any, folder: Path, storage: str | None, workers: int, console: Any
) -> None:
    """Start processes that work on the study, and show it until they end."""
    from fmnist_keras3.tuning.display import Display

    given: dict[str, Any] = {"trials": plan.trials}
    if plan.timeout is not None:
        given["timeout"] = str(plan.timeout)
    order = json.dumps({"study": str(folder.absolute()), "storage": storage, "given": given})
    environment = dict(os.environ)
    # JAX would take three quarters of a GPU for each process, TensorFlow all of it.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / workers:.2f}")
    environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    logs = [folder / f"worker-{i}.log" for i in range(workers)]
    with contextlib.ExitStack() as stack:
        processes = []
        for log in logs:
            out = stack.enter_context(open(log, "ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "fmnist_keras3.tuning.worker"],
                stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment,
                start_new_session=True,  # a Ctrl-C comes from here, and once
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(order.encode())
            process.stdin.close()
            processes.append(process)
        with _stopping(processes), Display(study, plan, console, workers) as display:
            while any(process.poll() is None for process in processes):
                display.refresh()
                time.sleep(LOOK)
            display.trial_ended()
    for log, process in zip(logs, processes, strict=True):
        if process.returncode == EXIT_USER:
            said = log.read_text(errors="replace").strip().splitlines()
            raise UserError(said[-1] if said else f"A worker failed; see {log}.")
        if process.returncode:
            console.print(f"{log.stem} ended with code {process.returncode}; see {log}.")


@contextlib.contextmanager
def _stopping(processes: list[Any]) -> Iterator[None]:
    """Stop the processes as this one is stopped, and wait for their checkpoints."""
    try:
        yield
    except BaseException as error:
        name = getattr(error, "signal", "SIGINT")
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.Signals[name])
        for process in processes:
            process.wait()
        raise


def _conclude(console: Any, study: Any, plan: Any, folder: Path, again: str) -> Any:
    """Write and tell what was found; returns the best trial, or None."""
    from rich.table import Table

    from fmnist_keras3.runs import rundir
    from fmnist_keras3.tuning import results
    from fmnist_keras3.tuning.display import number, trials_table
    from fmnist_keras3.tuning.study import DATABASE, JOURNAL, counted

    summaries = folder.glob(f"trials/*/**/{rundir.SUMMARY}")
    first = next((s for path in summaries if (s := read_json(path))), {})
    synthetic = first.get("dataset", {}).get("name") == "synthetic"
    best = results.write_results(study, plan, folder, synthetic)
    if best is None:
        console.print(f"No trial is complete. To go on:\n  {again}", soft_wrap=True)
        return None
    top = results.ranked(plan, study, counted(study))
    several = len(plan.objectives) > 1
    title = "Pareto front" if several else f"The best {len(top)} trials"
    console.print(screen.styled((title, "bold")))
    console.print(trials_table(plan, top, [best]))
    table = Table("parameter", "best", "on the front" if several else "in these", box=None)
    for name, param in plan.space.items():
        bold = screen.styled((number(best.params[name]), "bold"))
        table.add_row(name, bold, results.spread(param, top))
    console.print(table)
    if synthetic:
        console.print(screen.styled(("GENERATED GARMENTS, not Fashion-MNIST.", "bold yellow")))
    for name in (DATABASE, JOURNAL):
        if (folder / name).exists():
            place = f"sqlite:///{folder / name}" if name == DATABASE else folder / name
            console.print(f"dashboard  optuna-dashboard {place}", soft_wrap=True)
    console.print(f"report     {folder / results.PAGE}", soft_wrap=True)
    train = command_line(plan.backend, "train", "--config", str(folder / results.BEST))
    console.print(f"best       {train}", soft_wrap=True)
    return best


def _train_the_best(console: Any, plan: Any, best: Any, folder: Path) -> None:
    """Train the best settings with several seeds, and test each on the test set."""
    from rich.table import Table

    from fmnist_keras3 import experiment
    from fmnist_keras3.ground.errors import Interrupted
    from fmnist_keras3.ground.files import write_json
    from fmnist_keras3.runs import rundir
    from fmnist_keras3.training.programs import Programs

    runtime.prepare()
    programs = Programs()
    accuracies, table = [], Table("seed", "test accuracy", "test loss", box=None)
    for seed in range(FINAL_SEEDS):
        place = folder / f"final-{best.number}" / f"seed-{seed}"
        summary = read_json(place / rundir.SUMMARY) or {}
        if summary.get("test_accuracy") is None:
            values = plan.best(best.params).to_dict() | {"seed": seed, "run_dir": str(place)}
            config = experiment.TrainConfig(**values)
            data, model, trainer = experiment.build(config, programs=programs)
            console.print(f"training the best with seed {seed}, in {place}", soft_wrap=True)
            result = trainer.fit(model, data, ckpt_path="auto", config=config.to_dict())
            if result.status == "interrupted":
                raise Interrupted(str(result.reason))
            summary = experiment.conclude(trainer, model, data, result, config.tta).summary
        accuracies.append(summary["test_accuracy"])
        table.add_row(str(seed), f"{accuracies[-1]:.4f}", f"{summary['test_loss']:.4f}")
    found = {"mean": statistics.fmean(accuracies), "std": statistics.stdev(accuracies)}
    write_json(folder / "final.json", {"trial": best.number, "test_accuracy": accuracies, **found})
    console.print(table)
    text = f"test accuracy {found['mean']:.4f} ± {found['std']:.4f} over {FINAL_SEEDS} seeds"
    console.print(screen.styled((text, "bold")))


def sbatch(order: Order) -> int:
    """Print a SLURM script whose tasks work on one study; returns the exit code."""
    new_plan(order.given, order.params, order.chosen, order.typed)
    name = order.own.get("study") or f"{order.chosen.get('model', 'baseline')}".partition(":")[0]
    tasks = order.own.get("workers", 4)
    words = [word for word in order.words if word != "--sbatch"]
    for option, value in (("--study", name), ("--storage", "journal")):
        if option[2:] not in order.own:
            words += [option, value]
    words = _without(words, "--workers")
    backend = runtime.choose_backend()
    print(f"""#!/bin/bash
#SBATCH --job-name=tune-{Path(name).name}
#SBATCH --array=0-{tasks - 1}
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1             # leave it out on nodes without GPUs
#SBATCH --requeue
#SBATCH --signal=USR1@120        # a checkpoint and back into the queue before the time is over
#SBATCH --open-mode=append
#SBATCH --output=tune-%A-%a.log
# The tasks share one study below studies/, on a file system that all nodes see.
export KERAS_BACKEND={backend}
srun fmnist {shlex.join(words)}""")
    return 0


def _without(words: list[str], option: str) -> list[str]:
    """Return the words of a command line without an option and its value."""
    left, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] != option:
            left.append(word)
        skip = not skip and word == option
    return left
