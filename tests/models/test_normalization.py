"""Our BatchNormalization, Activation and GlobalMaxPooling2D give what Keras' own give."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

from fmnist_keras3.layers.fast import (
    Activation,
    BatchNormalization,
    GlobalMaxPooling2D,
    traced_for_xla_cpu,
)
from fmnist_keras3.layers.normalization import channel_means, gelu

BACKEND = keras.backend.backend()


def drawn(shape, seed=0, dtype="float32"):
    return ops.cast(np.random.default_rng(seed).normal(0.3, 1.5, size=shape), dtype)


def results(layer, x, **call):
    """Return the output, the gradients of input and weights, and the state after it; compiled."""
    if not layer.built:
        layer.build(x.shape)
    upstream = drawn(layer.compute_output_shape(x.shape), 1, layer.compute_dtype)
    with traced_for_xla_cpu():
        if BACKEND == "jax":
            import jax

            def forward(x, weights, state):
                y, state = layer.stateless_call(weights, state, x, **call)
                return ops.sum(ops.cast(y * upstream, "float32")), (y, state)

            weights, state = ([v.value for v in variables] for variables in variables_of(layer))
            run = jax.jit(jax.grad(forward, argnums=(0, 1), has_aux=True))
            (dx, dw), (y, state) = run(x, weights, state)
        else:
            import tensorflow as tf

            weights, state = variables_of(layer)

            @tf.function(jit_compile=True, autograph=False)
            def run(x):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x, **call)
                    total = ops.sum(ops.cast(y * upstream, "float32"))
                return y, *tape.gradient(total, [x, *(w.value for w in weights)])

            y, dx, *dw = run(x)
    return [np.asarray(ops.cast(value, "float32")) for value in (y, dx, *dw, *state)]


def variables_of(layer):
    return layer.trainable_variables, layer.non_trainable_variables


def check(ours, plain, x, tolerance=2e-6, **call):
    made, expected = results(ours, x, **call), results(plain, x, **call)
    assert len(made) == len(expected)
    for a, b in zip(made, expected, strict=True):
        assert a.shape == b.shape
        # Of the largest value: a gradient is a difference of sums over the batch.
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.fixture
def calls_of_keras(monkeypatch):
    """The list of calls that our layers pass on to Keras' own."""
    calls = []
    for cls in (BatchNormalization, Activation, GlobalMaxPooling2D):
        plain = cls.__mro__[1]

        def record(original):
            @functools.wraps(original)  # Keras looks at the arguments' names
            def recorded(self, *args, **kwargs):
                calls.append(type(self).__name__)
                return original(self, *args, **kwargs)

            return recorded

        monkeypatch.setattr(plain, "call", record(plain.call))
    return calls


