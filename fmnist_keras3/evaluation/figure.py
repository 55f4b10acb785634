"""The look of all plots: colours, style, a header, and a PNG file that is whole or not there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure, SubFigure

from fmnist_keras3.ground.files import save

SYNTHETIC = "generated garments, not Fashion-MNIST"

# Okabe and Ito's palette: told apart with any colour vision, and in grey print.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#1F2328"
GREY, PALE, AMBER = "#6B7280", "#9CA3AF", "#F0C000"
STYLE: dict[Any, dict[str, Any]] = {  # by the groups of `matplotlib.rc`
    "font": {"size": 9.5},
    "text": {"color": BLACK, "parse_math": False},  # class and run names may hold dollar signs
    "axes": {"edgecolor": PALE, "labelcolor": GREY, "axisbelow": True, "grid": True}
    # The pad is room for the best epoch's label above the line.
    | {"titlelocation": "left", "titlesize": 10, "titleweight": "bold", "titlepad": 22},
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": "#E5E7EB", "linewidth": 0.8},
    ("xtick", "ytick"): {"color": PALE, "labelcolor": GREY, "major.size": 0},
    "lines": {"linewidth": 1.8, "markersize": 4.5},
    "legend": {"frameon": False, "fontsize": 9.5},
}


class Picture(Figure):
    """A figure that a notebook shows as it was drawn, with or without pyplot."""

    def _repr_png_(self) -> bytes:
        with _style():
            png = io.BytesIO()
            self.savefig(png, format="png", facecolor="white")
        return png.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Let our style hold: the caller's rcParams neither reach a plot nor change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for group, values in STYLE.items():
            matplotlib.rc(group, **values)
        yield


@contextmanager
def figure(
    path: Path | str | None, size: tuple[float, float], title: str, subtitle: str, synthetic: bool
) -> Iterator[tuple[SubFigure, SubFigure]]:
    """Give a header and an empty body of ``size`` inches; at the end write them to ``path``."""
    with _style():
        width, height = size
        rows = [0.32, 0.66, height] if synthetic else [0.66, height]
        figure = Picture((width, sum(rows)), dpi=150, layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.12, h_pad=0.08)
        parts: Any = figure.subfigures(len(rows), 1, height_ratios=rows)
        *banner, header, body = parts
        for stripe in banner:
            stripe.set_facecolor(AMBER)
            stripe.text(0.5, 0.47, SYNTHETIC, ha="center", va="center", fontweight="bold")
        header.text(0.16 / width, 0.8, title, va="top", fontsize=13, fontweight="bold")
        header.text(0.16 / width, 0.36, subtitle, va="top", color=GREY)
        yield header, body
        if path is not None:
            save(Path(path), figure._repr_png_())


def sentence(body: SubFigure, text: str) -> None:
    """Say in the middle of an empty body why it is empty."""
    body.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=GREY)
