"""The result as a table: in the terminal, in Markdown, and two results compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cells import Row, pool

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "model", "backend", "contestant", "images/s", "quartiles", "x fit", "x best other",
    "compile s", "first step s", "MB", "parameters", "accuracy", "loss",
)  # fmt: skip
OUTSIDE = (
    "model", "backend", "contestant", "evaluation, images/s", "x fit", "prediction, images/s",
    "x fit",
)  # fmt: skip
LEFT = 3  # columns of text, at the left; the others are numbers
SYNTHETIC = "SYNTHETIC DATA: generated garments, not Fashion-MNIST; accuracies mean nothing."
LOSS_SPREAD = 0.2  # of the median; losses further off are not the same work
RESAMPLES = 4000
Cells = list[list[str]]


def is_synthetic(result: dict[str, Any]) -> bool:
    """Tell whether a result was measured on generated garments."""
    return result["dataset"]["name"] == "synthetic"


def of_same_work(contestant: str, row: Row, rows: list[Row]) -> Row:
    """Return the row of ``contestant`` on the same backend and model; an empty one if none."""
    key = (contestant, row.backend, row.work)
    found = (r for r in rows if (r.contestant, r.backend, r.work) == key)
    return next(found, Row(*key))


def fit_rate(row: Row, rows: list[Row]) -> float:
    """Return images/s of `Model.fit` on the same backend and model; NaN if there is none."""
    return of_same_work("fit", row, rows).rate()


def best_other(work: str, rows: list[Row]) -> float:
    """Return images/s of the fastest contestant that is not ours; NaN if there is none."""
    return max((r.rate() for r in rows if r.work == work and not r.ours and r), default=math.nan)


def cells_of(rows: list[Row]) -> Cells:
    """Return the table's cells as text, in the order of `COLUMNS`."""
    return [
        [
            row.work,
            row.backend,
            row.contestant,
            _number(row.rate(), ",.0f") if row else "failed",
            f"{row.rate(25):,.0f} to {row.rate(75):,.0f}" if row else "-",
            _number(row.rate() / fit_rate(row, rows), ".2f"),
            _number(row.rate() / best_other(row.work, rows), ".2f"),
            _number(row.median("compile_seconds"), ".1f"),
            _number(row.median("first_step"), ".1f"),
            _number(row.median("peak_memory_mb"), ",.0f"),
            _number(row.median("parameters"), ",.0f"),
            _number(100 * row.final("accuracy"), ".1f", " %"),
            _number(row.final("loss"), ".3f"),
        ]
        for row in rows
    ]


def outside_of(rows: list[Row]) -> Cells:
    """Return the cells of the table of evaluation and prediction, in the order of `OUTSIDE`."""
    cells = []
    for row in rows:
        fit = of_same_work("fit", row, rows)
        if math.isfinite(row.outside("evaluate")):
            figures = [
                text
                for what in ("evaluate", "predict")
                for text in (
                    _number(row.outside(what), ",.0f"),
                    _number(row.outside(what) / fit.outside(what), ".2f"),
                )
            ]
            cells.append([row.work, row.backend, row.contestant, *figures])
    return cells


def overheads(rows: list[Row]) -> list[str]:
    """Return a line for each Trainer that was measured beside its bare engine."""
    lines = []
    for row in rows:
        bare = of_same_work("engine", row, rows).rate()
        if row.contestant == "trainer" and math.isfinite(row.rate() / bare):
            cost = 100 * (bare / row.rate() - 1)
            lines.append(f"Overhead of {row.work} {row.name} over the bare engine: {cost:+.1f} %.")
    return lines


def notes(result: dict[str, Any]) -> list[str]:
    """Return what must be said beside the figures: data, method, machine, failures, doubts."""
    settings, data, machine = result["settings"], result["dataset"], result["hardware"]
    rows = pool(result["cells"])
    lines = [SYNTHETIC] if is_synthetic(result) else []
    lines += [
        f"Images/s: median and quartiles of {settings['epochs']} epochs in each of "
        f"{settings['rounds']} rounds, each in a new process; warm-up epoch and validation left "
        "out, device waited for. The rounds are interleaved.",
        "x fit: against Model.fit on the same backend; x best other: against the fastest that is "
        "not ours. Ratios count; absolute figures depend on the machine and its load.",
        "Model.fit and the peers run in a plain user's environment: without the XLA flag that our "
        "Trainer sets for its users, and with plain Keras layers. Nobody has a compilation cache.",
        "Compile: from the call of the training to the end of its first step; first step: from the "
        "start of the process. Accuracy and loss: on the validation images, after the last epoch.",
        f"{data['train']:,} training and {data['validation']:,} validation images of "
        f"{data['name']}, Adam 1e-3, no augmentation; batch 128 and float32 unless named.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + f"; {result['date']}.",
    ]
    lines += overheads(rows)
    for row in rows:
        for error in dict.fromkeys(row.errors):
            of = row.errors.count(error), len(row.errors) + len(row.results)
            lines.append(f"FAILED {row.work} {row.name}, {of[0]} of {of[1]}: {error}")
    return lines + doubts(rows)


def doubts(rows: list[Row]) -> list[str]:
    """Return a warning for each model whose contestants do not seem to do the same work."""
    lines = []
    for work in dict.fromkeys(row.work for row in rows):
        good = [row for row in rows if row.work == work and row]
        if len({row.median("parameters") for row in good}) > 1:
            lines.append(f"NOT THE SAME WORK: {work} has not the same parameters everywhere.")
        middle = np.median([row.final("loss") for row in good]) if good else 0.0
        for row in good:
            if not abs(row.final("loss") - middle) <= LOSS_SPREAD * middle:
                loss = f"{row.final('loss'):.3f}, the median is {middle:.3f}"
                lines.append(f"NOT THE SAME WORK? The loss of {work} {row.name} is {loss}.")
    return lines


