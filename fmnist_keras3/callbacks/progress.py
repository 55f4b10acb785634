"""Shows how training goes: a live bar where somebody looks, and one plain line an epoch."""

from __future__ import annotations

from typing import Any

from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


class RichProgressBar(Callback):
    """Print the progress of a fit to ``console`` (a `rich.console.Console`; stdout by default).

    On a terminal and in a notebook a bar shows the epoch, moved on at the first chunk's end that is
    ``refresh_rate`` steps after the one before; 0 is no bar. There, and in a log, each epoch leaves
    a line. Raises UserError for a negative ``refresh_rate``.

    Example: ``Trainer(callbacks=[RichProgressBar(refresh_rate=100)])``
    """

    role, order = "progress bar", -2

    def __init__(self, refresh_rate: int = 1, *, console: Any = None) -> None:
        if refresh_rate < 0:
            raise UserError(f"refresh_rate is {refresh_rate}; it must be at least 0 (no bar).")
        self.refresh_rate = refresh_rate
        self._console: Any = console
        self._bar: Any = None

    def on_fit_start(self, fit):
        self._console = self._console or screen.console()
        if step := fit.position.step:
            done = f"{fit.position.step_in_epoch} of {fit.steps_in_epoch} steps of epoch"
            text = f"going on after step {step} ({done} {fit.position.epoch + 1} done)"
            self._console.print(text, highlight=False)
        if self.refresh_rate and self._console.is_jupyter:
            self._bar = NotebookBar()
        elif self.refresh_rate and self._console.is_terminal:
            self._bar = TerminalBar(self._console)

    def on_train_epoch_start(self, fit):
        self._shown = fit.position.step
        if self._bar is not None:
            title = f"epoch {fit.position.epoch + 1}{fit.of_epochs}"
            self._bar.begin(title, fit.steps_in_epoch, fit.position.step_in_epoch)

    def on_chunk_end(self, fit):
        position = fit.position
        ended = position.step_in_epoch == fit.steps_in_epoch
        if self._bar is None or (position.step - self._shown < self.refresh_rate and not ended):
            return
        self._shown = position.step
        rate = position.examples / max(1e-9, position.seconds)
        values = "  ".join([*_values(fit), f"{rate:,.0f} images/s"])
        self._bar.move(position.step_in_epoch, values)

    def on_train_epoch_end(self, fit):
        record = fit.records["train"]
        parts = [f"epoch {record['epoch']:>3}{fit.of_epochs}"]
        labels = {"": "train", "val_": "validation", "val_averaged_": "averaged"}
        for prefix, label in labels.items():
            if f"{prefix}loss" in fit.logs:
                parts.append(" ".join([label, *_values(fit, prefix)]))
        parts += [f"{record['seconds']:.1f} s", f"{record['images_per_second']:,.0f} images/s"]
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


def _values(fit: SessionView, prefix: str = "") -> list[str]:
    """Return loss, accuracy and what a Module logs for the bar, as texts."""
    names = dict.fromkeys(("loss", "accuracy", *fit.engine.step.progress))
    found = {name: fit.logs[prefix + name] for name in names if prefix + name in fit.logs}
    return [f"{name} {value:.4f}" for name, value in found.items()]


class TerminalBar:
    """A bar below what is printed meanwhile, with the time that is left."""

    def __init__(self, console: Any) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.fields[title]}[/]"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[values]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=None, title="", values="")

    def begin(self, title: str, total: int, done: int) -> None:
        """Start anew, with ``done`` of ``total`` steps."""
        self._bar.reset(self._task, total=total, completed=done, title=title, values="")

    def move(self, done: int, values: str) -> None:
        """Show that ``done`` steps are done."""
        self._bar.update(self._task, completed=done, values=values)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class NotebookBar:
    """A bar in a notebook's cell: HTML that is replaced as it goes.

    Not Rich's, which needs ipywidgets there, and a thread.
    """

    def __init__(self) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        self._html, self._display = HTML, display(HTML(""), display_id=True)

    def begin(self, title: str, total: int, done: int) -> None:
        """Start anew, with ``done`` of ``total`` steps."""
        self._title, self._total = title, total
        self.move(done, "")

    def move(self, done: int, values: str) -> None:
        """Show that ``done`` steps are done."""
        text = f"{self._title} <progress value={done} max={self._total}></progress>"
        self._show(f"<code>{text} {done}/{self._total} &nbsp; {values}</code>")

    def stop(self) -> None:
        """Take the bar away."""
        self._show("")

    def _show(self, html: str) -> None:
        if self._display is not None:  # None outside of IPython, where nothing is shown
            self._display.update(self._html(html))
