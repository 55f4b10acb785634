"""Training in float64, where a comparison shall not hang on rounding."""

import contextlib

import keras
from keras.src.layers.normalization import batch_normalization


class _Backend:
    """What Keras' batch normalisation asks of its backend: it takes float64 down to float32."""

    def __getattr__(self, name):
        return getattr(keras.src.backend, name)

    def result_type(self, *dtypes):
        return "float64"


@contextlib.contextmanager
def in_float64():
    """Make and compute everything in float64, until the end."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    plain = batch_normalization.backend
    _let_jax_have_float64(True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    batch_normalization.backend = _Backend()
    try:
        yield
    finally:
        batch_normalization.backend = plain
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(before)
        _let_jax_have_float64(False)


def _let_jax_have_float64(active):
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", active)
