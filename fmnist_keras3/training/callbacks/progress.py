"""Shows how training goes: a live bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

from fmnist_keras3.training.callbacks.base import Callback


class Progress(Callback):
    """Print the progress of a fit to ``console`` (a `rich.console.Console`; stdout by default)."""

    def __init__(self, console: Any = None) -> None:
        self._console: Any = console
        self._bar: Any = None
        self._task: Any = None

    def on_fit_start(self, fit):
        from rich.console import Console

        self._console = self._console or Console()
        if step := fit.position.step:
            done = f"{fit.position.step_in_epoch} of {fit.steps_in_epoch} steps of epoch"
            self._console.print(
                f"going on after step {step} ({done} {fit.position.epoch + 1} done)",
                highlight=False,
            )
        if self._console.is_terminal:
            self._start_bar(fit)

    def _start_bar(self, fit) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}[/]"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=None, epoch="", values="compiling")

    def on_train_epoch_start(self, fit):
        self._started, self._examples = time.perf_counter(), 0
        if self._bar is not None:
            self._bar.reset(
                self._task,
                total=fit.steps_in_epoch,
                completed=fit.position.step_in_epoch,
                epoch=f"{fit.position.epoch + 1}/{fit.max_epochs}",
                values="",
            )

    def on_chunk_end(self, fit):
        if self._bar is None:
            return
        rate = fit.position.examples / max(1e-9, fit.position.seconds)
        values = f"loss {fit.logs['loss']:.4f}"
        if "accuracy" in fit.logs:
            values += f"  accuracy {fit.logs['accuracy']:.4f}"
        self._bar.update(
            self._task,
            completed=fit.position.step_in_epoch,
            values=f"{values}  {rate:,.0f} images/s",
        )

    def on_train_epoch_end(self, fit):
        record = fit.records["train"]
        parts = [f"epoch {record['epoch']:>3}/{fit.max_epochs}"]
        for prefix, label in (("", "train"), ("val_", "validation")):
            if f"{prefix}loss" in fit.logs:
                text = f"{label} loss {fit.logs[f'{prefix}loss']:.4f}"
                if f"{prefix}accuracy" in fit.logs:
                    text += f" accuracy {fit.logs[f'{prefix}accuracy']:.4f}"
                parts.append(text)
        parts.append(f"{record['seconds']:.1f} s")
        parts.append(f"{record['images_per_second']:,.0f} images/s")
        # soft_wrap: a log file gets one line an epoch, however narrow it believes the screen is.
        self._console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def on_fit_end(self, fit):
        self._stop_bar()

    def on_exception(self, fit, exception):
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
