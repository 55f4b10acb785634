"""What a study found: tables, the learning curves, and the ablation as a picture."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from bench import tables
from bench.study import FULL
from fmnist_keras3.evaluation import plots
from fmnist_keras3.evaluation.report import duration

Summaries = list[dict[str, Any]]
Stored = dict[str | None, Summaries]
TESTED = ("test_accuracy", "test_accuracy_tta")
HELD_OUT = ("validation_accuracy", "validation_accuracy_tta", "validation_loss")
COLUMNS = (
    "backend", "on", "seeds", "parameters", "epochs", "test", "with TTA", "each seed", "training",
)  # fmt: skip
PARTS = ("without", "seeds", "validation", "with TTA", "loss", "difference", "loss difference")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1); 0 for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation of shares, in per cent; "-" where a run has none.

    One value has no deviation.
    """
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return "-"
    mean, deviation = spread(known)
    return f"{100 * mean:.2f}" + f" ± {100 * deviation:.2f}" * (len(known) > 1)


def by_backend(summaries: Summaries) -> dict[str, Summaries]:
    """Return the summaries of each backend, by seed."""
    backends = sorted({s["backend"] for s in summaries})
    return {
        b: sorted((s for s in summaries if s["backend"] == b), key=lambda s: s["seed"])
        for b in backends
    }


def measured_on(summaries: Summaries) -> tuple[str, tuple[str, ...]]:
    """Return "test" or, of a study that leaves it alone, "validation", and the two accuracies."""
    if all(s.get(TESTED[0]) is not None for s in summaries):
        return "test", TESTED
    return "validation", HELD_OUT[:2]


def columns(summaries: Summaries) -> tuple[str, ...]:
    """Return `COLUMNS` with the split that was measured on."""
    split, _ = measured_on(summaries)
    return tuple(split if column == "test" else column for column in COLUMNS)


def runs_table(summaries: Summaries) -> list[list[str]]:
    """Return a row a backend, in the order of `columns`; accuracies in per cent."""
    _, names = measured_on(summaries)
    return [
        [
            backend,
            ", ".join(dict.fromkeys(map(machine, mine))),
            str(len(mine)),
            f"{mine[0]['parameters']:,}",
            str(mine[0]["epochs"]),
            *(percent([s.get(name) for s in mine]) for name in names),
            ", ".join(f"{100 * share:.2f}" for s in mine if (share := s.get(names[0]))) or "-",
            duration(statistics.median(map(training_seconds, mine))),
        ]
        for backend, mine in by_backend(summaries).items()
    ]


def machine(summary: dict[str, Any]) -> str:
    """Return what a run was trained on, in short: the GPU, or how many cores."""
    on_cpu = summary["device"] == "CPU"
    return f"{summary['hardware']['cores']} cores" if on_cpu else summary["device"]


def training_seconds(summary: dict[str, Any]) -> float:
    """Return the seconds that the epochs took, without compilation, validation and test."""
    return sum(r["seconds"] for r in summary["records"] if r["event"] == "train")


def agreement(summaries: Summaries) -> str | None:
    """Return in words how far the backends' means are apart; None for fewer than two of them."""
    split, (name, _) = measured_on(summaries)
    found = by_backend([s for s in summaries if s.get(name) is not None])
    if len(found) < 2:
        return None
    (a, first), (b, second) = list(found.items())[:2]
    ones, others = ([s[name] for s in runs] for runs in (first, second))
    shared = {s["seed"]: s[name] for s in first}
    same = [s["seed"] for s in second if shared.get(s["seed"]) == s[name]]
    far = 100 * (statistics.mean(ones) - statistics.mean(others))
    text = f"{a} (n={len(ones)}) minus {b} (n={len(others)}): {far:+.3f} points"
    if min(len(ones), len(others)) > 1:
        error = 100 * np.hypot(*(statistics.stdev(v) / len(v) ** 0.5 for v in (ones, others)))
        text += f", standard error of the difference {error:.3f}"
    seeds = f"seed{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
    equal = f"; the same {split} accuracy with {seeds}" if same else ""
    return text + equal


def paired(full: Summaries, other: Summaries, name: str) -> list[float]:
    """Return how far each run of ``other`` is above the full recipe's with the same seed."""
    base = {(s["backend"], s["seed"]): s[name] for s in full}
    keys = [(s["backend"], s["seed"]) for s in other]
    return [s[name] - base[key] for key, s in zip(keys, other, strict=True) if key in base]


