"""The result as pictures: speeds with their spread, and accuracy against training time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.cells import CONTESTANTS, pool
from bench.tables import fit_rate, is_synthetic
from fmnist_keras3.evaluation import plots

BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY = plots.RUN_COLOURS
COLOURS = dict(zip(CONTESTANTS, (BLUE, SKY, ORANGE, GREY, GREEN, PINK, AMBER), strict=True))


def _subtitle(result: dict[str, Any]) -> str:
    machine = result["hardware"]
    return f"batch 128, float32 unless named; {machine['processor']}, " + (
        f"{machine['cores']} cores; {result['date'][:10]}"
    )


def speeds(result: dict[str, Any], path: Path) -> Path:
    """Draw images/s of every cell, a panel a model: medians as bars, quartiles as whiskers."""
    rows = pool(result["cells"])
    models = list(dict.fromkeys(row.work for row in rows))
    most = max(sum(row.work == model for row in rows) for model in models)
    size = (5.6 * len(models), 1.1 + 0.42 * most)
    title = "Training speed, images a second"
    with plots._figure(path, size, title, _subtitle(result), is_synthetic(result)) as (_, body):
        for axes, model in zip(np.atleast_1d(body.subplots(1, len(models))), models, strict=True):
            bars = [row for row in rows if row.work == model]
            top = max((row.rate(75) for row in bars if row), default=1.0)
            for place, row in enumerate(bars):
                if not row:
                    axes.text(0, place, " failed", va="center", color=plots.ORANGE)
                    continue
                rate, low, high = (row.rate(p) for p in (50, 25, 75))
                axes.barh(place, rate, 0.68, color=COLOURS[row.contestant])
                spread = [[rate - low], [high - rate]]
                axes.errorbar(rate, place, xerr=spread, color=plots.BLACK, lw=1.2, capsize=3)
                ratio = rate / fit_rate(row, rows)
                times = f", {ratio:.2f}x fit" if row.contestant != "fit" and ratio == ratio else ""
                axes.text(high + 0.02 * top, place, f"{rate:,.0f}{times}", va="center", fontsize=9)
            axes.set_yticks(range(len(bars)), [row.name for row in bars])
            axes.tick_params(axis="y", labelcolor=plots.BLACK)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.set(xlim=(0, 1.42 * top), ylim=(len(bars) - 0.5, -0.5))
            axes.set_title(model, pad=8)
            axes.grid(visible=False, axis="y")
    return path


def accuracies(result: dict[str, Any], path: Path) -> Path:
    """Draw validation accuracy against training time, a panel a model and backend.

    The time (s) is the mean over the rounds, from the call of the training, with compilation and
    warm-up epoch, without validation.
    """
    rows = [row for row in pool(result["cells"]) if row]
    models = list(dict.fromkeys(row.work for row in rows))
    backends = list(dict.fromkeys(row.backend for row in rows))
    size = (3.9 * len(backends) + 1, 2.5 * len(models) + 0.6)
    title = "Validation accuracy against training time"
    with plots._figure(path, size, title, _subtitle(result), is_synthetic(result)) as (head, body):
        lines: dict[str, Any] = {}
        grid: Any = body.subplots(
            len(models), len(backends), squeeze=False, sharex="row", sharey="row"
        )
        for i, model in enumerate(models):
            for j, backend in enumerate(backends):
                axes = grid[i][j]
                axes.set_title(f"{model}, {backend}", pad=8)
                axes.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
                for row in rows:
                    if (row.work, row.backend) == (model, backend):
                        points = [
                            np.mean([[epoch[key] for epoch in r["epochs"]] for r in row.results], 0)
                            for key in ("elapsed", "accuracy")
                        ]
                        style: Any = {"color": COLOURS[row.contestant], "marker": "o"}
                        lines[row.contestant] = axes.plot(*points, label=row.contestant, **style)[0]
                axes.set(xlabel="seconds", xlim=(0, None))
        place: Any = {"loc": "upper right", "borderaxespad": 0.9}
        head.legend(handles=list(lines.values()), ncols=len(lines), **place)
    return path
