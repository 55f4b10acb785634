"""Our Conv2D and MaxPooling2D give what Keras' own give: values, gradients, files.

All cases of one kind are one compiled program for our layers and one for Keras', since compiling
is what takes the time. "Fast" is the form that engines trace for XLA on a CPU.
"""

import functools
import json
import math
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from fmnist_keras3.layers.fast import (
    Conv2D,
    Conv2DTranspose,
    MaxPooling2D,
    accelerate,
    traced_for_xla_cpu,
)
from fmnist_keras3.layers.winograd import winograd_conv

BACKEND = keras.backend.backend()
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}  # of the largest value


def conv(kernel, padding="valid", channels=3, filters=4, **options):
    name = "-".join(str(value) for value in (kernel, padding, channels, *options.items()))
    arguments = {"filters": filters, "kernel_size": kernel, "padding": padding, **options}
    return pytest.param((7, 6, channels), arguments, id=name.replace(" ", ""))


FAST_CONVS = [
    conv(kernel, padding, channels)
    for kernel in (1, 2, 3, 5, (3, 5))
    for padding in ("same", "valid")
    for channels in ((1, 3, 8, 16) if kernel == 3 else (3, 16))
] + [
    conv(3, channels=3, activation="relu"),
    conv(3, channels=16, activation="tanh"),
    conv(3, channels=3, use_bias=False),
    conv((5, 2), "same", channels=16, use_bias=False, activation="relu"),
    conv((7, 6), channels=16),  # a kernel as large as the image
    # By Winograd's algorithm, whose windows reach over the edge of 7 rows.
    conv(3, "same", channels=32, filters=32),
    conv(3, "valid", channels=32, filters=40, use_bias=False, activation="relu"),
]
# By blocks of pixels, whole or not, of images of 7 and 6 pixels.
STRIDES = [
    conv(kernel, padding, 3, strides=strides)
    for kernel in (1, 2, 3, (5, 4))
    for padding in ("same", "valid")
    for strides in (2, (1, 2), 3)
]
FAST_CONVS += [
    *STRIDES,
    conv(3, "same", channels=16, strides=2, activation="tanh"),
    conv(5, "same", channels=32, filters=32, strides=2),  # of 3x3 blocks, by Winograd's algorithm
]
TRANSPOSED = [
    *STRIDES,
    conv(3, "same"),
    conv(3, "valid", channels=16, activation="relu"),
    conv(4, "same", channels=16, strides=2, use_bias=False),
]
PLAIN_TRANSPOSED = [
    conv(3, "same", strides=2, output_padding=1),
    conv(3, "valid", dilation_rate=2),
    conv(3, "same", channels=16, strides=2, data_format="channels_first"),
]
PLAIN_CONVS = [
    conv(3, "same", channels=16, dilation_rate=2),
    conv(3, "valid", dilation_rate=(1, 2)),
    conv(3, "same", channels=16, groups=4),
    conv(3, "same", channels=2, groups=2),
    conv(3, "valid", channels=16, data_format="channels_first"),
]
HALF_CONVS = [
    conv(3, "same", channels=3),
    conv(5, "valid", channels=8, activation="relu"),
    conv(3, "same", channels=16),
    conv(2, "valid", channels=16, activation="relu"),
    conv(3, "same", channels=32, filters=32),
]


def pool(shape, **options):
    name = "-".join(str(value) for value in (shape[:2], *options.items()))
    return pytest.param(shape, options, id=name.replace(" ", ""))


FAST_POOLS = [
    pool((8, 6, 3), pool_size=2),
    pool((9, 7, 3), pool_size=2),  # the last row and column belong to no window
    pool((9, 7, 3), pool_size=3),
    pool((6, 9, 3), pool_size=3, padding="same"),
    pool((8, 5, 1), pool_size=(2, 1)),
    pool((7, 8, 2), pool_size=(1, 4), padding="same"),
    pool((5, 5, 2), pool_size=1),
    pool((6, 6, 2), pool_size=6),
    pool((8, 6, 3), pool_size=2, strides=2),
]
PLAIN_POOLS = [
    pool((9, 7, 3), pool_size=2, padding="same"),
    pool((9, 7, 3), pool_size=3, strides=2),
    pool((9, 7, 3), pool_size=3, strides=2, padding="same"),
    pool((8, 6, 3), pool_size=2, strides=1),
    pool((8, 6, 3), pool_size=(2, 1), strides=(1, 2)),
    pool((2, 9, 7), pool_size=2, data_format="channels_first"),
]