def parts_table(stored: Stored) -> list[list[str]]:
    """Return a row for the full recipe and each part that was off, in the order of `PARTS`.

    Accuracies and differences, which are over pairs of the same seed, in per cent.
    """
    full = stored.get(FULL, [])
    rows = []
    for part in [p for p in (FULL, *_by_worth(stored)) if p in stored]:
        mine = stored[part]
        row = ["(the full recipe)" if part == FULL else part, str(len(mine))]
        row += [percent([s.get(name) for s in mine]) for name in HELD_OUT[:2]]
        row.append(f"{spread([s['validation_loss'] for s in mine])[0]:.4f}")
        for name, scale, digits in (("validation_accuracy", 100, 2), ("validation_loss", 1, 4)):
            apart = paired(full, mine, name)
            if part == FULL or not apart:
                row.append("-")
                continue
            mean, deviation = spread([scale * v for v in apart])
            error = f" ± {deviation / len(apart) ** 0.5:.{digits}f}" * (len(apart) > 1)
            row.append(f"{mean:+.{digits}f}{error}")
        rows.append(row)
    return rows


def _by_worth(stored: Stored) -> list[str]:
    """Return the parts, the one that costs most when it is off first."""
    full = stored.get(FULL, [])
    parts = [part for part in stored if part not in (None, FULL)]

    def worth(part: str) -> float:
        apart = paired(full, stored[part], "validation_accuracy")
        return statistics.mean(apart) if apart else 0.0

    return sorted([p for p in parts if p is not None], key=worth)


def markdown(recipe: str, about: str, stored: Stored) -> str:
    """Return what the study's folder says about itself."""
    commands: list[str] = []
    lines = [f"# {recipe}", "", f"{about[:1].upper()}{about[1:]}.", ""]
    if any(map(tables.is_synthetic, itertools.chain(*stored.values()))):
        lines += [f"**{tables.SYNTHETIC}**", ""]
    if None in stored:
        runs = stored[None]
        split, _ = measured_on(runs)
        lines += [
            f"{runs[0]['dataset']['train']:,} training images, "
            f"{runs[0]['dataset']['validation'] or 0:,} held out; {split} accuracy in per cent "
            "after the last epoch, mean ± standard deviation; time of training without "
            "compilation and test (median).",
            "",
            *tables.markdown_table(columns(runs), runs_table(runs)),
            "",
            *dict.fromkeys(map(environment, runs)),
            "",
        ]
        found = by_backend(runs)
        for backend, mine in found.items():
            command = f"python -m bench study {recipe} --backends {backend} --seeds {len(mine)}"
            commands.append(command)
        commands.append(f"# which runs, for seed {runs[0]['seed']}, {runs[0]['command']}")
        if said := agreement(runs):
            lines += [said + ".", ""]
        lines += ["![the runs](curves.png)", ""]
    if FULL in stored:
        one = stored[FULL][0]["dataset"]
        backends, seeds = (sorted({s[key] for s in stored[FULL]}) for key in ("backend", "seed"))
        commands.append(
            f"python -m bench study {recipe} --ablation --backends {' '.join(backends)} "
            f"--seeds {len(seeds)}"
        )
        commands.append(f"# the full recipe, for seed 0, {stored[FULL][0]['command']}")
        lines += [
            "## Ablation",
            "",
            f"One part off at a time; {one['train']:,} images to train on, accuracy and loss on "
            f"the {one['validation']:,} held out, never on the test set. Differences: over pairs "
            "of the same seed, ± their standard error.",
            "",
            *tables.markdown_table(PARTS, parts_table(stored)),
            "",
            "![what each part is worth](ablation.png)",
            "",
        ]
    lines += ["Made by", "", "```bash", *commands, "```", ""]
    return "\n".join(lines)


def environment(summary: dict[str, Any]) -> str:
    """Return hardware and versions of a run in a sentence."""
    hardware, versions = summary["hardware"], summary["versions"]
    packages = [
        f"{name} {versions[name]}" for name in ("keras", "jax", "tensorflow") if versions.get(name)
    ]
    device = "" if summary["device"] == "CPU" else f", {summary['device']}"
    chip = f"{hardware['processor']}, {hardware['cores']} cores{device}"
    return f"{chip}; {', '.join(packages)}."


def header(summaries: Summaries) -> dict[str, Any]:
    """Return what a recipe's header has to say of these runs: accuracies of the first backend."""
    first = next(iter(by_backend(summaries).values()))
    found: dict[str, Any] = {
        "seconds": round(statistics.median(s["total_seconds"] for s in summaries)),
        "backends": sorted({s["backend"] for s in summaries}),
    }
    for name in TESTED:
        known = [s[name] for s in first if s.get(name) is not None]
        if known:
            mean, deviation = spread(known)
            found[name] = {"mean": round(mean, 4)}
            if len(known) > 1:
                found[name]["std"] = round(deviation, 4)
            found[name]["n"] = len(known)
    return found


