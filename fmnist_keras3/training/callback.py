"""The base of all callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fmnist_keras3.ground.lightning import CALLBACK_HOOKS, check_hooks

if TYPE_CHECKING:
    from fmnist_keras3.training.session import Session
    from fmnist_keras3.training.view import SessionView


class Callback:
    """Hooks that the loop calls; override what you need.

    ``fit`` is a read-only view of the training (`SessionView`): ``model``, ``engine``, ``data``,
    ``position`` (epoch, step), ``logs`` (the latest values: loss, accuracy, val_loss, lr), ``run``
    (the run directory) and ``stop(reason)``, which ends the training at the next boundary. The
    Trainer's predict, validate and test may be called with ``fit.model``. Many steps run as one
    program, which ends where `next_event` asks for it. Raises UserError for a method that is a hook
    in Lightning alone.

    Example: ``class Print(Callback): on_train_epoch_end = lambda self, fit: print(fit.logs)``
    """

    # Under which the profile counts the time of the hooks.
    section: ClassVar[str] = "callbacks"
    # What a training has one of, and the Trainer brings where nobody gives one: "progress bar",
    # "model summary" and "checkpoints" (of which there may be several), or "averaging".
    role: ClassVar[str | None] = None
    # What the engine must report of its steps ("gradient norms"), or keep ("averages").
    requires: ClassVar[frozenset[str]] = frozenset()
    # Hooks are called in the order in which callbacks were given, but those of a lower one first.
    order: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_hooks(vars(cls), CALLBACK_HOOKS)

    @property
    def given(self) -> Any:
        """What the user gave: this object, or the one that it wraps."""
        return self

    def next_event(self, fit: SessionView, step: int) -> int | None:
        """Return the next step, above ``step``, after which `on_chunk_end` must come, or None.

        The next multiple of an attribute ``every_n_train_steps``, if that is a whole number.
        """
        every = getattr(self, "every_n_train_steps", None)
        return step + every - step % every if isinstance(every, int) and every > 0 else None

    def prepare_model(self, session: Session) -> None:
        """Before the engine of a fit is made: change ``session.model``, by `Session.set`."""

    def setup(self, fit: SessionView) -> None:
        """Before anything is restored: forget what an earlier fit left in this object."""

    def on_fit_start(self, fit: SessionView) -> None:
        """Before the first step, after a checkpoint was restored."""

    def on_train_epoch_start(self, fit: SessionView) -> None:
        """Before the first step of an epoch, or where a resumed one goes on."""

    def on_chunk_end(self, fit: SessionView) -> None:
        """After each compiled chunk of steps."""

    def on_validation_start(self, fit: SessionView) -> None:
        """Before a validation, within an epoch or at its end."""

    def on_validation_end(self, fit: SessionView) -> None:
        """After a validation; ``fit.logs`` has its values, as val_loss and so on."""

    def on_train_epoch_end(self, fit: SessionView) -> None:
        """After an epoch's last step and its validation."""

    def on_save_checkpoint(self, fit: SessionView, manifest: dict[str, Any]) -> None:
        """Before a checkpoint is written: ``manifest`` may get more JSON values, by new names."""

    def on_load_checkpoint(self, fit: SessionView, manifest: dict[str, Any]) -> None:
        """When training goes on from a checkpoint; `setup` came before, `on_fit_start` follows."""

    def on_exception(self, fit: SessionView, exception: BaseException) -> None:
        """When training ends by an exception, before it is raised again."""

    def on_fit_end(self, fit: SessionView) -> None:
        """After the last step, also after an interrupt; not after an exception."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