class Normal(keras.initializers.Initializer):
    def __init__(self, rng):
        self.rng = rng

    def __call__(self, shape, dtype=None):
        return _array(self.rng.normal(size=shape), dtype)


def _array(values, dtype):
    if BACKEND == "jax":
        return ops.convert_to_tensor(values.astype(np.dtype(dtype)))
    return ops.cast(values, dtype)


class Program:
    """Layers of one class, each with an input and an upstream gradient, to be run all at once."""

    def __init__(self, cls, cases, dtype="float32"):
        self.ids = [case.id for case in cases]
        self.layers, self.inputs, self.upstream = [], [], []
        for position, case in enumerate(cases):
            shape, options = case.values
            # Drawn by NumPy throughout: JAX would compile a program a shape to draw or to cast.
            rng = np.random.default_rng(position)
            if issubclass(cls, (keras.layers.Conv2D, keras.layers.Conv2DTranspose)):
                normal = Normal(rng)
                options = {**options, "kernel_initializer": normal, "bias_initializer": normal}
            layer = cls(**options, dtype=dtype)
            layer.build((None, *shape))
            out = layer.compute_output_shape((2, *shape))
            self.layers.append(layer)
            # No two pixels are equal, so that a maximum has one gradient; the steps fit float16.
            pixels = rng.permutation(2 * math.prod(shape)).reshape(2, *shape) / 128 - 1
            self.inputs.append(_array(pixels, layer.compute_dtype))
            self.upstream.append(_array(rng.normal(size=out), layer.compute_dtype))

    def run(self, compiled):
        """Return per case the output and the gradients of input, kernel and bias."""
        weights = [[w.value for w in layer.trainable_weights] for layer in self.layers]
        run = _compiled(self._run) if compiled else self._run
        results = run(self.inputs, weights, self.upstream)
        return {
            name: [np.asarray(value).astype(np.float32) for value in result]
            for name, result in zip(self.ids, results, strict=True)
        }

    def _run(self, inputs, weights, upstream):
        arguments = zip(self.layers, inputs, weights, upstream, strict=True)
        return [_value_and_gradients(*each) for each in arguments]


def _value_and_gradients(layer, x, weights, upstream):
    if BACKEND == "jax":
        import jax

        def forward(x, weights):
            y, _ = layer.stateless_call(weights, [], x)
            return ops.sum(ops.cast(y * upstream, "float32")), y

        (dx, dw), y = jax.grad(forward, argnums=(0, 1), has_aux=True)(x, weights)
        return [y, dx, *dw]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = ops.sum(ops.cast(y * upstream, "float32"))
    # TensorFlow's tapes know the variables themselves, and Keras' autocast is for them only.
    return [y, *tape.gradient(total, [x, *(w.value for w in layer.trainable_weights)])]


def _compiled(function):
    if BACKEND == "jax":
        import jax

        # Compiled in haste: the code runs once.
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return jax.jit(function, compiler_options=options)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def _trace(function, *arrays):
    if BACKEND == "jax":
        import jax

        return jax.eval_shape(function, *arrays)
    import tensorflow as tf

    return tf.function(function).get_concrete_function(*arrays)


class Results:
    """Makes each program's results when a test first asks for them."""

    def __init__(self):
        self._made = {}

    def keras(self, cls, cases, dtype="float32", compiled=BACKEND == "jax"):
        """Of Keras' own layer; TensorFlow need not compile that."""
        return self(cls, cases, dtype, compiled)

    def __call__(self, cls, cases, dtype="float32", compiled=True, fast=True):
        key = (cls, id(cases), dtype, compiled, fast)
        if key not in self._made:
            with traced_for_xla_cpu(fast):
                self._made[key] = Program(cls, cases, dtype).run(compiled)
        return self._made[key]


@pytest.fixture(scope="module")
def results():
    return Results()


