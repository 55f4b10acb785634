"""`fmnist recipes`: settings under a name, and what they were measured to give."""

from __future__ import annotations

from typing import Any

from fmnist_keras3 import recipes
from fmnist_keras3.evaluation.report import duration
from fmnist_keras3.ground import screen


def show() -> int:
    """Print the headers of all recipes."""
    console = screen.console()
    for name in recipes.names():
        header, _ = recipes.read(name)
        console.print(screen.styled((name, "bold"), f"  {header['about']}"), soft_wrap=True)
        for line in (*_figures(header), header["command"]):
            console.print(f"  {line}", soft_wrap=True)
    return 0


def _figures(header: dict[str, Any]) -> list[str]:
    """Return what was measured, or that nothing was, in lines."""
    if "test_accuracy" not in header:
        return [f"not measured yet; to measure it: {header['to_measure']}"]
    said = "; with test-time augmentation ".join(
        _percent(header[name]) for name in ("test_accuracy", "test_accuracy_tta") if name in header
    )
    return [
        f"test accuracy {said} (n={header['test_accuracy']['n']} on {min(header['backends'])})",
        f"{duration(header['seconds'])} a run on {header['hardware']}; "
        f"figures in {header['results']}",
    ]


def _percent(figure: dict[str, float]) -> str:
    spread = f" ± {100 * figure['std']:.2f}" if "std" in figure else ""  # one seed has none
    return f"{100 * figure['mean']:.2f} %{spread}"