def rich_table(title: str, columns: tuple[str, ...], cells: Cells, lines: list[str]) -> Table:
    """Return a table for the terminal; a line falls between models."""
    from rich.markup import escape
    from rich.table import Table

    caption = escape("\n".join(lines))
    table = Table(title=title, caption=caption, caption_justify="left", caption_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < LEFT else "right", no_wrap=i < LEFT)
    for row, after in zip(cells, [*cells[1:], None], strict=True):
        style = "red" if "failed" in row else None
        table.add_row(*row, style=style, end_section=after is not None and after[0] != row[0])
    return table


def markdown(result: dict[str, Any]) -> str:
    """Return the whole result as Markdown: the table and its notes."""
    rows = pool(result["cells"])
    said = [f"- {line}" for line in notes(result)]
    loud = [f"**{SYNTHETIC}**", ""] if is_synthetic(result) else []
    lines = [*loud, *markdown_table(COLUMNS, cells_of(rows)), ""]
    if outside := outside_of(rows):
        lines += [*markdown_table(OUTSIDE, outside), ""]
    return "\n".join([*lines, *said, "", f"`{result['command']}`", ""])


def markdown_table(columns: tuple[str, ...], cells: Cells) -> list[str]:
    """Return the lines of a table in Markdown."""
    head = [columns, ["---" if i < LEFT else "---:" for i in range(len(columns))]]
    return ["| " + " | ".join(row) + " |" for row in [*head, *cells]]


IN_README = (
    "model",
    "backend",
    "contestant",
    "images/s",
    "quartiles",
    "x fit",
    "x best other",
)


def readme(result: dict[str, Any], name: str) -> str:
    """Return what the README shows of the result in the file ``name``: a short table, its source.

    A test holds the README to it.
    """
    places = [COLUMNS.index(column) for column in IN_README]
    cells = [[row[place] for place in places] for row in cells_of(pool(result["cells"]))]
    machine, versions = result["hardware"], result["versions"]
    about = f"{machine['processor']}, {machine['cores']} cores; " + ", ".join(
        f"{key} {versions[key]}" for key in ("keras", "jax", "tensorflow") if key in versions
    )
    return "\n".join(
        [
            *markdown_table(IN_README, cells),
            "",
            f"{about}; {result['date'][:10]}; `{result['command']}`. "
            f"[Everything measured]({name}.md), [JSON]({name}.json).",
        ]
    )


def bootstrap_ratio(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, float, float]:
    """Return median(b) / median(a) and its 95 % interval by bootstrap.

    ``a``, ``b``: images/s of the epochs, one array a round. Rounds are drawn first and epochs
    within them, because epochs of one process are alike.
    """
    rng = np.random.default_rng(0)

    def medians(rounds: list[np.ndarray]) -> np.ndarray:
        rates = np.stack(rounds)
        chosen = rng.integers(len(rates), size=(RESAMPLES, len(rates), 1))
        epochs = rng.integers(rates.shape[1], size=(RESAMPLES, *rates.shape))
        return np.median(rates[chosen, epochs], axis=(1, 2))

    low, high = np.percentile(medians(b) / medians(a), (2.5, 97.5))
    ratio = float(np.median(np.concatenate(b)) / np.median(np.concatenate(a)))
    return ratio, float(low), float(high)


COMPARED = (
    "model", "backend", "contestant", "images/s A", "images/s B", "B / A", "95 %", "x fit, B / A",
    "verdict",
)  # fmt: skip


def compare(a: dict[str, Any], b: dict[str, Any]) -> tuple[Cells, list[str]]:
    """Return the cells of the comparison of two results, and what must be said beside it."""
    rows_a, rows_b = pool(a["cells"]), pool(b["cells"])
    named = {(row.work, row.backend, row.contestant): row for row in rows_b}
    cells = []
    for row in rows_a:
        key = (row.work, row.backend, row.contestant)
        other = named.pop(key, None)
        if not row or not other:
            which = " and ".join(x for x, r in (("A", row), ("B", other)) if not r)
            cells.append([*key, *["-"] * 5, f"no figure in {which}"])
            continue
        ratio, low, high = bootstrap_ratio(row.rates, other.rates)
        verdict = "slower" if high < 1 else "faster" if low > 1 else "unclear"
        against = ratio * fit_rate(row, rows_a) / fit_rate(other, rows_b)
        rates = [_number(r.rate(), ",.0f") for r in (row, other)]
        interval = f"{low:.2f} to {high:.2f}"
        cells.append([*key, *rates, f"{ratio:.2f}", interval, _number(against, ".2f"), verdict])
    cells += [[*key, *["-"] * 5, "no figure in A"] for key in named]
    lines = [
        f"{key} differ: A {a.get(key)}, B {b.get(key)}"
        for key in ("hardware", "versions", "dataset", "settings")
        if a.get(key) != b.get(key)
    ]
    lines.append("x fit, B / A: the change of the ratio to Model.fit, which a slow day leaves be.")
    return cells, lines


def _number(value: float, how: str, unit: str = "") -> str:
    return f"{value:{how}}{unit}" if math.isfinite(value) else "-"