def check(ours, theirs, dtype="float32"):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(b).max()))


@pytest.mark.parametrize(("shape", "options"), FAST_CONVS)
def test_fast_convolution(results, request, shape, options):
    case = request.node.callspec.id
    check(
        results(Conv2D, FAST_CONVS)[case],
        results.keras(keras.layers.Conv2D, FAST_CONVS)[case],
    )


@pytest.mark.parametrize(("shape", "options"), TRANSPOSED)
def test_fast_transposed_convolution(results, request, shape, options):
    case = request.node.callspec.id
    check(
        results(Conv2DTranspose, TRANSPOSED)[case],
        results.keras(keras.layers.Conv2DTranspose, TRANSPOSED)[case],
    )


@pytest.mark.parametrize("fast", [True, False], ids=["traced for XLA:CPU", "outside"])
@pytest.mark.parametrize(("shape", "options"), HALF_CONVS)
def test_convolution_not_compiled(results, request, shape, options, fast):
    case = request.node.callspec.id.removesuffix("-outside").removesuffix("-traced for XLA:CPU")
    check(
        results(Conv2D, HALF_CONVS, compiled=False, fast=fast)[case],
        results.keras(keras.layers.Conv2D, HALF_CONVS)[case],
    )


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("shape", "options"), HALF_CONVS)
def test_convolution_in_half_precision(results, request, shape, options, dtype):
    case = request.node.callspec.id.removesuffix(f"-{dtype}")
    check(
        results(Conv2D, HALF_CONVS, dtype)[case],
        results.keras(keras.layers.Conv2D, HALF_CONVS, dtype)[case],
        dtype.removeprefix("mixed_"),
    )


@pytest.mark.parametrize("compute", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_dtypes_are_those_of_keras(compute):
    x = np.zeros((1, 6, 6, 16), np.float32)
    with traced_for_xla_cpu():
        for ours, plain in [
            (Conv2D, keras.layers.Conv2D),
            (MaxPooling2D, keras.layers.MaxPooling2D),
        ]:
            arguments = (2, 3) if ours is Conv2D else (2,)
            a, b = ours(*arguments, dtype=compute), plain(*arguments, dtype=compute)
            assert a(x).dtype == b(x).dtype
            assert [w.dtype for w in a.weights] == [w.dtype for w in b.weights]


@pytest.mark.parametrize(("shape", "options"), PLAIN_CONVS)
def test_other_convolutions_are_left_to_keras(results, request, shape, options):
    case = request.node.callspec.id
    ours = results(Conv2D, PLAIN_CONVS)[case]
    theirs = results.keras(keras.layers.Conv2D, PLAIN_CONVS, compiled=True)[case]
    check(ours, theirs)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "not compiled"])
@pytest.mark.parametrize(("shape", "options"), FAST_POOLS)
def test_fast_pooling(results, request, shape, options, compiled):
    case = request.node.callspec.id.removesuffix("-not compiled").removesuffix("-compiled")
    ours = results(MaxPooling2D, FAST_POOLS, compiled=compiled)[case]
    theirs = results.keras(keras.layers.MaxPooling2D, FAST_POOLS)[case]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("shape", "options"), PLAIN_POOLS)
def test_other_pooling_is_left_to_keras(results, request, shape, options):
    case = request.node.callspec.id
    ours = results(MaxPooling2D, PLAIN_POOLS)[case]
    check(ours, results.keras(keras.layers.MaxPooling2D, PLAIN_POOLS)[case])


@pytest.fixture
def calls_of_keras(monkeypatch):
    """The list of calls that our layers pass on to Keras' own."""
    calls = []

    def record(cls, method):
        original = getattr(cls, method)

        @functools.wraps(original)
        def recorded(self, *args, **kwargs):
            calls.append(type(self).__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, method, recorded)

    record(keras.layers.Conv2D, "convolution_op")
    record(keras.layers.Conv2DTranspose, "call")
    record(keras.layers.MaxPooling2D, "call")
    return calls


