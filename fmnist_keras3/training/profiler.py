"""Where the time of a training goes: `fmnist train --profile simple`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Section:
    """Calls of a section and the seconds spent in it, without those in sections inside it."""

    calls: int = 0
    seconds: float = 0.0


class Profiler:
    """Adds up wall-clock time by section; a few microseconds a call, so it is always on."""

    def __init__(self) -> None:
        self.sections: dict[str, Section] = {}
        self._started = time.perf_counter()
        self._inside: list[float] = []  # seconds of inner sections, one entry a nesting

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time in the block as ``name``'s."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            section = self.sections.setdefault(name, Section())
            section.calls += 1
            section.seconds += seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds

    def results(self) -> list[dict[str, Any]]:
        """Return name, calls, seconds and share of the total, largest first; the rest is "other".

        The total is the time since the profiler was made; the shares add up to 1.
        """
        total = time.perf_counter() - self._started
        found = [(name, s.calls, s.seconds) for name, s in self.sections.items()]
        found.append(("other", 1, max(0.0, total - sum(seconds for _, _, seconds in found))))
        return [
            {"section": name, "calls": calls, "seconds": seconds, "share": seconds / total}
            for name, calls, seconds in sorted(found, key=lambda entry: -entry[2])
        ]


ABOUT = {
    "compile": "making the programs",
    "step": "waiting for the device: gathering, augmentation, steps",
    "data": "plans of epochs, batches handed to the device",
    "validation": "evaluation at the end of epochs",
    "checkpoint": "state to the host and to the disk",
    "logging": "records of the loggers",
    "callbacks": "all callbacks but the checkpoint",
    "other": "the rest: Python between the sections",
}


def table(results: list[dict[str, Any]]) -> Any:
    """Return `Profiler.results` as a rich table."""
    from rich.table import Table

    made = Table(title="Where the time went", title_justify="left")
    for name in ("section", "calls", "seconds", "share"):
        made.add_column(name, justify="left" if name == "section" else "right")
    made.add_column("what it is")
    for row in results:
        about = ABOUT.get(row["section"], "")
        share = f"{100 * row['share']:.1f} %"
        made.add_row(row["section"], str(row["calls"]), f"{row['seconds']:.3f}", share, about)
    return made
