"""What a person reads on a terminal: rich's console, to which every text is just text."""

from __future__ import annotations

from typing import Any


def console(**options: Any) -> Any:
    """Return a `rich.console.Console` that takes nothing it prints for markup.

    Names and paths are a user's: of "sweep[lr=0.01]" nothing may be lost, "exp[/a]" may not fail,
    and ":fire:" stays what it is. Styles are given by `styled`.
    """
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, **options)


def on_screen() -> bool:
    """Tell whether stdout is seen by a person: a terminal or a notebook, not a log."""
    seen = console()
    return seen.is_terminal or seen.is_jupyter


def styled(*parts: str | tuple[str, str]) -> Any:
    """Return a `rich.text.Text` of texts, each with its style where it is a pair.

    Example: ``console().print(styled("accuracy ", ("0.93", "bold")))``
    """
    from rich.text import Text

    return Text.assemble(*parts)