FORMS = [
    *[(Conv2D, case, True) for case in FAST_CONVS[:4] + HALF_CONVS],
    *[(Conv2D, case, True) for case in STRIDES[:3]],
    *[(Conv2D, case, False) for case in PLAIN_CONVS if "data_format" not in case.values[1]],
    *[(Conv2DTranspose, case, True) for case in TRANSPOSED[-3:]],
    *[(Conv2DTranspose, case, False) for case in PLAIN_TRANSPOSED[:2]],
    *[(MaxPooling2D, case, True) for case in FAST_POOLS],
    *[(MaxPooling2D, case, False) for case in PLAIN_POOLS if "data_format" not in case.values[1]],
]


@pytest.mark.parametrize("traced", [True, False])
def test_who_takes_the_fast_form(calls_of_keras, traced):
    # JAX on a CPU always compiles with XLA; TensorFlow only where the engine says so.
    for cls, case, can_be_fast in FORMS:
        shape, options = case.values
        del calls_of_keras[:]
        with traced_for_xla_cpu(traced):
            _trace(cls(**options), np.zeros((2, *shape), np.float32))
        fast = can_be_fast and (traced or BACKEND == "jax")
        assert bool(calls_of_keras) == (not fast), (case.id, traced)


def test_the_fast_form_ends_with_its_block(calls_of_keras):
    layer = Conv2D(2, 3)
    with pytest.raises(RuntimeError), traced_for_xla_cpu():
        raise RuntimeError
    layer(np.zeros((1, 5, 5, 16), np.float32))
    assert bool(calls_of_keras) == (BACKEND != "jax")


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow's own pooling is for GPUs, too")
def test_on_a_gpu_pooling_alone_takes_the_fast_form(calls_of_keras, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with traced_for_xla_cpu(False):
        _trace(MaxPooling2D(2), np.zeros((2, 6, 6, 3), np.float32))
        assert not calls_of_keras
        _trace(Conv2D(2, 3), np.zeros((2, 6, 6, 16), np.float32))
        assert calls_of_keras == ["Conv2D"]


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((12, 12, 32), {}, True),
        ((7, 7, 64), {"padding": "same"}, True),
        ((12, 12, 31), {}, False),
        ((12, 12, 32), {"filters": 31}, False),
        ((12, 12, 32), {"kernel_size": (3, 1)}, False),
        ((3, 3, 32), {"padding": "same"}, False),  # of 4x4 outputs, seven would be thrown away
        ((12, 12, 32), {"dtype": "mixed_bfloat16"}, False),  # the transforms would round
    ],
    ids=str,
)
@pytest.mark.parametrize("pooled", [False, True])
def test_who_is_convolved_by_winograds_algorithm(monkeypatch, shape, options, expected, pooled):
    calls = []

    def recorded(*args):
        calls.append(args)
        return winograd_conv(*args)

    monkeypatch.setattr("fmnist_keras3.layers.kernels.winograd_conv", recorded)
    layer = Conv2D(**{"filters": 32, "kernel_size": 3, **options})
    inputs = keras.Input(shape)
    layer(inputs)
    pairs = {layer: (1, 1)} if pooled else {}
    with traced_for_xla_cpu(pooled=pairs):
        _trace(layer, np.zeros((2, *shape), np.float32))
    # Pooled, no window is thrown away.
    assert bool(calls) == (expected or (pooled and shape[0] == 3))


def test_sizes_known_only_when_called(calls_of_keras):
    def network(conv, pooling):
        inputs = keras.Input((None, None, 16))
        x = conv(4, 3, padding="same", name="conv")(inputs)
        return keras.Model(inputs, pooling(2)(x))

    with traced_for_xla_cpu():
        ours = network(Conv2D, MaxPooling2D)
        assert ours.output_shape == (None, None, None, 4)
        plain = network(keras.layers.Conv2D, keras.layers.MaxPooling2D)
        plain.set_weights(ours.get_weights())
        for size in (6, 9):
            x = np.random.default_rng(size).normal(size=(2, size, size + 1, 16)).astype(np.float32)
            np.testing.assert_allclose(ours(x), plain(x), atol=1e-5)
        if BACKEND == "tensorflow":
            import tensorflow as tf

            signature = [tf.TensorSpec((None, None, None, 16), tf.float32)]
            any_size = tf.function(ours, input_signature=signature)
            del calls_of_keras[:]
            np.testing.assert_allclose(any_size(x), plain(x), atol=1e-5)
            assert {"Conv2D", "MaxPooling2D"} <= set(calls_of_keras)


