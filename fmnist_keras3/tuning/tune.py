"""`tune`: a study from its space to the Optuna study with all its trials."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna

from fmnist_keras3 import runtime
from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.given import as_datamodule
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.recipes import layered
from fmnist_keras3.settings import SETTINGS
from fmnist_keras3.tuning.display import Display
from fmnist_keras3.tuning.plan import Plan
from fmnist_keras3.tuning.study import (
    STUDIES,
    Worker,
    make_pruner,
    make_sampler,
    open_study,
    quiet,
)
from fmnist_keras3.tuning.trial import TooLarge, TrialRunner


def tune(
    space: dict[str, Any] | None = None,
    data: DataModule | tuple[Any, ...] | Any = None,
    *,
    trials: int | None = None,
    timeout: float | str | None = None,
    objective: str | None = None,
    seeds: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    study: str | None = None,
    storage: str | None = None,
    verbose: bool = True,
    **settings: Any,
) -> optuna.Study:
    """Search the values of settings that train best, by the validation split; returns the study.

    ``space`` maps settings of `fmnist train` to "log(1e-4,1e-1)", (low, high), (low, high, "log")
    or a list of choices; None: learning rate, dropout and L2. ``settings`` are those of all trials.
    ``data`` is a DataModule or what `Trainer.fit` takes, None: what the settings say. ``trials``
    (50), ``timeout``, ``objective``, ``seeds``, ``sampler``, ``pruner``, ``study`` and ``storage``
    are as for `fmnist tune --help`; with a ``study`` that is there, its trials go on. ``verbose``
    shows them. Raises UserError for what cannot be, before anything is trained.

    Example: ``tune({"lr": "log(1e-4,1e-1)", "dropout": (0, 0.5)}, epochs=3).best_params``
    """
    options = ("trials", "timeout", "objective", "seeds", "sampler", "pruner")
    values = (trials, timeout, objective, seeds, sampler, pruner)
    given = {name: v for name, v in zip(options, values, strict=True) if v is not None}
    for name in settings:
        if name not in SETTINGS:
            known = [*SETTINGS, *options, "study", "storage"]
            raise UserError(f"There is no setting {name!r}.{nearest(name, known)}")
    made, plan, folder = open_study(
        study or new_name(str(settings.get("model", "study"))),
        storage,
        given,
        space or {},
        layered(settings),
        settings,
        runtime.choose_backend(),
    )
    module = None if data is None else as_datamodule(data)
    return run(made, plan, folder, module, verbose=verbose)


def run(
    study: optuna.Study,
    plan: Plan,
    folder: Path,
    data: DataModule | None = None,
    *,
    console: Any = None,
    verbose: bool = True,
) -> optuna.Study:
    """Work on a study in this process until it has its trials; returns it."""
    study.sampler, study.pruner = make_sampler(plan), make_pruner(plan)
    display = Display(study, plan, console or screen.console(quiet=not verbose))
    runner = TrialRunner(plan, data, display.refresh)
    with quiet(), display:
        Worker(study, plan, folder, runner).work(display.trial_ended, errors=(TooLarge,))
    return study


def new_name(model: str) -> str:
    """Return a name that no study has yet."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{model.partition(':')[0]}"
    names = (f"{stamp}-{n}" if n > 1 else stamp for n in range(1, 10**6))
    return next(name for name in names if not (STUDIES / name).exists())
