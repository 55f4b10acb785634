"""Where results are written, and how: JSON and Markdown beside a table that is printed."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import tables
from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import UserError

DEFAULT_OUTPUT = Path(__file__).parent / "results"


def output_folder(given: dict[str, Any]) -> Path:
    """Return the folder for the results, made if need be; raises UserError if it cannot be."""
    folder = Path(given.get("output", DEFAULT_OUTPUT))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made a folder: {error.strerror}.") from error
    return folder


def about() -> dict[str, Any]:
    """Return what every result begins with: command, date, machine, versions."""
    return {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
    }


def keep(
    path: Path,
    title: str,
    columns: tuple[str, ...],
    rows: list[list[str]],
    content: dict[str, Any],
    said: Sequence[str] = (),
) -> int:
    """Write a result as JSON and Markdown, and print its table; returns 1 if all cells failed."""
    from rich.console import Console

    result = {**about(), **content}
    path.write_text(json.dumps(result, indent=1) + "\n")
    below = [line for text in (*said, f"`{result['command']}`") for line in ("", text)]
    table = tables.markdown_table(columns, rows)
    path.with_suffix(".md").write_text("\n".join([*table, *below, ""]))
    Console(width=None if sys.stdout.isatty() else 170).print(
        tables.rich_table(title, columns, rows, [*said, str(path)])
    )
    return 0 if any("error" not in cell for cell in result["cells"]) else 1
