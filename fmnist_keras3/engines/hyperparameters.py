"""Numbers of a model and its optimizer that programs take as arguments.

A program that has them as constants would have to be compiled again for another value. These are
arguments: weight decay, the strengths of L1 and L2, and the rate of our Dropout. The learning rate
is one too, but another one for each step (`chunk.StepPlan`).

As arguments they give the bits that they gave as constants: the stored results of recipes hold the
programs to that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.fast import Dropout
from fmnist_keras3.optimizers import inner_optimizer

_OWN = ("keras", "fmnist_keras3")  # whose layers have numbers that say how they compute
_OF_REGULARIZERS = {
    keras.regularizers.L1: ("l1",),
    keras.regularizers.L2: ("l2",),
}  # L1L2 asks whether they are 0, which a program cannot be asked


_DECAYS = ("weight_decay", "adam_weight_decay")


class Hyperparameters:
    """The numbers of ``model`` that its programs take as arguments.

    ``by_xla``: it compiles them. ``hashed``: so that our Dropout hashes its masks
    (`layers.fast.Dropout`). A number that is 0 or None is none of them: without it, the program is
    another one.
    """

    def __init__(self, model: keras.Model, *, by_xla: bool, hashed: bool) -> None:
        self._model = model
        given = model.optimizer
        optimizers = [p.optimizer for p in getattr(given, "parts", [])] or [inner_optimizer(given)]
        layers = keras_private.all_layers(model)
        found = [v.regularizer for v in model.trainable_variables]
        found += [layer.activity_regularizer for layer in layers]
        regularizers = list({id(r): r for r in found if r is not None}.values())
        owners: list[tuple[Any, tuple[str, ...]]]
        owners = [(r, _OF_REGULARIZERS.get(type(r), ())) for r in regularizers]
        if by_xla:
            owners += [(o, _DECAYS) for o in optimizers if keras_private.decays_plainly(o)]
        if hashed:
            mine = [la for la in layers if type(la) is Dropout and la.noise_shape is None]
            owners += [(layer, ("rate",)) for layer in mine]
        self._places = [(o, name) for o, names in owners for name in names if _is_set(o, name)]
        known = {(id(owner), name) for owner, name in self._places}
        own = [layer for layer in layers if type(layer).__module__.split(".")[0] in _OWN]
        # What the programs have as constants, and where they take an argument.
        self.constants = [
            f"{name}={'argument' if (id(owner), name) in known else value}"
            for owner in (*optimizers, given, *own, *regularizers)
            for name, value in vars(owner).items()
            if isinstance(value, (bool, int, float, str)) or name in ("l1", "lr_groups")
            if not name.startswith("_") and name not in ("built", "name")
        ]

    def values(self) -> list[Any]:
        """Return what the programs are to take now."""
        return [
            owner.hash_numbers() if name == "rate" else np.asarray(_number(owner, name), "float32")
            for owner, name in self._places
        ]

    @contextlib.contextmanager
    def traced(self, values: list[Any]) -> Iterator[None]:
        """Put ``values``, symbols of a program that is traced, in the places of the numbers."""
        with contextlib.ExitStack() as undo:
            for optimizer in {id(o): o for o, name in self._places if name in _DECAYS}.values():
                decay = partial(_decay, optimizer)
                undo.enter_context(keras_private.decaying_by(optimizer, decay))
            for (owner, name), value in zip(self._places, values, strict=True):
                name = "traced" if name == "rate" else name
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            yield

    def same_build(self, other: Hyperparameters) -> bool:
        """Tell whether programs of the other model would differ in nothing but the arguments."""
        return self._build() == other._build()

    def _build(self) -> tuple[Any, ...]:
        given = {name for _, name in self._places} | {"learning_rate", "seed", "name"}
        with keras_private.without_tensorflow():
            config = self._model.get_config(), self._model.get_compile_config()
        constants = [text for text in self.constants if not text.startswith("seed=")]
        return [name for _, name in self._places], constants, _without(given, config)

    def adopt(self, other: Hyperparameters) -> None:
        """Set the numbers to those of another model of the same build."""
        for (owner, name), (its_owner, _) in zip(self._places, other._places, strict=True):
            setattr(owner, name, getattr(its_owner, name))


def _without(names: set[str], config: Any) -> Any:
    """Return a configuration of Keras without what has one of the ``names``."""
    if isinstance(config, dict):
        return {k: _without(names, v) for k, v in config.items() if k not in names}
    if isinstance(config, (list, tuple)):
        return [_without(names, v) for v in config]
    return config


def _decay(optimizer: Any, variables: list[Any]) -> None:
    """Take weight decay off the weights, as Keras does, but in XLA's order of multiplications.

    Keras writes ``weight * decay * rate``. Of a constant ``decay`` XLA makes ``weight * (decay *
    rate)``, which may differ in the last bit.
    """
    for variable in variables:
        if (decay := keras_private.decay_of(optimizer, variable)) is not None:
            decay, rate = (ops.cast(n, variable.dtype) for n in (decay, optimizer.learning_rate))
            variable.assign(variable - variable * (decay * rate))


def _is_set(owner: Any, name: str) -> bool:
    return getattr(owner, name, None) is not None and _number(owner, name) != 0


def _number(owner: Any, name: str) -> float:
    return float(getattr(owner, name))  # L1 has it as a tensor
