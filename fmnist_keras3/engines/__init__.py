"""The engines: one file a backend. Nothing outside this folder asks which backend it is."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground.errors import UserError

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.engines.base import Engine

# Sums of metrics may be anything: they begin anew with each epoch and touch no weight. Gradients of
# a scaled loss may overflow; the optimizer then leaves that update out.
MAY_BE_INFINITE = ("metrics/", "optimizer/scaled_gradients/")
ENGINES = {"jax": "jax:JaxEngine", "tensorflow": "tensorflow:TensorFlowEngine"}


def make_engine(model: keras.Model, **options: Any) -> Engine:
    """Return the engine of Keras' backend for a compiled and built ``model``.

    Where ``deterministic`` programs cannot be had, raises UserError, or warns if it is "warn".
    """
    engine = _engine_class()(model, **options)
    promised, why = engine.determinism()
    if engine.deterministic and not promised:
        message = f"On this device equal runs may end with other bits: {why}."
        if engine.deterministic != "warn":
            raise UserError(f"{message} Leave deterministic out, or give 'warn'.")
        warnings.warn(message, stacklevel=4)
    return engine


def out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that the device's or the host's memory is too small."""
    return isinstance(error, MemoryError) or _engine_class().out_of_memory(error)


def _engine_class() -> type[Engine]:
    import keras

    module, name = ENGINES[keras.backend.backend()].split(":")
    return getattr(import_module(f"fmnist_keras3.engines.{module}"), name)
