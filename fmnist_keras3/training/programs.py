"""What was compiled, kept for the next fit or test of the same model."""

from __future__ import annotations

from typing import Any

import keras

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.base import Engine


class Programs:
    """The engine that was made last; Trainers that share this object share what it compiled."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self._made_with: dict[str, Any] = {}  # the engine's options

    def engine_for(self, model: keras.Model, split: Split, options: dict[str, Any]) -> Engine:
        """Return the engine of ``model``, the same one as long as that is the same.

        ``split`` holds examples, and ``options`` are the engine's.
        """
        engine = self.engine
        learns = engine is not None and not engine.step.known and split.y is not None
        changed = options != self._made_with or learns
        if engine is None or engine.model is not model or changed or not engine.is_current():
            engine = make_engine(model, example=split.read(slice(1)), **options)
            self.engine, self._made_with = engine, options
        return engine

    def adopt(self, model: keras.Model) -> keras.Model:
        """Return the model that the programs are of, with the values of ``model``.

        Where ``model``, which is compiled and was not trained, is of another build, it is returned
        itself, and so compiled for.
        """
        engine = self.engine
        if engine is None or not engine.is_current():
            return model
        return engine.model if engine.adopt(model) else model
