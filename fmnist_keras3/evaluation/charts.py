"""Charts of the report as SVG inside of the page, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 27, 26, 40
COLOURS, DASHES = 7, 4  # of style.html
MARKED = 40  # so many points have markers


@dataclass(frozen=True)
class Line:
    """A line through ``points``, y by x; not finite values leave gaps.

    ``colour`` and ``dash`` are numbers of the page's own; ``dot``: markers alone.
    """

    label: str
    points: Mapping[int, float]
    colour: int = 0
    dash: int = 0
    dot: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing with its ``title``, a line of ``text`` on it, and what its ``lines`` are."""

    title: str
    svg: Markup
    lines: Sequence[Line]
    text: str = ""


def percent(value: float) -> str:
    """Return a share as a tick has it."""
    return f"{round(100 * value, 6):g} %"


def number(value: float) -> str:
    """Return a number as a tick has it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 9):g}"


def lines(
    title: str,
    drawn: Sequence[Line],
    show: Callable[[float], str] = number,
    mark: tuple[float, str] | None = None,
    text: str = "",
    x: str = "epoch",
) -> Chart:
    """Draw lines over whole numbers ``x``; ``mark`` is one of them, with words."""
    from matplotlib.ticker import MaxNLocator

    ends = sorted(at for line in drawn for at in line.points)
    values = [v for line in drawn for v in line.points.values() if math.isfinite(v)]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high), 1e-9) * 0.05
    frame = _Frame((ends[0] - 0.3, ends[-1] + 0.3), (low - room, high + room))
    ticks = MaxNLocator(5).tick_values(low, high)
    body = [frame.y_tick(v, show(v)) for v in ticks if low - room <= v <= high + room]
    steps = MaxNLocator(7, integer=True, min_n_ticks=1).tick_values(ends[0], ends[-1])
    body += [frame.x_tick(v, f"{v:g}") for v in steps if ends[0] <= v <= ends[-1]]
    body.append(_text(WIDTH - RIGHT, HEIGHT - 3, x, "end"))
    if mark is not None:
        at = frame.x(mark[0])
        body.append(
            Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                _f(at), TOP, HEIGHT - BOTTOM
            )
        )
        place = "end" if at > 0.6 * WIDTH else "start" if at < 0.4 * WIDTH else "middle"
        body.append(_text(at, TOP - 8, mark[1], place, "marked"))
    for line in drawn:
        body += _drawn(frame, line, show, x)
    return Chart(title, _svg(f"{title}. {_described(drawn, show)}", body), drawn, text)


def calibration(bins: Mapping[str, Sequence[float]]) -> Chart:
    """Draw accuracy by confidence: bars ``accuracy`` of bins with ``count`` images, 0..1."""
    frame = _Frame((0, 1), (0, 1))
    body = [frame.y_tick(v / 4, percent(v / 4)) for v in range(5)]
    body += [frame.x_tick(v / 4, percent(v / 4)) for v in range(5)]
    body.append(_text(WIDTH - RIGHT, HEIGHT - 3, "confidence", "end"))
    size = len(bins["count"])
    total = sum(bins["count"]) or 1
    for k, (count, accuracy) in enumerate(zip(bins["count"], bins["accuracy"], strict=True)):
        if count:
            x0, x1, y0, y1 = (
                *map(frame.x, (k / size, (k + 1) / size)),
                frame.y(accuracy),
                frame.y(0),
            )
            low, high = (percent(round(edge / size, 2)) for edge in (k, k + 1))
            right, share = (percent(round(v, 4)) for v in (accuracy, count / total))
            tip = f"confidence {low} to {high}: {right} right, {share} of the images"
            rect = '<rect class="c0" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
            sizes = map(_f, (x0 + 1, y0, x1 - x0 - 2, max(y1 - y0, 0)))
            body.append(Markup(rect).format(*sizes, tip))
    ends = map(_f, (frame.x(0), frame.y(0), frame.x(1), frame.y(1)))
    diagonal = '<line class="mark" x1="{}" y1="{}" x2="{}" y2="{}"/>'
    body.append(Markup(diagonal).format(*ends))
    gap = sum(
        count * abs(a - c)
        for count, a, c in zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True)
    )
    text = (
        "Bars: how often it is right, by how sure it is. Below the line: surer than it is right. "
        f"On average the gap is {100 * gap / total:.2f} points."
    )
    return Chart("Calibration", _svg(f"Calibration. {text}", body), (), text)


class _Frame:
    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        share = (value - self._x[0]) / (self._x[1] - self._x[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self._y[0]) / (self._y[1] - self._y[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def y_tick(self, value: float, text: str) -> Markup:
        at = self.y(value)
        line = '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        drawn = Markup(line).format(LEFT, WIDTH - RIGHT, _f(at), _f(at))
        return drawn + _text(LEFT - 7, at + 4, text, "end")

    def x_tick(self, value: float, text: str) -> Markup:
        return _text(self.x(value), HEIGHT - BOTTOM + 17, text, "middle")


def _drawn(frame: _Frame, line: Line, show: Callable[[float], str], x: str) -> list[Markup]:
    look = f"c{line.colour % COLOURS}"
    made, path = [], ""
    for at, value in line.points.items():
        if not math.isfinite(value):
            path += " "
            continue
        begins = not path or path.endswith(" ")
        path += f"{'M' if begins else 'L'}{_f(frame.x(at))},{_f(frame.y(value))}"
    if not line.dot:
        stroke = '<path class="line {} d{}" d="{}"/>'
        made.append(Markup(stroke).format(look, line.dash % DASHES, path))
    if line.dot or len(line.points) <= MARKED:
        circle = '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        for at, value in line.points.items():
            if math.isfinite(value):
                tip = f"{line.label}, {x} {at:g}: {show(round(value, 4))}"
                place = (_f(frame.x(at)), _f(frame.y(value)), 5 if line.dot else 2.6)
                made.append(Markup(circle).format(look, *place, tip))
    return made


def _described(drawn: Sequence[Line], show: Callable[[float], str]) -> str:
    """Say what lines show, for those who do not see them."""
    parts = []
    for line in drawn:
        values = [v for v in line.points.values() if math.isfinite(v)]
        ends = [show(round(v, 4)) for v in (values[0], values[-1])]
        parts.append(f"{line.label}: {' to '.join(dict.fromkeys(ends))}")
    return "; ".join(parts)


def _svg(label: str, body: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, HEIGHT, label) + Markup("").join(body) + Markup("</svg>")


def _text(x: float, y: float, text: Any, anchor: str, kind: str = "") -> Markup:
    made = Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>')
    return made.format(_f(x), _f(y), anchor, kind, escape(text))


def _f(value: float) -> str:
    return f"{value:.1f}"
