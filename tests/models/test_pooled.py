"""A convolution computed together with the pooling after it gives what the plain layers give."""

import keras
import numpy as np
import pytest
from keras import ops

from fmnist_keras3.layers.fast import (
    Conv2D,
    MaxPooling2D,
    pooled_convolutions,
    traced_for_xla_cpu,
)

PLAIN = (keras.layers.Conv2D, keras.layers.MaxPooling2D)
BACKEND = keras.backend.backend()


def build(
    kinds=(Conv2D, MaxPooling2D),
    shape=(12, 11, 3),
    filters=4,
    kernel=3,
    padding="valid",
    pool_padding="valid",
    activation="relu",
    use_bias=True,
    dtype="float32",
):
    """A convolution and a pooling, with weights that follow from their shapes."""
    conv, pool = kinds
    inputs = keras.Input(shape, dtype=dtype)
    x = conv(filters, kernel, padding=padding, activation=activation, use_bias=use_bias)(inputs)
    model = keras.Model(inputs, pool(2, padding=pool_padding)(x))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def results(model, pooled, images=3):
    """Return the output and the gradients of input and weights, compiled by XLA."""
    rng = np.random.default_rng(1)
    dtype = model.inputs[0].dtype
    x = ops.cast(rng.normal(size=(images, *model.input_shape[1:])), dtype)
    upstream = ops.cast(rng.normal(size=(images, *model.output_shape[1:])), dtype)
    weights = [w.value for w in model.trainable_weights]

    if BACKEND == "jax":
        import jax

        def forward(x, weights):
            y, _ = model.stateless_call(weights, [], x)
            return ops.sum(y * upstream), y

        run = jax.jit(jax.grad(forward, argnums=(0, 1), has_aux=True))
        with traced_for_xla_cpu(True, pooled):
            (dx, dw), y = run(x, weights)
        made = [y, dx, *dw]
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x)
                total = ops.sum(y * upstream)
            return [y, *tape.gradient(total, [x, *(w.value for w in model.trainable_weights)])]

        with traced_for_xla_cpu(True, pooled):
            made = run(x)
    return [np.asarray(ops.cast(value, "float32")) for value in made]


def check(options, tolerance=2e-5):
    ours, plain = (
        build(**options),
        build(PLAIN, **options),
    )
    pooled = pooled_convolutions(ours)
    assert len(pooled) == 2
    for a, b in zip(results(ours, pooled), results(plain, None), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (height, width, channels), "kernel": kernel, "padding": padding}
        for (height, width) in ((12, 12), (13, 10))
        for channels in (1, 8, 9)
        for kernel in (3, (5, 3), 2)
        for padding in ("valid", "same")
        if channels != 8 or kernel == 3
    ]
    + [
        {"activation": None},
        {"activation": "relu", "use_bias": False},
        {"shape": (6, 6, 2), "kernel": 1},
        {"shape": (6, 6, 16), "kernel": 1},
        {"shape": (5, 5, 2), "kernel": 4},  # one window
        {"shape": (6, 6, 2), "kernel": 5},
        {"shape": (12, 12, 3), "padding": "same", "pool_padding": "same"},
        {"shape": (13, 10, 32), "filters": 33},  # by Winograd's algorithm
        {"shape": (13, 10, 32), "filters": 33, "padding": "same", "activation": None},
    ],
    ids=str,
)
def test_values_and_gradients(options):
    check(options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels", [2, 16])
def test_half_precision(dtype, channels):
    tolerance = {"float16": 1e-2, "bfloat16": 6e-2}[dtype]
    with_dtype = {"shape": (8, 8, channels), "dtype": dtype}
    keras.config.set_dtype_policy(dtype)
    try:
        check(with_dtype, tolerance)
    finally:
        keras.config.set_dtype_policy("float32")


def test_compiled_as_not_compiled():
    model = build(shape=(12, 12, 2))
    pooled = pooled_convolutions(model)
    x = np.random.default_rng(1).normal(size=(3, 12, 12, 2)).astype(np.float32)
    with traced_for_xla_cpu(True, pooled):
        eager = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(eager, results(model, pooled)[0], atol=2e-5)


def test_only_the_pair_found_is_computed_together():
    """Without `pooled`, or after the block, the layers of a pair work alone."""
    model = build()
    conv, pool = model.layers[1:]
    x = np.ones((1, *model.input_shape[1:]), np.float32)
    with traced_for_xla_cpu(True, pooled_convolutions(model)):
        assert conv(x).shape == (1, 5, 4, 4)
        assert pool(conv(x)).shape == (1, 5, 4, 4)
    with traced_for_xla_cpu():
        assert conv(x).shape == (1, 10, 9, 4)
        assert pool(conv(x)).shape == (1, 5, 4, 4)
    assert conv(x).shape == (1, 10, 9, 4)


def sequential():
    return keras.Sequential([keras.Input((8, 8, 1)), Conv2D(2, 3), MaxPooling2D()])


def nested():
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, keras.layers.Flatten()(sequential()(inputs)))


