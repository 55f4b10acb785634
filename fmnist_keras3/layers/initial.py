"""Initial weights drawn by NumPy, so that a seed gives the same weights on every backend.

Keras' initializers draw from the backend's generator, and no two backends draw the same numbers.
"""

from __future__ import annotations

import math

import keras
import numpy as np

from fmnist_keras3.layers.keras_private import all_layers, stands_for

# Standard deviation of a unit normal cut off at two, by which Keras widens truncated draws.
_TRUNCATED_STD = 0.87962566103423978


@stands_for("keras.initializers.VarianceScaling")
class Dirac(keras.initializers.VarianceScaling):
    """`VarianceScaling`, but the first filters of a convolution pass its input channels through.

    As in airbench (and `torch.nn.init.dirac_`): filter ``i`` is 1 in the middle of channel ``i``
    and 0 elsewhere, for as many filters as there are channels; the others are drawn.
    """

    def __call__(self, shape, dtype=None):
        drawn = np.array(super().__call__(shape, dtype="float32"))
        return keras.ops.convert_to_tensor(_identity(drawn), dtype)


def _identity(values: np.ndarray) -> np.ndarray:
    height, width, channels, filters = values.shape
    first = min(channels, filters)
    values[..., :first] = 0
    passed = np.arange(first)
    values[(height - 1) // 2, (width - 1) // 2, passed, passed] = 1
    return values


def draw_weights(model: keras.Model, seed: int) -> None:
    """Draw every randomly initialised weight of ``model`` anew, in place, from ``seed``.

    Follows the layers' own initializers (`VarianceScaling` and its kin: Glorot, He, LeCun); weights
    with another initializer (zeros, ones, constants) are left. Each weight has a generator of its
    own, keyed by seed and position, so that one layer's size does not change another's draws.
    """
    for position, (variable, initializer) in enumerate(_random_weights(model)):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, position))))
        values = _draw(rng, tuple(variable.shape), initializer)
        variable.assign(_identity(values) if isinstance(initializer, Dirac) else values)


def _random_weights(model: keras.Model):
    for layer in all_layers(model, itself=False):
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings"):
            initializer = getattr(layer, f"{name}_initializer", None)
            variable = getattr(layer, name, None)
            if isinstance(initializer, keras.initializers.VarianceScaling) and variable is not None:
                yield variable, initializer


def _draw(rng: np.random.Generator, shape: tuple[int, ...], initializer) -> np.ndarray:
    receptive = math.prod(shape[:-2])
    fan_in, fan_out = shape[-2] * receptive, shape[-1] * receptive
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    scale = initializer.scale / max(1.0, fan[initializer.mode])
    if initializer.distribution == "uniform":
        limit = math.sqrt(3 * scale)
        return rng.uniform(-limit, limit, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if initializer.distribution == "truncated_normal":
        scale /= _TRUNCATED_STD**2
        while (far := np.abs(values) > 2).any():
            values[far] = rng.standard_normal(int(far.sum()))
    return (values * math.sqrt(scale)).astype(np.float32)
