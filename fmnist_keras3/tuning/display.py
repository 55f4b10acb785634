"""Shows a study while it goes on: a live table where somebody looks, else a line a trial."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fmnist_keras3.evaluation.report import duration
from fmnist_keras3.ground import screen
from fmnist_keras3.tuning.plan import OBJECTIVES, Plan
from fmnist_keras3.tuning.study import counted

ROWS = 12  # of the live table
REFRESH = 0.5  # seconds between two looks at the storage
STATES = {
    TrialState.COMPLETE: ("complete", "green"),
    TrialState.PRUNED: ("pruned", "yellow"),
    TrialState.RUNNING: ("running", "bold"),
    TrialState.WAITING: ("waiting", "dim"),
    TrialState.FAIL: ("failed", "red"),
}


def number(value: Any, digits: int = 4) -> str:
    """Return a value of a parameter or an objective as a person reads it."""
    if isinstance(value, float):
        text = f"{value:.{digits}g}"
        return text if "e" in text or abs(value) >= 1e5 else f"{float(text):g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def objective_text(name: str, value: float | None) -> str:
    """Return the value of an objective with its digits, or a dash."""
    if value is None:
        return "-"
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:.4f}" if name in ("accuracy", "loss") else f"{value:,.0f}"


def state_of(trial: FrozenTrial) -> tuple[str, str]:
    """Return how a trial stands, in words, and its style."""
    text, style = STATES[trial.state]
    reason = trial.user_attrs.get("reason", "")
    if trial.state.is_finished() and reason in ("diverged", "out of memory"):
        text, style = reason, "red"
    return text, style


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return how long a trial has taken until now; None before it began."""
    if trial.datetime_start is None:
        return None
    return ((trial.datetime_complete or datetime.now()) - trial.datetime_start).total_seconds()


def best_of(study: Any, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best trial, of two objectives the Pareto front, best of the first one first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    worst_first = study.directions[0] == StudyDirection.MAXIMIZE
    front = study.best_trials if len(study.directions) > 1 else complete
    ranked = sorted(front, key=lambda t: -t.values[0] if worst_first else t.values[0])
    return ranked if len(study.directions) > 1 else ranked[:1]


def trials_table(plan: Plan, trials: list[FrozenTrial], best: list[FrozenTrial]) -> Any:
    """Return a table of trials, those that are best marked."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for name in ("trial", *plan.objectives, *plan.space, "state", "time"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    marked = {trial.number for trial in best}
    for trial in trials:
        at = trial.number
        values = trial.values or [None] * len(plan.objectives)
        if trial.state == TrialState.RUNNING and trial.intermediate_values:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        cells = [f"{'★ ' * (at in marked)}{at}"]
        cells += [objective_text(n, v) for n, v in zip(plan.objectives, values, strict=True)]
        cells += [number(trial.params[n], 3) if n in trial.params else "" for n in plan.space]
        state, style = state_of(trial)
        cells += [screen.styled((state, style)), duration(seconds_of(trial))]
        table.add_row(*cells, style="bold" if at in marked else "")
    return table


class Display:
    """Shows the ``study`` on ``console``; a context, whose `refresh` may be called at any time."""

    def __init__(self, study: Any, plan: Plan, console: Any = None, workers: int = 1) -> None:
        self._study, self._plan, self._workers = study, plan, workers
        self.console: Any = console or screen.console()
        self._live: Any = None
        self._started, self._looked = time.monotonic(), 0.0
        self._printed: set[int] = set()
        self._before = 0

    def __enter__(self) -> Display:
        done = [t.number for t in counted(self._study) if t.state.is_finished()]
        self._printed, self._before = set(done), len(done)
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def trial_ended(self, study: Any = None, trial: Any = None) -> None:
        """Refresh at once, and at the next trial's begin; a callback of `Study.optimize`."""
        self._looked = 0.0
        self.refresh()
        self._looked = 0.0

    def refresh(self) -> None:
        """Show how the study stands, unless that was done a moment ago."""
        if time.monotonic() - self._looked < REFRESH:
            return
        trials = counted(self._study)
        best = best_of(self._study, trials)
        if self._live is not None:
            shown = [t for t in trials if t.state != TrialState.WAITING][-ROWS:]
            shown = sorted(
                {t.number: t for t in (*best[:3], *shown)}.values(), key=lambda t: t.number
            )
            from rich.console import Group

            table = trials_table(self._plan, shown, best)
            self._live.update(Group(table, "", self._line(trials, best)), refresh=True)
        else:
            for trial in trials:
                if trial.state.is_finished() and trial.number not in self._printed:
                    self._printed.add(trial.number)
                    self._print(trial, trials, best)
        self._looked = time.monotonic()

    def _print(self, trial: FrozenTrial, trials: list[FrozenTrial], best: Any) -> None:
        names, values = self._plan.objectives, trial.values or ()
        parts = [f"trial {trial.number:>3}", f"{state_of(trial)[0]:8}"]
        parts += [f"{n} {objective_text(n, v)}" for n, v in zip(names, values, strict=False)]
        parts += [f"{name}={number(value, 3)}" for name, value in trial.params.items()]
        parts.append(duration(seconds_of(trial)))
        self.console.print("  ".join(parts), "|", self._line(trials, best), soft_wrap=True)

    def _line(self, trials: list[FrozenTrial], best: list[FrozenTrial]) -> Any:
        """Return the best so far, how many trials there are, and the time left."""
        plan, done = self._plan, [trial for trial in trials if trial.state.is_finished()]
        parts: list[Any] = []
        if best:
            values = [
                f"{OBJECTIVES[n][1]} {objective_text(n, v)}"
                for n, v in zip(plan.objectives, best[0].values, strict=True)
            ]
            what = f"front of {len(best)}, first" if len(plan.objectives) > 1 else "best"
            parts += [f"{what} trial {best[0].number}: ", (", ".join(values), "bold"), "; "]
        parts.append(f"{len(done)} of {max(plan.most, len(trials))} trials")
        if pruned := sum(trial.state == TrialState.PRUNED for trial in done):
            parts.append(f" ({pruned} pruned)")
        since = time.monotonic() - self._started
        if (fresh := len(done) - self._before) > 0 and len(done) < plan.most:
            left = since / fresh * (plan.most - len(done))
            if plan.timeout is not None:
                left = min(left, max(0.0, plan.timeout - since))
            parts.append(f", {duration(left)} left")
        return screen.styled(*parts)