def curves(recipe: str, summaries: Summaries, path: Path) -> Path:
    """Draw the training accuracy of every seed over the epochs, and where the test ended."""
    first = summaries[0]
    synthetic = first["dataset"]["name"] == "synthetic"
    colours = dict(zip(by_backend(summaries), (plots.BLUE, plots.ORANGE), strict=False))
    title = f"Recipe {recipe}: {len(summaries)} runs"
    held_out = any(r["event"] == "validation" for s in summaries for r in s["records"])
    event = "validation" if held_out else "train"
    what = {
        "validation": "validation accuracy",
        "train": "training accuracy",
    }
    subtitle = f"{first['parameters']:,} parameters; a line and a dot each seed"
    with plots._figure(path, (10, 3.8), title, subtitle, synthetic) as (header, body):
        left, right = body.subplots(1, 2, width_ratios=[1.6, 1])
        handles = {}
        for summary in summaries:
            points = {r["epoch"]: r["accuracy"] for r in summary["records"] if r["event"] == event}
            colour = colours[summary["backend"]]
            dashes: Any = "-" if summary["backend"] == "jax" else (0, (4, 3))
            (line,) = left.plot(
                list(points), list(points.values()), color=colour, lw=1.3, ls=dashes, alpha=0.75
            )
            handles.setdefault(summary["backend"], line)
        left.set(title=what[event], xlabel="epoch")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
        header.legend(
            handles=list(handles.values()), labels=list(handles), ncols=2, loc="upper right",
            borderaxespad=0.9,
        )  # fmt: skip
        _dots(right, by_backend(summaries), colours)
    return path


def _dots(axes: Any, found: dict[str, Summaries], colours: Mapping[str, str]) -> None:
    """Draw the accuracy of each seed, plain and with TTA, with the mean as a stroke."""
    labels = []
    split, names = measured_on(list(itertools.chain(*found.values())))
    for column, (name, label) in enumerate(zip(names, ("plain", "with TTA"), strict=True)):
        groups = [(b, [s[name] for s in runs if s.get(name)]) for b, runs in found.items()]
        if not any(shares for _, shares in groups):
            continue
        labels.append((column, label))
        for number, (backend, shares) in enumerate(groups):
            if not shares:
                continue
            middle = column + 0.5 * (number - (len(groups) - 1) / 2) - 0.05
            spots = middle + np.linspace(-0.06, 0.06, len(shares)) * (len(shares) > 1)
            axes.plot(spots, shares, "o", color=colours[backend], ms=5, alpha=0.8)
            mean = statistics.mean(shares)
            axes.plot([middle - 0.09, middle + 0.09], [mean] * 2, color=plots.BLACK, lw=1.4)
            axes.annotate(
                f"{100 * mean:.2f}", (middle + 0.09, mean), textcoords="offset points",
                xytext=(3, 0), va="center", fontsize=9.5,
            )  # fmt: skip
    axes.set(title=f"{split} accuracy, last epoch", xlim=(-0.5, len(labels) - 0.4))
    axes.margins(y=0.18)
    axes.set_xticks([place for place, _ in labels], [label for _, label in labels])
    axes.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
    axes.grid(visible=False, axis="x")


def ablation(recipe: str, stored: Stored, path: Path) -> Path:
    """Draw what switching each part off costs in validation accuracy and loss, a dot each seed."""
    full = stored[FULL]
    parts = _by_worth(stored)
    synthetic = full[0]["dataset"]["name"] == "synthetic"
    title = f"Recipe {recipe}: what is lost without each part"
    subtitle = (
        f"on the validation split, against the full recipe with the same seed; {len(full)} runs "
        "each, the stroke is their mean"
    )
    with plots._figure(path, (10, 1.1 + 0.42 * len(parts)), title, subtitle, synthetic) as (
        _,
        body,
    ):
        panels = body.subplots(1, 2, sharey=True)
        for axes, (name, label, sign, scale) in zip(
            panels,
            (
                ("validation_accuracy", "accuracy lost, percentage points", -1, 100),
                ("validation_loss", "loss added", 1, 1),
            ),
            strict=True,
        ):
            axes.axvline(0, color=plots.GREY, lw=1)
            for row, part in enumerate(parts):
                apart = [sign * scale * v for v in paired(full, stored[part], name)]
                if not apart:
                    continue
                axes.plot(apart, [row] * len(apart), "o", color=plots.BLUE, ms=5, alpha=0.7)
                mean = statistics.mean(apart)
                axes.plot([mean] * 2, [row - 0.28, row + 0.28], color=plots.BLACK, lw=1.6)
            axes.set_title(label, pad=8)
            axes.set(ylim=(len(parts) - 0.5, -0.5))
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(parts)), parts)
        panels[0].tick_params(axis="y", labelcolor=plots.BLACK)
    return path


IN_README = (
    "recipe", "backend", "on", "seeds", "parameters", "epochs", "test", "with TTA", "training",
)  # fmt: skip


def readme(recipes: Mapping[str, Summaries], folder: str) -> str:
    """Return the README's table of what the recipes reached in the test; links into ``folder``.

    A test holds the README to it.
    """
    rows = []
    for recipe, summaries in recipes.items():
        if measured_on(summaries)[0] != "test":
            continue
        for row in runs_table(summaries):
            named: dict[str, str] = dict(zip(COLUMNS, row, strict=True))
            named["recipe"] = f"[`{recipe}`]({folder}/{recipe}/README.md)"
            rows.append([named[column] for column in IN_README])
    return "\n".join(tables.markdown_table(IN_README, rows))
