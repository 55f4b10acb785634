"""What a study leaves: best.yaml, its plots, and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from fmnist_keras3.evaluation import report
from fmnist_keras3.ground.files import save, write_errors
from fmnist_keras3.tuning import plots
from fmnist_keras3.tuning.display import best_of, number, objective_text, seconds_of, state_of
from fmnist_keras3.tuning.plan import OBJECTIVES, Plan
from fmnist_keras3.tuning.space import Param
from fmnist_keras3.tuning.study import counted, quiet

BEST, PAGE, TOP = "best.yaml", "report.html", 10


def spread(param: Param, trials: Sequence[FrozenTrial]) -> str:
    """Return the values of a parameter in some trials: from the least to the greatest, or shares.

    Example: ``spread(space["lr"], best_ten)`` is "0.0011 to 0.0042"
    """
    values = [trial.params[param.name] for trial in trials]
    if not param.choices:
        return f"{number(min(values), 3)} to {number(max(values), 3)}"
    shares = {value: values.count(value) for value in sorted(set(values), key=values.count)[::-1]}
    return ", ".join(f"{value} ({count}x)" for value, count in shares.items())


def ranked(plan: Plan, study: Any, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the ten best trials by the first objective; of two objectives the Pareto front."""
    if len(plan.objectives) > 1:
        return best_of(study, list(trials))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1 if plan.directions[0] == "maximize" else 1
    return sorted(complete, key=lambda trial: sign * trial.values[0])[:TOP]


def write_results(study: Any, plan: Plan, folder: Path, synthetic: bool) -> FrozenTrial | None:
    """Write best.yaml, plots and report.html into ``folder``; returns the best trial, if any."""
    trials = counted(study)
    top = ranked(plan, study, trials)
    best = top[0] if top else None
    with write_errors(folder / "plots"):
        (folder / "plots").mkdir(exist_ok=True)
    with quiet():
        paths, importances = plots.draw(study, plan, trials, folder / "plots", synthetic)
    if best is not None:
        save(folder / BEST, _best_yaml(plan, best, study.study_name).encode())
    page = report.render(
        Path(__file__).parent / "study.html",
        title=study.study_name,
        plan=plan,
        synthetic=synthetic,
        best=best,
        top=top,
        trials=trials,
        tiles=_tiles(plan, trials, best),
        rows=[
            (name, number(best.params[name]), spread(param, top), importances.get(name))
            for name, param in plan.space.items()
        ]
        if best is not None
        else [],
        settings={k: v for k, v in plan.settings.items() if k not in plan.space},
        plots={name: (plots.PLOTS[name], report.data_uri(path)) for name, path in paths.items()},
        table=[_row(plan, trial, top) for trial in trials],
    )
    save(folder / PAGE, page)
    return best


def _best_yaml(plan: Plan, best: FrozenTrial, study: str) -> str:
    import yaml

    values = [
        f"{OBJECTIVES[name][1]} {objective_text(name, value)}"
        for name, value in zip(plan.objectives, best.values, strict=True)
    ]
    seeds = f", the mean of {plan.seeds} seeds" if plan.seeds > 1 else ""
    head = f"# Trial {best.number} of the study {study}: {', '.join(values)}{seeds}.\n"
    head += f"# Tuned: {', '.join(plan.space)}. To train with it: fmnist train --config {BEST}\n"
    return head + yaml.safe_dump(plan.best(best.params).to_dict(), sort_keys=False)


def _tiles(plan: Plan, trials: list[FrozenTrial], best: FrozenTrial | None) -> list[Any]:
    tiles = []
    for i, name in enumerate(plan.objectives):
        value = None if best is None else best.values[i]
        shown = report.percent(value) if name == "accuracy" else objective_text(name, value)
        note = f"trial {best.number}" if best is not None else "no complete trial"
        tiles.append((f"Best {OBJECTIVES[name][1]}", shown, note))
    done = [trial for trial in trials if trial.state.is_finished()]
    pruned = sum(trial.state == TrialState.PRUNED for trial in done)
    tiles.append(("Trials", str(len(done)), f"{pruned} pruned"))
    seconds = sum(seconds_of(trial) or 0 for trial in done)
    tiles.append(("Time of all trials", report.duration(seconds), f"{plan.seeds} seed(s) each"))
    return tiles


def _row(plan: Plan, trial: FrozenTrial, top: list[FrozenTrial]) -> dict[str, Any]:
    values = trial.values or [None] * len(plan.objectives)
    return {
        "number": trial.number,
        "best": bool(top) and trial.number == top[0].number,
        "cells": [objective_text(n, v) for n, v in zip(plan.objectives, values, strict=True)],
        "params": [number(trial.params[n]) if n in trial.params else "" for n in plan.space],
        "state": state_of(trial)[0],
        "time": report.duration(seconds_of(trial)),
    }
