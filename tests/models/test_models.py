"""What every registered model keeps to, and that `build_model` gives an ordinary Keras model."""

import hashlib
import inspect
import json

import keras
import numpy as np
import pytest

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.layers.fast import Conv2D
from fmnist_keras3.layers.initial import Dirac
from fmnist_keras3.models import MODELS, build_model, check_model, macs, model_label


def digest(arrays) -> str:
    joined = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(joined).hexdigest()


def digests_of_weights(seed):
    """By model, of the initial weights in their order; also run on the other backend."""
    return {name: digest(build_model(name, seed=seed).get_weights()) for name in MODELS}


def kernels(model):
    """Those that are trained and drawn; a Dirac one may be the identity under every seed."""
    return [
        layer.kernel
        for layer in model._flatten_layers()
        if hasattr(layer, "kernel")
        and layer.trainable
        and not isinstance(layer.kernel_initializer, Dirac)
    ]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build_model(request.param, seed=0)


def test_raw_pixels_in_logits_out(model):
    assert model.input_shape == (None, 28, 28, 1)
    assert model.output_shape == (None, 10)
    assert model.count_params() > 0
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    logits = np.asarray(model(pixels))
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).min() > 0  # the images tell
    np.testing.assert_array_equal(logits, model(pixels.astype(np.float32)))


def test_compiled_with_good_defaults(model):
    assert model.compiled
    assert isinstance(model.optimizer, keras.optimizers.AdamW)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    assert model.loss.from_logits


def test_a_seed_gives_the_same_weights(model):
    again, other = build_model(model.name, seed=0), build_model(model.name, seed=1)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(kernels(model), kernels(other), strict=True):
        assert not np.array_equal(np.asarray(a.value), np.asarray(b.value))


def test_other_sizes_and_classes(model):
    other = build_model(model.name, input_shape=(32, 36, 3), classes=4)
    assert other.input_shape == (None, 32, 36, 3)
    assert other.output_shape == (None, 4)


def test_dropout(model):
    dropouts = (keras.layers.Dropout, keras.layers.SpatialDropout2D)

    def found(built):
        return [layer for layer in built._flatten_layers() if isinstance(layer, dropouts)]

    default = MODELS[model.name].dropout
    assert {layer.rate for layer in found(model)} == ({default} if default else set())
    assert not found(build_model(model.name, dropout=0))
    some = found(build_model(model.name, dropout=0.25, seed=3))
    assert {layer.rate for layer in some} == {0.25}
    assert len({layer.seed for layer in some}) == len(some)  # each draws for itself


def test_l2(model):
    assert bool(model.losses) == bool(MODELS[model.name].l2)
    assert not build_model(model.name, l2=0).losses
    penalised = build_model(model.name, l2=0.01)
    trained = [v for v in penalised.trainable_variables if v.name == "kernel"]
    penalty = sum(0.01 * np.square(np.asarray(k.value)).sum() for k in trained)
    assert sum(float(loss) for loss in penalised.losses) == pytest.approx(penalty, rel=1e-5)


def test_draws_are_those_of_the_initializer(model):
    checked = 0
    for layer in model._flatten_layers():
        initializer = getattr(layer, "kernel_initializer", None)
        drawn = isinstance(initializer, keras.initializers.VarianceScaling)
        if not drawn or isinstance(initializer, Dirac):
            continue
        values = np.asarray(layer.kernel.value, np.float64)
        receptive = np.prod(values.shape[:-2])
        fan_in, fan_out = receptive * values.shape[-2], receptive * values.shape[-1]
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        std = np.sqrt(initializer.scale / fan[initializer.mode])
        # A uniform draw ends at sqrt(3) deviations, a truncated one at two of the untruncated.
        ends = {"uniform": 3**0.5, "truncated_normal": 2 / 0.8796, "untruncated_normal": np.inf}
        slack = 4 / np.sqrt(values.size)
        assert abs(values.mean()) < slack * std
        assert values.std() == pytest.approx(std, rel=slack)
        end = ends[initializer.distribution] * std
        assert np.abs(values).max() <= end * (1 + 1e-6)
        if values.size > 1_000 and np.isfinite(end):
            assert np.abs(values).max() > 0.97 * end
        checked += 1
    assert checked


