"""The plots of a study, each drawn to one PNG file, in the style of those of a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator
from optuna.trial import FrozenTrial, TrialState

from fmnist_keras3.evaluation.figure import BLUE, GREEN, GREY, ORANGE, PALE, figure, sentence
from fmnist_keras3.tuning.display import best_of, number, objective_text
from fmnist_keras3.tuning.plan import OBJECTIVES, Plan
from fmnist_keras3.tuning.space import Param

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS = {
    "history": "History",
    "front": "Pareto front",
    "importance": "Importance of the parameters",
    "slices": "Values by parameter",
    "parallel": "Parallel coordinates",
}
COLOURS = "viridis"  # told apart with any colour vision, and in grey print
FEW = "Two complete trials or more are needed."


def draw(study: Any, plan: Plan, trials: list[FrozenTrial], folder: Path, synthetic: bool) -> Any:
    """Draw all plots of a study into ``folder``; returns their paths by name, and importances."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    importances = _importances(study, plan, complete)
    drawn = {
        "history": (_history, (9, 3.6)),
        "importance": (_importance, (9, 0.8 + 0.36 * len(plan.space))),
        "slices": (_slices, (9, 2.8 * _grid(plan)[0])),
        "parallel": (_parallel, (9, 3.8)),
    }
    if len(plan.objectives) > 1:
        drawn["front"] = (_front, (9, 4.2))
    paths = {}
    for name, (plot, size) in drawn.items():
        paths[name] = folder / f"{name}.png"
        subtitle = _subtitle(plan, trials, complete)
        with figure(paths[name], size, PLOTS[name], subtitle, synthetic) as (_, body):
            if len(complete) < 2 or (name == "importance" and not importances):
                sentence(body, FEW)
            else:
                plot(body, study, plan, trials, complete, importances)
    return {name: paths[name] for name in PLOTS if name in paths}, importances


def _subtitle(plan: Plan, trials: Sequence[Any], complete: Sequence[Any]) -> str:
    what = OBJECTIVES[plan.objectives[0]][1]
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    more = f", {pruned} pruned" if pruned else ""
    return f"{what}; {len(complete)} complete trials{more}"


def _importances(study: Any, plan: Plan, complete: list[FrozenTrial]) -> dict[str, float]:
    """Return the importances of the first objective, in falling order; none of few trials."""
    from optuna.importance import get_param_importances

    if len({trial.values[0] for trial in complete}) < 2:
        return {}
    if len(plan.objectives) == 1:
        return dict(get_param_importances(study))
    sign = -1 if plan.directions[0] == "maximize" else 1  # the lower a target, the better
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PedAnova", UserWarning)  # which says just that
        return dict(get_param_importances(study, target=lambda trial: sign * trial.values[0]))


def _axis(axis: Any, name: str) -> None:
    if name == "accuracy":
        axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")


def _limits(axes: Axes, plan: Plan, values: list[float]) -> None:
    """Let what diverged not press the good values flat: they are the upper three quarters."""
    maximize = plan.directions[0] == "maximize"
    good, worst = (max, min) if maximize else (min, max)
    middle = float(np.quantile(values, 0.25 if maximize else 0.75))
    best = good(values)
    height = max(abs(best - middle), 1e-9)
    sign = 1 if maximize else -1
    far = best - sign * 2.2 * height
    end = worst(values) if sign * (worst(values) - far) > 0 else far
    pad = 0.06 * abs(best - end) or 0.01
    axes.set_ylim(*sorted((best + sign * 1.5 * pad, end - sign * pad)))


def _history(body, study, plan, trials, complete, importances):
    axes = body.add_subplot()
    values = [trial.values[0] for trial in complete]
    numbers = [trial.number for trial in complete]
    best = np.maximum if plan.directions[0] == "maximize" else np.minimum
    axes.plot(numbers, values, "o", color=BLUE, alpha=0.7, label="complete")
    axes.step(numbers, best.accumulate(values), where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel=OBJECTIVES[plan.objectives[0]][1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    _axis(axes.yaxis, plan.objectives[0])
    _limits(axes, plan, values)
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.values]
    if pruned:
        last = np.clip([t.values[0] for t in pruned], *axes.get_ylim())
        style = {"color": PALE, "clip_on": False, "label": "pruned, its last epoch"}
        axes.plot([t.number for t in pruned], last, "x", **style)
    body.legend(loc="outside upper right", ncols=3, borderaxespad=1)


def _importance(body, study, plan, trials, complete, importances):
    axes = body.add_subplot()
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt=lambda share: f"{100 * share:.0f} %", padding=4, color=GREY)
    axes.set(xlim=(0, 1.08 * max(importances.values())))
    axes.xaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
    axes.grid(visible=False, axis="y")


