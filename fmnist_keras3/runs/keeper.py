"""Writes the checkpoints that callbacks ask for; the only one that removes any."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fmnist_keras3.ground.errors import Diverged, UserError
from fmnist_keras3.runs import checkpoint, checkpoints
from fmnist_keras3.runs.writer import Writer

if TYPE_CHECKING:
    from fmnist_keras3.training.fit import Fit
    from fmnist_keras3.training.view import SessionView


class Saver(Protocol):
    """A callback that asks for checkpoints, such as `ModelCheckpoint`."""

    monitor: str | None
    save_top_k: int  # -1: whatever it asked for stays
    best: list[Any]  # (value, name of the checkpoint, epoch), best first


class Keeper:
    """One for a fit. Callbacks `join` in their ``setup`` and `ask` in their hooks.

    When all callbacks have had a hook, one checkpoint is written for each label that was asked for
    in it, so that it holds what all of them made of the moment. Kept are the best of every saver,
    what "best" and "last" point to, and the one before the last (should the disk damage that).
    The state is copied at once and written in the background; what goes wrong there is raised at
    the next boundary. Where checkpoints are not ``enabled`` nothing is written.
    """

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.last_model_path: Path | None = None
        self.saved_at = time.monotonic()
        self._savers: list[Saver] = []
        self._asked: dict[str, str] = {}  # names of the checkpoints to write, by label
        self._better: dict[str, Any] | None = None  # what "best" is to hold
        self._lasting: set[str] = set()  # asked for by a saver that keeps whatever it asked for
        self._passing: set[str] = set()  # written here, and not asked for by such a one
        self._before: str | None = None  # the name of the last but one
        self._place: tuple[int, int, int] | None = None  # the position that "last" holds
        self._writer = Writer()

    def join(self, saver: Saver) -> None:
        """Let ``saver`` have its best ones kept."""
        self._savers.append(saver)

    @property
    def leader(self) -> Saver | None:
        """The saver whose best is the run's: the first that names a monitor, else the first."""
        ranking = [saver for saver in self._savers if saver.save_top_k]
        return next((saver for saver in ranking if saver.monitor), next(iter(ranking), None))

    @property
    def best_model_path(self) -> Path | None:
        """The folder of the run's best checkpoint, or None."""
        best = self.leader.best if self.leader is not None else []
        return self.folder / best[0][1] if best and self.enabled else None

    def ask(
        self, fit: SessionView, saver: Saver | None = None, label: str = "", better: Any = None
    ) -> str:
        """Have a checkpoint of this moment written, and return the name that it will have.

        ``better`` are the monitored values of a new best of ``saver``.
        """
        self._writer.wait()  # one in flight may be of this step, and takes its name
        if label not in self._asked:
            path = checkpoints.new_path(self.folder, fit.position.step, label, self._asked.values())
            self._asked[label] = path.name
        name = self._asked[label]
        if saver is not None and saver.save_top_k == -1:
            self._lasting.add(name)
        if better is not None and saver is self.leader:
            self._better = {"checkpoint": name, **better}
        return name

    def after_hook(self, fit: Fit, hook: str) -> None:
        """Write what was asked for in ``hook``, or by SIGUSR1."""
        if not self.enabled:
            self._asked.clear()
            return
        if hook == "on_chunk_end":
            self._writer.check()
            # At an epoch's last step the validation is still to come, and a checkpoint after it.
            if fit.signals.checkpoint_asked and fit.position.step_in_epoch < fit.steps_in_epoch:
                self.ask(fit.view)
        if self._asked and hook != "on_save_checkpoint":
            self._write(fit)

    def begin(self, fit: Fit) -> None:
        """Begin before the first step: with something to go back to, where that may be needed."""
        self.saved_at = time.monotonic()
        if self.leader is not None and self.leader.best:
            # A process that was killed may have left another one in the summary, or none.
            fit.run.update(best_epoch=self.leader.best[0][2])
        if self.enabled and fit.on_nonfinite == "rollback" and self.last_model_path is None:
            self.ask(fit.view)
            self._write(fit)

    def save_last(self, fit: Fit) -> None:
        """Write a checkpoint of the end, unless there is one; before anything follows that."""
        if self.enabled and self._place != fit.position.place:
            if not self._asked:  # by savers, before another callback raised in the same hook
                self.ask(fit.view)
            self._write(fit)
        self._writer.wait()

    def on_exception(self, fit: Fit, exception: BaseException) -> None:
        """Save what can be saved: the position, if the engine's state is that of it."""
        if isinstance(exception, KeyboardInterrupt):
            self._writer.abandon()
            return
        with contextlib.suppress(UserError):
            self._writer.wait()
        if self.last_model_path is not None and not self.last_model_path.exists():
            self._place = None  # it was not written; perhaps now it can be
        sound = fit.sound and fit.position.step > 0 and not isinstance(exception, Diverged)
        if sound:
            fit.run.path.mkdir(parents=True, exist_ok=True)  # where it vanished
            self.save_last(fit)

    def restored(self, path: Path, place: tuple[int, int, int]) -> None:
        """Count ``path``, from which the training goes on, as the last checkpoint."""
        self.last_model_path, self._place, self._before = path, place, None
        self._asked.clear()

    def wait(self) -> None:
        """Wait for the checkpoint in flight; raises what its writing raised."""
        self._writer.wait()

    def _write(self, fit: Fit) -> None:
        """Write what was asked for, let the pointers follow, and remove what nobody keeps.

        Raises Diverged for a state that is not finite, and what the writing before raised.
        """
        self._writer.wait()
        names, better = list(self._asked.values()), self._better
        self._asked, self._better = {}, None
        state = fit.engine.export_state()
        checkpoint.check_finite(state, fit.position.step)
        if self.last_model_path is not None:
            self._before = self.last_model_path.name
        self.last_model_path, self._place = self.folder / names[-1], fit.position.place
        self.saved_at = time.monotonic()
        fit.signals.checkpoint_asked = False
        self._passing |= set(names) - self._lasting
        keep = {name for saver in self._savers for _, name, _ in saver.best}
        keep |= {names[-1], self._before or ""}
        passing = set(self._passing)
        keeps_all = any(saver.save_top_k == -1 for saver in self._savers)
        folder, writer, manifest = self.folder, self._writer, fit.manifest()

        def write() -> None:
            for name in names:
                checkpoint.save(folder / name, state, manifest)
            if writer.abandoned:  # the run is no longer ours
                return
            # "best" comes before "last": a run that is killed in between resumes from the
            # checkpoint before and redoes this validation, so best is set again; the other way
            # round it never would be.
            if better is not None:
                checkpoints.point(folder, "best", **better)
            checkpoints.point(folder, "last", names[-1])
            if best := checkpoints.pointed(folder, "best"):  # of a killed process, perhaps
                keep.add(best.name)
            if keeps_all:
                keep.update({path.name for path in checkpoints.saved(folder)} - passing)
            checkpoints.retire(folder, keep)

        writer.submit(write)
        if better is not None:
            fit.run.update(best_epoch=better["epoch"])