def test_any_batch_size_with_one_trace():
    with traced_for_xla_cpu():
        inputs = keras.Input((8, 8, 16))
        model = keras.Model(inputs, MaxPooling2D(2)(Conv2D(3, 3, padding="same")(inputs)))
        assert model.output_shape == (None, 4, 4, 3)
        x = np.random.default_rng(0).normal(size=(3, 8, 8, 16)).astype(np.float32)
        np.testing.assert_allclose(model(x[:1]), model(x)[:1], atol=1e-5)


def test_the_gradient_of_equal_pixels_goes_to_the_first():
    cases = [pool((6, 6, 2), pool_size=size) for size in (2, 3)] + [pool((34, 34, 1), pool_size=17)]
    gradients = []
    for cls in (MaxPooling2D, keras.layers.MaxPooling2D):
        program = Program(cls, cases)
        program.inputs = [ops.ones_like(x) for x in program.inputs]
        with traced_for_xla_cpu():
            gradients.append({name: made[1] for name, made in program.run(compiled=True).items()})
    for name, upstream in zip(program.ids, program.upstream, strict=True):
        np.testing.assert_array_equal(gradients[0][name], gradients[1][name])
        assert np.count_nonzero(gradients[0][name]) == math.prod(upstream.shape)


def test_clones_and_configurations_are_of_our_kind():
    layer = Conv2D(3, (3, 5), padding="same", activation="relu", name="conv")
    assert type(Conv2D.from_config(layer.get_config())) is Conv2D
    assert layer.get_config() == keras.layers.Conv2D(**layer.get_config()).get_config()


# A process where this package cannot be imported reads the file: the answer must be the same.
READER = """
import json, sys

class Refuse:
    def find_spec(self, name, *_):
        assert not name.startswith("fmnist_keras3"), "the file needs our package"

sys.meta_path.insert(0, Refuse())
import keras, numpy as np

model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], np.asarray(model(np.load(sys.argv[2]))))
print(json.dumps([type(layer).__module__ for layer in model.layers]))
"""


def small_model():
    inputs = keras.Input((9, 8, 3))
    x = Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    x = MaxPooling2D(2, name="pool")(x)
    x = keras.Sequential([keras.Input((4, 4, 16)), Conv2D(4, 2, name="second")], name="nested")(x)
    x = Conv2DTranspose(2, 3, strides=2, name="third")(x)
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, path = small_model(), tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return model, path


def images():
    return np.random.default_rng(0).normal(size=(5, 9, 8, 3)).astype(np.float32)


def test_files_need_keras_only(saved, tmp_path):
    model, path = saved
    with zipfile.ZipFile(path) as archive:
        assert b"fmnist_keras3" not in archive.read("config.json")
    np.save(tmp_path / "x.npy", images())
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(path), "x.npy", "y.npy"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert all(module.startswith("keras.") for module in json.loads(done.stdout))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(images()), atol=1e-5)


def test_loaded_models_are_accelerated_in_place(saved, calls_of_keras):
    model, path = saved
    loaded = keras.saving.load_model(path)
    assert not any(isinstance(layer, Conv2D) for layer in loaded._flatten_layers())
    weights = loaded.weights
    assert accelerate(loaded) is loaded
    for ours, theirs in zip(model._flatten_layers(), loaded._flatten_layers(), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, (Conv2D, MaxPooling2D)):
            assert ours.get_config() == theirs.get_config()
    assert all(a is b for a, b in zip(weights, loaded.weights, strict=True))
    with traced_for_xla_cpu():
        del calls_of_keras[:]
        np.testing.assert_array_equal(loaded(images()), model(images()))
        assert not calls_of_keras


def test_an_accelerated_model_is_written_as_a_plain_one(saved, tmp_path):
    loaded = accelerate(keras.saving.load_model(saved[1]))
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    kinds = {type(layer) for layer in again._flatten_layers()}
    assert {keras.layers.Conv2D, keras.layers.MaxPooling2D} <= kinds
    assert not kinds & {Conv2D, MaxPooling2D}