@pytest.mark.parametrize(
    "initializer",
    [keras.initializers.HeNormal(seed=0), keras.initializers.GlorotUniform(seed=0)],
    ids=["he_normal", "glorot_uniform"],
)
def test_draws_spread_as_keras_would_spread_them(initializer):
    from fmnist_keras3.layers.initial import draw_weights

    inputs = keras.Input((6, 6, 20))
    layer = Conv2D(240, 5, kernel_initializer=initializer)
    model = keras.Model(inputs, layer(inputs))
    keras_own = np.abs(np.asarray(layer.kernel.value))
    draw_weights(model, seed=5)
    ours = np.abs(np.asarray(layer.kernel.value))
    assert not np.array_equal(ours, keras_own)
    grid = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(ours, grid), np.quantile(keras_own, grid), rtol=0.06)
    assert not np.asarray(layer.bias.value).any()


def test_weights_with_a_constant_initializer_stay():
    from fmnist_keras3.layers.initial import draw_weights

    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3, kernel_initializer="ones", bias_initializer="ones")
    model = keras.Model(inputs, keras.layers.BatchNormalization()(layer(inputs)))
    before = model.get_weights()
    draw_weights(model, seed=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_filters_pass_their_channels_through():
    model = build_model("airnet", widths=(12,), seed=1)
    kernel = np.asarray(model.get_layer("conv1a").kernel.value)  # 8 channels in, 12 out
    expected = np.zeros((3, 3, 8, 8), np.float32)
    expected[1, 1] = np.eye(8)
    np.testing.assert_array_equal(kernel[..., :8], expected)
    drawn = kernel[..., 8:]
    assert drawn.std() == pytest.approx(1 / np.sqrt(3 * 9 * 8), rel=0.2)
    keras_own = np.asarray(Dirac()((3, 3, 8, 12)))
    np.testing.assert_array_equal(keras_own[..., :8], kernel[..., :8])
    plain = build_model("airnet", widths=(12,), dirac=False).get_layer("conv1a").kernel
    assert np.asarray(plain.value)[..., :8].all()


def test_weights_are_equal_on_every_backend(on_tensorflow):
    assert digests_of_weights(7) == on_tensorflow(digests_of_weights, 7)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_bad_dropout(dropout):
    with pytest.raises(UserError, match=rf"dropout is {dropout}.*at least 0 and less than 1"):
        build_model("lenet", dropout=dropout)


@pytest.mark.parametrize("l2", [-1e-4, float("inf"), float("nan")])
def test_bad_l2(l2):
    with pytest.raises(UserError, match=rf"l2 is {l2}.*at least 0"):
        build_model("lenet", l2=l2)


def test_bad_seed():
    with pytest.raises(UserError, match="seed"):
        build_model("lenet", seed=-1)


@pytest.mark.parametrize(("given", "meant"), [("lent", "lenet"), ("base_line", "baseline")])
def test_unknown_name(given, meant):
    with pytest.raises(
        UserError, match=f"no model '{given}'. Did you mean '{meant}'.*fmnist models"
    ):
        build_model(given)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("airnet", 493_800),
        ("airnet:widths=8-16,whiten=3", None),
        ("airnet:whiten=0,activation=relu,bn_scale=1,bn_momentum=0.9,widths=4-4-4-4", None),
        ("resnet", 273_754),  # 272,474 on CIFAR with shortcuts of zeros and three channels
        ("resnet:depth=8,width=4,growth=1.5,activation=gelu", None),
        ("wrn:depth=10,width=1", None),
    ],
)
def test_options_are_read_from_the_name(text, parameters):
    name, values = check_model(text)
    model, same = build_model(text, seed=3), build_model(name, seed=3, **values)
    assert model.name == same.name == model_label(text)
    assert model.count_params() == (parameters or same.count_params())
    assert digest(model.get_weights()) == digest(same.get_weights())
    assert model(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 10)


