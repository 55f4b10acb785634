"""Who owns a model: one session at a time, from the first line of a verb to its last.

While a session is open, weights, optimizer and metrics are the engine's, and the Keras model is a
copy that `Session.publish` brings up to date. Whichever way the verb ends (its end, a stop, an
exception, a refusal), the model is published, and what was set in it for the verb is undone. Only
the precision stays with a model whose verb came to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground.errors import UserError

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.engines.base import Engine

_open: dict[int, Session] = {}  # by the model's id; a session holds its model


class Session:
    """The ownership of ``model`` by ``verb`` ("fit", "test", ...), a context.

    Raises UserError where another session has the model.
    """

    def __init__(self, model: keras.Model, verb: str) -> None:
        self.model, self.verb = model, verb
        self.engine: Engine | None = None
        self._undo, self._undo_failed = ExitStack(), ExitStack()

    def __enter__(self) -> Session:
        if (other := owner(self.model)) is not None:
            raise UserError(
                f"{self.verb} of a model whose {other.verb} is under way. Begin it when that has "
                "ended; until then a callback may call validate, test and predict."
            )
        _open[id(self.model)] = self
        return self

    def __exit__(self, kind: Any, exception: BaseException | None, trace: Any) -> None:
        try:
            if not self.publish() and exception is not None:
                exception.add_note(
                    "The weights were lost with the program that failed; the model holds what it "
                    "held before."
                )
        finally:
            self._undo.close()
            if exception is not None:
                self._undo_failed.close()
            del _open[id(self.model)]

    def publish(self) -> bool:
        """Bring the Keras model up to date; False where the engine's state is lost."""
        return self.engine is None or self.engine.sync_model()

    def at_end(self, undo: Callable[..., Any], *args: Any) -> None:
        """Have ``undo(*args)`` called when the session ends, after the model was published."""
        self._undo.callback(undo, *args)

    def set(self, what: Any, name: str, value: Any, *, stays: bool = False) -> None:
        """Set an attribute of the model or a part of it until the session ends.

        One that ``stays`` is put back only where the session ends by an exception.
        """
        undo = self._undo_failed if stays else self._undo
        undo.callback(setattr, what, name, getattr(what, name))
        setattr(what, name, value)


def owner(model: Any) -> Session | None:
    """Return the open session of ``model``, or None."""
    return _open.get(id(model))