def _positions(param: Param, trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Return where the values of trials lie on an axis: choices by their order."""
    values = [trial.params[param.name] for trial in trials]
    return np.array([param.choices.index(v) for v in values] if param.choices else values, float)


def _grid(plan: Plan) -> tuple[int, int]:
    """Return the rows and columns of the slices, with few places left empty."""
    count = len(plan.space)
    columns = 2 if count == 4 else min(3, count)
    return -(-count // columns), columns


def _slices(body, study, plan, trials, complete, importances):
    rows, columns = _grid(plan)
    panels = list(body.subplots(rows, columns, squeeze=False, sharey=True).flat)
    values = [trial.values[0] for trial in complete]
    best = best_of(study, complete)[0]
    dots = None
    for axes, param in zip(panels, plan.space.values(), strict=False):
        at = _positions(param, complete)
        rng = np.random.default_rng(0)
        x = at + rng.uniform(-0.15, 0.15, len(at)) if param.choices else at
        numbers = [trial.number for trial in complete]
        dots = axes.scatter(x, values, c=numbers, cmap=COLOURS, s=22, alpha=0.85, linewidth=0)
        axes.plot(
            x[complete.index(best)], best.values[0], "o", mfc="none", mec=ORANGE, mew=2, ms=10
        )
        axes.set_xlabel(param.name)
        _scale(axes, param)
        _axis(axes.yaxis, plan.objectives[0])
        _limits(axes, plan, values)
    for axes in panels[len(plan.space) :]:
        axes.set_visible(False)
    body.supylabel(OBJECTIVES[plan.objectives[0]][1], fontsize=9.5, color=GREY)
    body.colorbar(dots, ax=body.axes, label="trial", pad=0.02, fraction=0.03)


def _scale(axes: Axes, param: Param) -> None:
    if param.choices:
        labels = [str(choice) for choice in param.choices]
        axes.set_xticks(range(len(labels)), labels, rotation=20 if max(map(len, labels)) > 9 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return
    if param.log:
        axes.set_xscale("log")
        if param.high < 100 * param.low:  # powers of ten alone would be one tick or two
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.06)


def _parallel(body, study, plan, trials, complete, importances):
    maximize = plan.directions[0] == "maximize"
    values = np.array([trial.values[0] for trial in complete])
    params = list(plan.space.values())
    axes = body.add_subplot()
    columns = [_unit(param, complete) for param in params]
    lowest = float(np.quantile(values, 0.25 if maximize else 0.75))  # see _limits
    bounds: Any = sorted((lowest, float(values.max() if maximize else values.min())))
    shade = np.clip(values, *bounds)
    span = np.ptp(shade) or 1.0
    columns.append((shade - shade.min()) / span)
    paths = np.stack(columns, axis=1)
    order = np.argsort(values if maximize else -values)  # the best on top
    segments = [np.column_stack([range(paths.shape[1]), path]) for path in paths[order]]
    colours = COLOURS if maximize else f"{COLOURS}_r"
    lines = LineCollection(segments, array=shade[order], cmap=colours, alpha=0.75, linewidths=1.4)
    axes.add_collection(lines)
    axes.set(xlim=(-0.15, len(params) + 0.15), ylim=(-0.05, 1.05), yticks=[])
    axes.set_xticks(range(len(params) + 1), [*plan.space, OBJECTIVES[plan.objectives[0]][1]])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    ends = [_ends(param) for param in params]
    name = plan.objectives[0]
    ends.append([(0.0, objective_text(name, float(shade.min()))),
                 (1.0, objective_text(name, float(shade.max())))])  # fmt: skip
    for x, marks in enumerate(ends):
        axes.axvline(x, color=PALE, linewidth=1)
        for y, text in marks:
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
            axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center",
                          fontsize=8.5, bbox=box)  # fmt: skip


def _unit(param: Param, trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Return where values lie on an axis from 0 to 1."""
    at = _positions(param, trials)
    if param.choices:
        return at / (len(param.choices) - 1)
    low, high = param.low, param.high
    if param.log:
        at, low, high = np.log(at), np.log(low), np.log(high)
    return (at - low) / (high - low)


def _ends(param: Param) -> list[tuple[float, str]]:
    if param.choices:
        last = len(param.choices) - 1
        return [(i / last, str(choice)) for i, choice in enumerate(param.choices)]
    return [(0.0, number(param.low, 3)), (1.0, number(param.high, 3))]


def _front(body, study, plan, trials, complete, importances):
    axes = body.add_subplot()
    front = best_of(study, complete)
    inside = [trial for trial in complete if trial.number not in {t.number for t in front}]
    for group, colour, label in (
        (inside, PALE, "beaten by another"),
        (front, GREEN, "Pareto front"),
    ):
        axes.plot(*zip(*[t.values for t in group], strict=True) if group else ((), ()), "o",
                  color=colour, label=label)  # fmt: skip
    for trial in front:
        axes.annotate(f"{trial.number}", trial.values, (5, 4), textcoords="offset points",
                      fontsize=8.5, color=GREY)  # fmt: skip
    first, second = plan.objectives
    axes.set(xlabel=OBJECTIVES[first][1], ylabel=OBJECTIVES[second][1])
    _axis(axes.xaxis, first)
    _axis(axes.yaxis, second)
    axes.margins(0.08)
    body.legend(loc="outside upper right", ncols=2, borderaxespad=1)
