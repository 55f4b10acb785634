"""One call for every generator of random numbers that code around a training may use."""

from __future__ import annotations

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import explained


@explained
def seed_everything(seed: int = 0) -> int:
    """Seed Python's, NumPy's and the backend's global generators, and Keras'; returns ``seed``.

    For your own layers and initial weights. What this package draws (order, augmentation, split,
    the weights of `build_model`) depends on the ``seed`` arguments alone, and not on global state.
    Raises UserError for a seed outside 0..2**32 - 1.

    Example: ``seed_everything(42)``
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed!r}; it must be a whole number from 0 to {2**32 - 1}.")
    from fmnist_keras3.runtime import prepare

    prepare()
    import keras

    from fmnist_keras3.layers.keras_private import without_tensorflow

    with without_tensorflow():  # where it is imported already, it is seeded
        keras.utils.set_random_seed(seed)
    return seed