def test_options_decide_the_layers():
    model = build_model("airnet:widths=8-16,whiten=3,activation=silu,bn_scale=1,bn_momentum=0.9")
    assert model.get_layer("whiten").kernel.shape == (3, 3, 1, 18)
    assert [model.get_layer(f"conv{i}b").filters for i in (1, 2)] == [8, 16]
    norm = model.get_layer("bn2a")
    assert norm.momentum == 0.9
    assert norm.gamma is not None
    assert model.get_layer("silu2b").activation is keras.activations.silu
    assert "whiten" not in {layer.name for layer in build_model("airnet", whiten=0).layers}
    for depth in (8, 14):
        convolutions = [
            layer.name
            for layer in build_model("resnet", depth=depth, width=2).layers
            if isinstance(layer, Conv2D) and layer.kernel_size == (3, 3)
        ]
        assert len(convolutions) == depth - 1
    model = build_model("resnet:depth=8,width=8,growth=1.4,activation=gelu")
    assert [model.get_layer(f"conv{stage}_1a").filters for stage in (1, 2, 3)] == [8, 11, 16]
    assert model.get_layer("gelu1_1a").activation is keras.activations.gelu


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("airnet:width=8", "no option 'width'. Did you mean 'widths'"),
        ("lenet:depth=3", "lenet has no option 'depth'. It has no options"),
        ("airnet:widths=8x8", "widths is '8x8'.*32-128-128"),
        ("airnet:widths=0-8", "widths is '0-8'.*at least 1"),
        ("airnet:whiten=4", "whiten is '4'. It must be one of 0, 2, 3"),
        ("airnet:activation=rellu", "'rellu'. Did you mean 'relu'"),
        ("airnet:bn_momentum=1.0", "at least 0 and less than 1"),
        ("airnet:dirac=2", "dirac is '2'; it must be 0 or 1"),
        ("airnet:dirac", "'dirac' without a value"),
        ("airnet:dirac=1,dirac=0", "'dirac' twice"),
        ("resnet:depth=21", "depth is '21'. It must be one of 8, 14, 20"),
        ("resnet:depth=20.0", "depth is '20.0'"),
        ("resnet:growth=0.5", "growth is '0.5'.*at least 1"),
    ],
)
def test_options_that_are_not_allowed(text, words):
    with pytest.raises(UserError, match=words):
        check_model(text)


def test_too_many_groups_for_the_images():
    with pytest.raises(UserError, match=r"5 groups.*halved only 4 times"):
        build_model("airnet", widths=(2,) * 5)
    with pytest.raises(UserError, match=r"widths is '2\.5'"):
        build_model("airnet", widths=(2.5,))


def test_every_model_is_described():
    for entry in MODELS.values():
        assert all(3 < len(option.about) < 60 for option in entry.options.values())
        assert 10 < len(entry.about) < 100
        assert 0 <= entry.dropout < 1
        assert entry.l2 >= 0


def test_macs_by_hand():
    lenet = 28 * 28 * 25 * 6 + 10 * 10 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10
    cnn = 26 * 26 * 9 * 32 + 11 * 11 * 9 * 32 * 64 + 1600 * 128 + 128 * 10
    assert macs(build_model("lenet")) == lenet == 416_520
    assert macs(build_model("cnn")) == cnn == 2_631_040


def predictions(path, data):
    """Of a saved model for images in a `.npy` file; also run on the other backend."""
    return np.asarray(keras.saving.load_model(path)(np.load(data))).tolist()


@pytest.fixture(scope="module")
def fitted(tiny_data):
    x, y = tiny_data
    model = build_model("lenet", dropout=0.1, l2=1e-4, seed=0)
    before = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    model.fit(x, y, batch_size=20, epochs=3, verbose=0)
    after = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    return model, before, after


def test_it_fits_with_keras_alone(fitted, tiny_data):
    model, before, after = fitted
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > before["accuracy"] + 0.2
    assert model.predict(tiny_data[0][:30], batch_size=30, verbose=0).shape == (30, 10)


def test_it_may_be_compiled_otherwise(tiny_data):
    x, y = tiny_data
    model = build_model("lenet", optimizer=keras.optimizers.SGD(0.05))
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.fit(x[:40], np.eye(10, dtype=np.float32)[y[:40]], batch_size=20, verbose=0)


def test_it_is_saved_and_loaded_on_the_other_backend(fitted, tiny_data, tmp_path, other_backend):
    model, x = fitted[0], tiny_data[0][:20]
    path, data = str(tmp_path / "model.keras"), str(tmp_path / "x.npy")
    model.save(path)
    np.save(data, x)
    expected = np.asarray(model(x))
    np.testing.assert_allclose(predictions(path, data), expected, atol=1e-5)
    np.testing.assert_allclose(other_backend(predictions, path, data), expected, atol=1e-5)


def test_json_round_trip():
    model = build_model("baseline")
    again = keras.models.model_from_json(model.to_json())
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert "fmnist_keras3" not in json.dumps(json.loads(model.to_json()))


def test_every_option_has_a_default():
    parameters = inspect.signature(build_model).parameters.values()
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters)
