"""Averages of the weights, kept beside them: for EMA and stochastic weight averaging."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.layers.keras_private import all_layers


class Averages:
    """An average of each trainable variable, and statistics of BatchNormalization that fit them.

    The engine moves ``weights`` in each step. A moving mean of activations belongs to the weights
    that made them, so averaging it would not do (Izmailov et al. 2018): the ``statistics`` are
    taken anew from batches.
    """

    def __init__(self, model: keras.Model) -> None:
        self._norms = [
            layer
            for layer in all_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        moving = [v for norm in self._norms for v in (norm.moving_mean, norm.moving_variance)]
        self.weights = [_copy(v) for v in model.trainable_variables]
        self.statistics = [_copy(v) for v in moving]
        self.pairs = list(zip(model.trainable_variables, self.weights, strict=True))
        self.pairs += zip(moving, self.statistics, strict=True)
        others = model.non_trainable_variables
        self.places = [next(i for i, v in enumerate(others) if v is m) for m in moving]

    @property
    def named(self) -> list[tuple[str, keras.Variable]]:
        """The averages with the paths of what they are of."""
        return [(of.path, average) for of, average in self.pairs]

    @contextlib.contextmanager
    def batches_alone(self) -> Iterator[None]:
        """While this lasts, a training step sets the moving statistics to those of its batch."""
        momenta = [norm.momentum for norm in self._norms]
        try:
            for norm in self._norms:
                norm.momentum = 0.0
            yield
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum


def batch_statistics(
    model: keras.Model,
    forward: Callable[[Any], None],
    places: list[int],
    weights: Any,
    others: Any,
    batches: Any,
    count: Any,
) -> list[Any]:
    """Return sums over ``count`` of the ``batches`` of their statistics.

    ``forward`` runs ``model`` on one, in training mode. ``weights`` and ``others`` are the values
    of its variables; the statistics are those of ``others`` at ``places``, inside
    `Averages.batches_alone`.
    """
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    moving = [model.non_trainable_variables[place] for place in places]

    def body(i, sums):
        with keras.StatelessScope(zip(variables, [*weights, *others], strict=True)) as scope:
            forward(mapped(lambda a: a[i], batches))
        after = [scope.get_current_value(variable) for variable in moving]
        return [total + value for total, value in zip(sums, after, strict=True)]

    return ops.fori_loop(0, count, body, [ops.zeros_like(others[place]) for place in places])


def zeros_like(variable: keras.Variable) -> keras.Variable:
    """Return a variable of the same shape, dtype and name, which holds zeros."""
    return keras.Variable(
        np.zeros(variable.shape), trainable=False, dtype=variable.dtype, name=variable.name
    )


def _copy(variable: keras.Variable) -> keras.Variable:
    value = np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
    return keras.Variable(value, trainable=False, dtype=variable.dtype, name=variable.name)