@pytest.mark.parametrize("make", [build, sequential, nested])
def test_pairs_are_found(make):
    model = make()
    pooled = pooled_convolutions(model)
    assert sorted(type(layer).__name__ for layer in pooled) == ["Conv2D", "MaxPooling2D"]
    assert set(pooled.values()) == {tuple(build().output_shape[1:3]) if make is build else (3, 3)}


@pytest.mark.parametrize(
    ("padding", "between", "expected"),
    [("valid", False, 6), ("same", False, 7), ("valid", True, 7)],
)
def test_what_the_next_pooling_drops_is_not_computed(padding, between, expected):
    """7x7 windows; the next convolution makes 5x5 of them, of which pooling takes 4x4."""

    def network(conv, pool):
        inputs = keras.Input((14, 14, 1))
        x = pool(name="first")(conv(2, 3, padding="same", activation="relu")(inputs))
        x = keras.layers.ReLU()(x) if between else x
        return keras.Model(inputs, pool()(conv(3, 3, padding=padding)(x)))

    ours, plain = (network(*k) for k in ((Conv2D, MaxPooling2D), PLAIN))
    pooled = pooled_convolutions(ours)
    assert pooled[ours.get_layer("first")] == (expected, expected)
    plain.set_weights(ours.get_weights())
    for a, b in zip(results(ours, pooled), results(plain, None), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def graph(change):
    """A model of a convolution and a pooling that must not be paired."""
    inputs = keras.Input((8, 8, 2))
    conv, pool = Conv2D(4, 3, padding="same", activation="relu"), MaxPooling2D()
    if change == "output of the model":
        x = conv(inputs)
        return keras.Model(inputs, [pool(x), x])
    if change == "a second taker":
        x = conv(inputs)
        return keras.Model(inputs, [pool(x), keras.layers.Flatten()(x)])
    if change == "convolution used twice":
        conv = Conv2D(2, 3, padding="same")
        return keras.Model(inputs, pool(conv(conv(inputs))))
    if change == "pooling used twice":
        return keras.Model(inputs, pool(conv(pool(inputs))))
    if change == "a layer between":
        return keras.Model(inputs, pool(keras.layers.BatchNormalization()(conv(inputs))))
    if change == "plain classes":
        x = keras.layers.Conv2D(4, 3)(inputs)
        return keras.Model(inputs, keras.layers.MaxPooling2D()(x))
    conv, pool = {
        "not monotone": (Conv2D(4, 3, activation="silu"), pool),
        "activity regularizer": (Conv2D(4, 3, activity_regularizer="l2"), pool),
        "strides": (Conv2D(4, 3, strides=2), pool),
        "groups": (Conv2D(4, 3, groups=2), pool),
        "windows of three": (conv, MaxPooling2D(3)),
        "overlapping windows": (conv, MaxPooling2D(2, strides=1)),
        "windows over the edge": (Conv2D(4, 2), MaxPooling2D(2, padding="same")),
    }[change]
    return keras.Model(inputs, pool(conv(inputs)))


@pytest.mark.parametrize(
    "change",
    [
        "output of the model",
        "a second taker",
        "convolution used twice",
        "pooling used twice",
        "a layer between",
        "plain classes",
        "not monotone",
        "activity regularizer",
        "strides",
        "groups",
        "windows of three",
        "overlapping windows",
        "windows over the edge",
    ],
)
def test_what_is_not_paired(change):
    model = graph(change)
    assert not pooled_convolutions(model)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    outside = model(x)
    with traced_for_xla_cpu(True, pooled_convolutions(model)):
        inside = model(x)
    for a, b in zip(keras.tree.flatten(outside), keras.tree.flatten(inside), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-5)


def test_a_pair_in_one_model_is_none_in_another():
    """A feature extractor ends at the convolution that another model pools."""
    model = build()
    assert not pooled_convolutions(keras.Model(model.inputs, model.layers[1].output))
    both = keras.Model(model.inputs, [model(model.inputs[0]), model.layers[1].output])
    assert not pooled_convolutions(both)


def test_a_model_without_a_graph_has_no_pairs():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = Conv2D(2, 3), MaxPooling2D()

        def call(self, x):
            return self.pool(self.conv(x))

    network = Network()
    network(np.zeros((1, 8, 8, 1), np.float32))
    assert not pooled_convolutions(network)
