"""Averages of the weights, kept beside them: for EMA and stochastic weight averaging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    model: keras.Model, places: list[int], weights: Any, others: Any, xs: Any, count: Any
) -> list[Any]:
    """Return sums over ``count`` batches ``xs [K, B, ...]`` of their statistics.

    ``weights`` and ``others`` are the values of the model's variables; the statistics are those
    of ``others`` at ``places``, inside `Averages.batches_alone`.
    """

    def body(i, sums):
        x = mapped(lambda a: a[i], xs)
        _, after = model.stateless_call(weights, others, x, training=True)
        return [total + after[place] for total, place in zip(sums, places, strict=True)]

    return ops.fori_loop(0, count, body, [ops.zeros_like(others[place]) for place in places])


def zeros_like(variable: keras.Variable) -> keras.Variable:
    """Return a variable of the same shape, dtype and name, which holds zeros."""
    return keras.Variable(
        np.zeros(variable.shape), trainable=False, dtype=variable.dtype, name=variable.name
    )


def _copy(variable: keras.Variable) -> keras.Variable:
    value = np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
    return keras.Variable(value, trainable=False, dtype=variable.dtype, name=variable.name)