@pytest.mark.parametrize("shape", [(8, 5, 4, 3), (16, 7)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": False, "momentum": 0.6, "epsilon": 1e-5}, {"center": False}],
    ids=str,
)
def test_batch_normalization(shape, options, calls_of_keras):
    rng = np.random.default_rng(2)
    ours, plain = BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    for layer in (ours, plain):
        layer.build((None, *shape[1:]))
    for variable, same in zip(ours.weights, plain.weights, strict=True):
        variable.assign(rng.uniform(0.5, 1.5, size=variable.shape))
        same.assign(variable)
    check(ours, plain, drawn(shape), training=True)
    assert calls_of_keras == ["BatchNormalization"]  # the plain layer's own


@pytest.mark.parametrize(
    ("options", "call", "dtype"),
    [
        ({}, {"training": False}, "float32"),
        ({"trainable": False}, {"training": True}, "float32"),
        ({"axis": 1}, {"training": True}, "float32"),
        ({"renorm": True}, {"training": True}, "float32"),
        ({"dtype": "float16"}, {"training": True}, "float16"),
        ({"dtype": "mixed_bfloat16"}, {"training": True}, "bfloat16"),
    ],
    ids=str,
)
def test_other_normalizations_are_left_to_keras(options, call, dtype, calls_of_keras):
    layers = BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    check(*layers, drawn((8, 4, 4, 3), dtype=dtype), **call)
    assert calls_of_keras == ["BatchNormalization"] * 2


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow has a kernel of its own on a GPU")
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batch_normalization_as_on_a_gpu(options, dtype, calls_of_keras, monkeypatch):
    monkeypatch.setattr("fmnist_keras3.layers.fast._fast", lambda: False)
    options = {"dtype": f"mixed_{dtype}", "epsilon": 1e-5, **options}
    layers = BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    for layer in layers:
        rng = np.random.default_rng(2)
        layer.build((None, 5, 4, 3))
        for variable in layer.weights:
            variable.assign(rng.uniform(0.5, 1.5, size=variable.shape))
    # Keras rounds moments and gradients on the way; a step of bfloat16 is 1/256.
    check(*layers, drawn((64, 5, 4, 3), dtype=dtype), 1 / 128, training=True)
    assert calls_of_keras == ["BatchNormalization"]


def test_a_mask_is_left_to_keras(calls_of_keras):
    x, mask = drawn((4, 6, 3)), ops.convert_to_tensor(np.arange(24).reshape(4, 6) % 3 > 0)
    made = []
    for cls in (BatchNormalization, keras.layers.BatchNormalization):
        layer = cls()
        layer.build((None, 6, 3))
        with traced_for_xla_cpu():
            made.append(layer(x, training=True, mask=mask))
    assert calls_of_keras == ["BatchNormalization"] * 2
    np.testing.assert_allclose(*made, atol=1e-6)


def test_means_are_those_of_numpy():
    x = np.random.default_rng(0).normal(5, 1, size=(64, 9, 9, 3)).astype(np.float32)
    expected = x.astype(np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(channel_means(ops.convert_to_tensor(x)), expected, rtol=5e-6)


def exact_gelu(x):
    """By the definition, in double precision; with the derivative."""
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    return x * below, below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def test_gelu_and_its_gradient():
    x = np.concatenate([np.linspace(-7, 7, 2001), [-1e4, -100, -20, 20, 100, 1e4]])
    y, dx = results(Activation("gelu"), ops.cast(x, "float32"))
    upstream = np.asarray(drawn(x.shape, 1))
    value, slope = exact_gelu(x.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(y, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dx, upstream * slope, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gelu_in_half_precision(dtype):
    ours, plain = (cls("gelu", dtype=dtype) for cls in (Activation, keras.layers.Activation))
    check(ours, plain, drawn((4, 50), dtype=dtype), {"float16": 3e-3, "bfloat16": 3e-2}[dtype])


def test_who_computes_activations(calls_of_keras):
    for activation in ("gelu", "relu", "silu", None):
        del calls_of_keras[:]
        results(Activation(activation), drawn((4, 5)))
        assert bool(calls_of_keras) == (activation != "gelu"), activation
    del calls_of_keras[:]
    Activation("gelu")(drawn((4, 5)))
    assert bool(calls_of_keras) == (BACKEND != "jax")  # outside the engine's block


@pytest.mark.parametrize("ties", [False, True])
def test_global_maximum(ties, calls_of_keras):
    x = drawn((3, 4, 5, 6))
    x = ops.round(x) if ties else x  # equal maxima share the gradient
    check(GlobalMaxPooling2D(), keras.layers.GlobalMaxPooling2D(), x)
    assert calls_of_keras == ["GlobalMaxPooling2D"]
    half = {"dtype": "float16"}
    check(
        GlobalMaxPooling2D(**half), keras.layers.GlobalMaxPooling2D(**half), ops.cast(x, "float16")
    )


@pytest.mark.parametrize(
    "options", [{"keepdims": True}, {"data_format": "channels_first"}], ids=str
)
def test_other_global_maxima_are_left_to_keras(options, calls_of_keras):
    x = drawn((3, 4, 5, 6))
    check(GlobalMaxPooling2D(**options), keras.layers.GlobalMaxPooling2D(**options), x)
    assert calls_of_keras == ["GlobalMaxPooling2D"] * 2


def test_written_as_plain_layers(tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = Activation("gelu")(BatchNormalization()(inputs))
    model = keras.Model(inputs, GlobalMaxPooling2D()(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in loaded.layers)
    x = drawn((3, 6, 6, 2))
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    np.testing.assert_allclose(gelu(x), keras.activations.gelu(x, approximate=False), atol=1e-6)
