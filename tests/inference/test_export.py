"""`export` and `fmnist export`: a file computes what its model does, or there is none."""

import importlib.util
import json
import shutil
import zipfile

import keras
import numpy as np
import onnx
import pytest
import yaml
from keras import layers

from fmnist_keras3 import (
    ArrayData,
    Module,
    Trainer,
    UserError,
    build_model,
    export,
    load_model,
    load_run,
)
from fmnist_keras3.cli import main
from fmnist_keras3.data.dataset import FASHION_CLASSES
from fmnist_keras3.inference import export as module
from fmnist_keras3.inference import to_onnx, to_saved_model
from fmnist_keras3.inference.forms import ACTIVATIONS
from fmnist_keras3.inference.graph import operations
from fmnist_keras3.layers.keras_private import all_layers
from fmnist_keras3.runtime import import_tensorflow_for_data

OTHERS = ("litert", "openvino")  # whose packages need not be there
EXACT = [name for name in module.FORMATS if name not in ("html", *OTHERS)]  # html: test_page


def need(format):
    """Skip a test where a package of the format is missing."""
    for package in module.FORMATS[format][2]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


MODELS = {
    "baseline": "",
    "cnn": "",
    "lenet": "",
    "airnet": ":widths=8-12",
    "resnet": ":depth=8,width=4,activation=gelu",
    "wrn": ":depth=10,width=1",
}


def stirred(model, most=0.2):
    """The model with other numbers in every weight, so that none can be left out unseen."""
    rng = np.random.default_rng(0)
    for layer in all_layers(model):
        for weight in getattr(layer, "_trainable_variables", []):
            given = np.asarray(weight)
            weight.assign(given + rng.uniform(-most, most, given.shape).astype(given.dtype))
        for name in ("moving_mean", "moving_variance"):
            if hasattr(layer, name):
                getattr(layer, name).assign(rng.uniform(0.3, 1.5, getattr(layer, name).shape))
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data):
    """What a training leaves, as far as an export looks at it."""
    folder = tmp_path_factory.mktemp("runs") / "a[b]"
    folder.mkdir()
    model = build_model("lenet", dropout=0.3)
    x, y = tiny_data
    model.fit(x[:64], y[:64], batch_size=32, verbose=0)
    model.save(folder / "model.keras")
    (folder / "config.yaml").write_text("data: synthetic\n")
    (folder / "summary.json").write_text(json.dumps({"dataset": {"classes": FASHION_CLASSES}}))
    return folder


@pytest.fixture
def pixels():
    """A few images in the place of the data set's, so that the models have less to do."""
    return np.random.default_rng(1).integers(0, 256, (6, 28, 28, 1), np.uint8)


@pytest.fixture
def quick(monkeypatch, pixels):
    labels = np.zeros(len(pixels), np.int32)
    found = module.Images(pixels, module.RANDOM, labels, np.concatenate([pixels] * 3))
    monkeypatch.setattr(module, "_images", lambda *_: found)
    monkeypatch.setattr(module, "IMAGES", len(pixels))
    monkeypatch.setattr(module, "BATCH", 3)
    return pixels


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_the_same_in_each_format(name, tmp_path, quick):
    model = stirred(build_model(f"{name}{MODELS[name]}", dropout=0.2), 0.02)
    expected = np.asarray(model.predict_on_batch(quick.astype(np.float32)))
    for format in EXACT:
        suffix = module.FORMATS[format][1]
        made = export(model, tmp_path / f"{format}{suffix}", format, outputs="logits")
        assert (made.changed, made.images, made.format) == (0, 6, format)
        assert made.difference <= 2e-5
        found = module.named(module.FORMATS[format][0]).read(made.path)(quick)
        assert np.abs(found - expected).max() <= 2e-5
    kinds = {node.op_type for node in onnx.load(tmp_path / "onnx.onnx").graph.node}
    assert not kinds & {"BatchNormalization", "Dropout"}
    assert len(onnx.load(tmp_path / "onnx.onnx").graph.node) < 100
    assert len(list(tmp_path.iterdir())) == len(EXACT)


@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_the_same_by_other_runtimes(name, format, tmp_path, quick):
    need(format)
    model = stirred(build_model(f"{name}{MODELS[name]}", dropout=0.2), 0.02)
    made = export(model, tmp_path / f"m{module.FORMATS[format][1]}", format, outputs="logits")
    assert (made.changed, made.images, made.format) == (0, 6, format)
    assert made.difference <= 2e-5
    assert len(list(tmp_path.iterdir())) == 1


def net(*made, shape=(11, 10, 3)):
    """A classifier of the layers ``made``, one after the other."""
    x = inputs = keras.Input(shape)
    for layer in made:
        x = layer(x)
    x = x if len(x.shape) == 2 else layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(4)(x))


def branches(merge):
    x = inputs = keras.Input((11, 10, 3))
    parts = [layers.Conv2D(4, 3, padding="same")(x), layers.Conv2D(4, 1)(x), layers.Dense(4)(x)]
    merged = merge(parts if not isinstance(merge, layers.Subtract) else parts[:2])
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 2)(merged)))


def excited():
    """Squeeze and excitation: two shapes that are multiplied, one with maps channels last."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="silu")(inputs)
    gate = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    other = layers.GlobalMaxPooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(gate)])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Add()([x, other]))))


def nested():
    """A model that is used twice inside another, with a sequential one inside."""
    inside = keras.Sequential([layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()])
    inner = keras.Input((8, 8, 3))
    block = keras.Model(inner, layers.Add()([inside(inner), inner]))
    inputs = keras.Input((8, 8, 3))
    x = block(layers.ReLU()(block(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def two_takers():
    """A convolution that may not take in the normalisation: another layer sees it without."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(inputs)
    x = layers.Concatenate()([layers.BatchNormalization()(x), x, layers.Rescaling(2, 1)(x)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def normalised():
    layer = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25])
    return net(layer, layers.Conv2D(2, 3))


def of_whole_numbers():
    inputs = keras.Input((6, 6, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255, -0.5)(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


same = {"padding": "same"}
MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
SMALL = {
    "strides": lambda: net(
        layers.Conv2D(4, 3, strides=2), layers.Conv2D(3, (2, 3), strides=(1, 2))
    ),
    "strides, same": lambda: net(
        layers.Conv2D(4, 3, strides=2, **same), layers.Conv2D(3, 4, strides=(3, 1), **same)
    ),
    "dilation": lambda: net(layers.Conv2D(4, 3, dilation_rate=(2, 3), **same), layers.ReLU()),
    "dilation, valid": lambda: net(layers.Conv2D(4, (2, 3), dilation_rate=2, use_bias=False)),
    "groups": lambda: net(layers.Conv2D(6, 3, groups=3, activation="relu")),
    "depthwise": lambda: net(layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, **same)),
    "separable": lambda: net(layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="tanh")),
    "max": lambda: net(layers.Conv2D(3, 1), layers.MaxPooling2D(3, 2, "same")),
    "max, valid": lambda: net(layers.MaxPooling2D((2, 3), (3, 1)), layers.BatchNormalization()),
    "average": lambda: net(layers.AveragePooling2D(3, 2, "same"), layers.AveragePooling2D(2)),
    "global": lambda: net(layers.Conv2D(5, 3), layers.GlobalMaxPooling2D(keepdims=True)),
    "global average": lambda: net(layers.GlobalAveragePooling2D()),
    "norm, dense": lambda: net(
        layers.Flatten(), layers.Dense(6), layers.BatchNormalization(), layers.LeakyReLU(0.1)
    ),
    "norm, map": lambda: net(
        layers.Conv2D(4, 3), layers.BatchNormalization(scale=False), layers.ReLU(6)
    ),
    "norm, relu": lambda: net(
        layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(center=False)
    ),
    "norm twice": lambda: net(
        layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Rescaling([1, 2, 3, 4], 1)
    ),
    "norm last": lambda: keras.Sequential(
        [keras.Input((20,)), layers.Dense(4), layers.BatchNormalization()]
    ),
    "reshape": lambda: net(
        layers.Reshape((5, -1, 2)), layers.Conv2D(3, 2), layers.Reshape((-1, 3))
    ),
    "permute": lambda: net(layers.Conv2D(4, 3), layers.Permute((3, 1, 2)), layers.Conv2D(2, 3)),
    "edges": lambda: net(
        layers.ZeroPadding2D(((1, 2), (0, 3))),
        layers.Conv2D(4, 3),
        layers.Cropping2D(((1, 0), (2, 3))),
    ),
    "rescaling": lambda: net(layers.Rescaling([0.1, 0.2, 0.3], [1, 2, 3]), layers.Conv2D(2, 3)),
    "normalization": normalised,
    "rows": lambda: net(
        layers.Dense(5, activation="relu"), layers.BatchNormalization(), shape=(7, 6)
    ),
    "flat": lambda: net(layers.Dense(5, activation="elu"), layers.ELU(0.5), shape=(12,)),
    "training only": lambda: net(
        layers.GaussianNoise(1.0), layers.SpatialDropout2D(0.5), layers.Identity()
    ),
    "softmax layer": lambda: net(layers.Conv2D(3, 3), layers.Softmax(), layers.ReLU(None, 0.1)),
    "nothing": lambda: keras.Sequential([keras.Input((5,)), layers.Dropout(0.5)]),
    "excited": excited,
    "nested": nested,
    "two takers": two_takers,
    "whole numbers": of_whole_numbers,
    "fast forms": lambda: net(layers.Conv2D(3, 3, activation="relu"), layers.MaxPooling2D(2)),
    **{kind: lambda kind=kind: branches(getattr(layers, kind)()) for kind in MERGES},
    "joined rows": lambda: branches(layers.Concatenate(axis=1)),
    **{
        name: lambda name=name: net(
            # Of exp the outputs would be so large that rounding is all there is to see.
            layers.Rescaling(0.1 if name == "exponential" else 1),
            layers.Conv2D(3, 3, activation=name),
            layers.AveragePooling2D(8),
            layers.Activation(name),
        )
        for name in ACTIVATIONS.values()
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_is_the_same_by_onnx_and_by_tensorflow(name, tmp_path):
    model = stirred(SMALL[name]())
    # Greys of a few units only: of exp and its kin, more would be infinite.
    images = np.random.default_rng(2).integers(0, 4, (5, *model.input_shape[1:]), np.uint8)
    expected = np.asarray(model(images.astype(np.float32), training=False))
    assert len(np.unique(expected)) > 2
    about = {"model": model.name, "outputs": "logits"}
    to_onnx.write(model, tmp_path / "small.onnx", False, 1, about)
    read = to_onnx.read(tmp_path / "small.onnx")
    found = to_saved_model.compute(
        import_tensorflow_for_data(), operations(model, False), images
    ).numpy()
    size = max(1.0, np.abs(expected).max() / 10)
    assert np.abs(read(images) - expected).max() <= 2e-5 * size
    assert np.abs(read(images[:1]) - expected[:1]).max() <= 2e-5 * size
    assert np.abs(found - expected).max() <= 2e-5 * size


@pytest.mark.slow
@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize("name", SMALL)
def test_every_layer_is_the_same_by_other_runtimes(name, format, tmp_path):
    need(format)
    model = stirred(SMALL[name]())
    images = np.random.default_rng(2).integers(0, 4, (5, *model.input_shape[1:]), np.uint8)
    expected = np.asarray(model(images.astype(np.float32), training=False))
    writer = module.named(module.FORMATS[format][0])
    path = tmp_path / f"small{module.FORMATS[format][1]}"
    about = {"model": model.name, "outputs": "logits", "classes": ["a"]}
    writer.write(model, path, False, 1, about)
    read = writer.read(path)
    size = max(1.0, np.abs(expected).max() / 10)
    assert np.abs(read(images) - expected).max() <= 2e-5 * size
    assert np.abs(read(images[:1]) - expected[:1]).max() <= 2e-5 * size


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class Halved(keras.Model):
    def call(self, x):
        return super().call(x) / 2


def called_in_training():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True))


def with_operator():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(inputs) * 2)


def halved():
    inputs = keras.Input((4,))
    return Halved(inputs, layers.Dense(3)(inputs))


def two_refused():
    return net(Doubled(name="twice"), layers.LayerNormalization(name="layer_norm"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (two_refused, r"twice \(.*Doubled\); layer_norm \(.*LayerNorm.*--format keras"),
        (lambda: net(layers.Conv2D(2, 3, activation=lambda x: x + 1, name="odd")), "odd .*lambda"),
        (lambda: net(layers.BatchNormalization(axis=1)), "axis is 1"),
        (lambda: net(layers.ReLU(threshold=1.0)), "threshold"),
        (lambda: net(layers.ReLU(max_value=3)), "largest value"),
        (lambda: net(layers.MaxPooling2D(2, data_format="channels_first")), "channels come first"),
        (lambda: net(layers.Flatten(data_format="channels_first")), "channels come first"),
        (lambda: net(layers.UpSampling2D(2)), "UpSampling2D"),
        (called_in_training, "more than its inputs"),
        (with_operator, r"multiply\w* .*Multiply"),
        (halved, "no functional or sequential model"),
    ],
)
def test_what_is_not_known_exactly_is_refused_by_name(make, said):
    with pytest.raises(UserError, match=said):
        operations(make(), False)


class Own(Module):
    """A Module with a block of its own inside, and a head."""

    def __init__(self):
        super().__init__()
        self.block = keras.Sequential([layers.Conv2D(3, 3, padding="same"), layers.ReLU()])
        self.scaled, self.pool, self.flat = (
            layers.Rescaling(1 / 255),
            layers.MaxPooling2D(2),
            layers.Flatten(),
        )
        self.drop, self.head, self.softmax = layers.Dropout(0.5), layers.Dense(4), layers.Softmax()

    def call(self, x, training=None):
        maps = self.scaled(x)
        maps = self.pool(layers.add([self.block(maps), self.block(maps)]))
        return self.head(self.drop(self.flat(maps), training=training))

    def training_step(self, batch):
        x, y = batch
        losses = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
        return keras.ops.mean(losses)

    def configure_optimizers(self):
        return keras.optimizers.Adam(1e-3)


class Told(Own):
    """Whose predictions are probabilities."""

    def predict_step(self, batch):
        return self.softmax(self(batch, training=False))


class Looped(Own):
    def call(self, x):
        return super().call(x) if float(x[0, 0, 0, 0]) > 1 else self.head(self.flat(x))


@pytest.mark.parametrize("kind", [Own, Told])
def test_a_module_whose_prediction_is_layers_is_exported(kind, tmp_path, quick):
    made = kind()
    labels = np.arange(len(quick), dtype=np.int32) % 4
    trainer = Trainer(1, enable_progress_bar=False, barebones=True)
    trainer.fit(made, ArrayData(quick, labels, batch_size=3, validation=0))
    expected = trainer.predict(made, quick)
    for format in EXACT:
        path = tmp_path / f"{format}{module.FORMATS[format][1]}"
        outputs = "logits" if kind is Own else "probabilities"
        result = export(made, path, format, outputs=outputs)
        assert result.difference <= 2e-5
        found = module.named(module.FORMATS[format][0]).read(path)(quick)
        assert np.abs(found - expected).max() <= 2e-5
    assert type(made) is kind


def test_a_module_that_does_more_is_refused(tmp_path, quick):
    made = Looped()
    with pytest.raises(UserError, match="not known what images Looped takes"):
        export(made, tmp_path / "m.onnx")
    with pytest.warns(UserWarning, match="unbuilt state"):  # of which there is none left
        made.build((None, 28, 28, 1))
    with pytest.raises(UserError, match="Looped cannot be exported: its predict_step may only"):
        export(made, tmp_path / "m.onnx")
    assert type(made) is Looped
    assert list(tmp_path.iterdir()) == []


def test_a_weight_of_a_layer_that_is_used_twice_is_stored_once(tmp_path):
    to_onnx.write(nested(), tmp_path / "m.onnx", False, 1, {"model": "m", "outputs": "logits"})
    kernels = [w for w in onnx.load(tmp_path / "m.onnx").graph.initializer if len(w.dims) == 4]
    assert len(kernels) == 1


def test_the_file_tells_what_it_takes_and_gives(run, tmp_path):
    made = export(run, tmp_path / "m.onnx")
    assert made.data == "generated images of synthetic"
    assert made.class_names == FASHION_CLASSES
    assert made.size == made.path.stat().st_size
    file = onnx.load(made.path)
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(told["classes"]) == list(FASHION_CLASSES)
    (takes,), (gives,) = file.graph.input, file.graph.output
    assert takes.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in takes.type.tensor_type.shape.dim] == [
        "batch", 28, 28, 1
    ]  # fmt: skip
    assert (takes.name, gives.name) == ("pixels", "probabilities")
    found = to_onnx.read(made.path)(np.zeros((3, 28, 28, 1), np.uint8))
    assert np.abs(found.sum(1) - 1).max() < 1e-6


def test_the_saved_model_and_the_keras_file_tell_their_classes(run, tmp_path):
    made = export(load_run(run), tmp_path / "saved", "saved_model")
    told = json.loads((made.path / to_saved_model.ABOUT).read_text())
    assert told["classes"] == list(FASHION_CLASSES)
    made = export(run / "model.keras", tmp_path / "m.keras", "keras")
    with zipfile.ZipFile(made.path) as archive:
        told = json.loads(archive.read("metadata.json"))
    assert told["fmnist"]["classes"] == list(FASHION_CLASSES)
    again = load_model(made.path)
    assert getattr(again, "optimizer", None) is None
    assert again.layers[-1].name == "probabilities"


def test_the_files_of_other_runtimes_tell_their_classes(run, tmp_path):
    need("litert")
    made = export(run, tmp_path / "m.tflite", "litert")
    with zipfile.ZipFile(made.path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(FASHION_CLASSES)
        assert json.loads(archive.read("about.json"))["outputs"] == "probabilities"


def test_the_folder_for_openvino_tells_its_classes(run, tmp_path):
    need("openvino")
    import openvino

    made = export(run, tmp_path / "vino", "openvino")
    assert sorted(path.name for path in made.path.iterdir()) == ["model.bin", "model.xml"]
    read = openvino.Core().read_model(made.path / "model.xml")
    assert json.loads(read.get_rt_info(["model_info", "classes"]).astype(str)) == [*FASHION_CLASSES]
    assert str(read.inputs[0].partial_shape) == "[?,28,28,1]"
    assert read.inputs[0].element_type == openvino.Type.u8


@pytest.mark.parametrize("format", module.CALIBRATED)
def test_of_8_bits_the_accuracy_is_told(format, run, quick, tmp_path, capsys, monkeypatch):
    need(format)
    monkeypatch.setattr(module, "MOST_CHANGED", 1)  # of a model that is sure of nothing
    monkeypatch.setattr(module, "MOST_LOST", 1)
    path = tmp_path / f"m{module.FORMATS[format][1]}"
    plain = export(run, tmp_path / f"plain{path.suffix}", format)
    words = ["export", str(run), "--format", format, "--output", str(path), "--quantize", "int8"]
    assert main(words) == 0
    assert "accuracy, before and in 8 bits: " in capsys.readouterr().out
    assert path.stat().st_size < 0.4 * plain.size
    if format == "onnx":
        kinds = {node.op_type for node in onnx.load(path).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(told["classes"]) == list(FASHION_CLASSES)


def test_what_8_bits_spoil_is_not_kept(run, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    module._check_int8(path, 12, 1000, (0.9, 0.897))
    module._check_int8(path, 1, 100, (0.9, 0.87))  # three images
    with pytest.raises(module.Inexact, match="13 of 1000 labels changed"):
        module._check_int8(path, 13, 1000, None)
    with pytest.raises(module.Inexact, match=r"accuracy is 89.60 %, the model's 90.00 %"):
        module._check_int8(path, 12, 1000, (0.9, 0.896))
    monkeypatch.setattr(module, "MOST_CHANGED", -1)
    with pytest.raises(module.Inexact):
        export(run, path, quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_8_bits_are_refused_without_images_and_for_formats_without(run, tmp_path):
    model = net(layers.Conv2D(2, 3))
    with pytest.raises(UserError, match=r"trained on, \(11, 10, 3\), which were"):
        export(model, tmp_path / "m.onnx", quantize="int8")
    with pytest.raises(UserError, match=r"trained on.*--data fashion_mnist"):
        # Of a file nobody knows what it was trained on.
        export(load_model(run), tmp_path / "m.onnx", quantize="int8")
    with pytest.raises(
        UserError, match=r"openvino has weights of 32 bits only.*html, onnx, litert"
    ):
        export(run, tmp_path / "vino", "openvino", quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_for_the_hub_has_a_model_card(run, tmp_path):
    made = export(run, tmp_path / "hub", "hub")
    files = ["README.md", "classes.json", "config.json", "metadata.json", "model.weights.h5"]
    assert sorted(path.name for path in made.path.iterdir()) == files
    assert made.size == sum((made.path / name).stat().st_size for name in files)
    _, head, text = (made.path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "keras"
    assert "model-index" not in yaml.safe_load(head)
    assert "No test was recorded." in text
    assert "Ankle boot) with 61,706 parameters" in text
    told = {"name": "fashion_mnist", "classes": FASHION_CLASSES}
    summary = {"dataset": told, "test_accuracy": 0.9, "test_loss": 0.25, "backend": "jax"}
    tested = tmp_path / "tested"
    shutil.copytree(run, tested)
    (tested / "summary.json").write_text(json.dumps(summary))
    (tested / "config.yaml").write_text("data: synthetic\nepochs: 3\nema: null\n")
    score = {"name": "a|b", "precision": 0.5, "recall": 0.25, "f1": 0.333, "support": 4}
    scores = {"per_class": [score], "macro": score, "examples": 10, "calibration_error": 0.011}
    (tested / "evaluation.json").write_text(json.dumps(scores))
    made = export(tested, tmp_path / "hub2", "hub")
    _, head, text = (made.path / "README.md").read_text().split("---\n", 2)
    (result,) = yaml.safe_load(head)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert result["dataset"] == {"name": "fashion_mnist", "type": "fashion_mnist", "split": "test"}
    assert "accuracy 90.00 %, loss 0.2500, expected calibration error 1.10 %" in text
    assert "| a\\|b | 0.500 | 0.250 | 0.333 | 4 |" in text
    assert "- epochs: 3\n- backend: jax\n" in text
    assert "ema" not in text
    summary["dataset"]["name"] = "synthetic"
    (tested / "summary.json").write_text(json.dumps(summary))
    text = (export(tested, tmp_path / "hub3", "hub").path / "README.md").read_text()
    assert "**Trained on generated garments" in text
    assert "model-index" not in text


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_a_model_of_16_bits_is_exported_in_float32(policy, tmp_path, quick):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = net(layers.Conv2D(3, 3), layers.BatchNormalization(), shape=(28, 28, 1))
    finally:
        keras.config.set_dtype_policy(before)
    for format in ("keras", "onnx"):
        suffix = module.FORMATS[format][1]
        assert export(model, tmp_path / f"m{suffix}", format).difference <= 2e-5
    policies = {layer.dtype_policy.name for layer in all_layers(load_model(tmp_path / "m.keras"))}
    assert policies == {"float32"}
    assert model.layers[1].dtype_policy.name == policy


def test_a_model_that_ends_in_softmax(tmp_path, quick):
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")]
    )
    made = export(model, tmp_path / "m.onnx")
    assert made.class_names == ("0", "1", "2")
    with pytest.raises(UserError, match="no logits"):
        export(model, tmp_path / "n.onnx", outputs="logits")


@pytest.mark.parametrize("format", EXACT)
def test_of_a_model_trained_on_pixels_divided_by_255_the_file_divides(
    format, quick, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = net(layers.Conv2D(2, 3, padding="same"), shape=(28, 28, 1))
    model.save("own.keras")
    words = ["export", "own.keras", "--format", format, "--outputs", "logits"]
    assert main([*words, "--scale", "1"]) == 0
    assert "--scale" not in capsys.readouterr().err
    (made,) = (path for path in tmp_path.iterdir() if path.name != "own.keras")
    found = module.named(module.FORMATS[format][0]).read(made)(quick)
    expected = np.asarray(model(quick.astype(np.float32) / 255))
    assert np.abs(found - expected).max() < 1e-5
    other = f"other{module.FORMATS[format][1]}"
    assert main([*words, "--output", other]) == 0
    assert "--scale 1" in capsys.readouterr().err


@pytest.mark.parametrize("format", EXACT)
def test_a_file_that_computes_something_else_is_not_kept(
    format, run, quick, tmp_path, monkeypatch, capsys
):
    writer = module.named(module.FORMATS[format][0])
    right = writer.write

    def wrong(model, path, softmax, factor, about):
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        bias = other.layers[-1].bias
        bias.assign(np.asarray(bias) + np.eye(10, dtype=np.float32)[0] * 1e-3)
        right(other, path, softmax, factor, about)

    monkeypatch.setattr(writer, "write", wrong)
    path = tmp_path / f"m{module.FORMATS[format][1]}"
    assert main(["export", str(run), "--format", format, "--output", str(path)]) == 1
    assert "was not kept: its outputs differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command(run, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run)]) == 0
    out = capsys.readouterr().out
    for said in ("model.keras", "batch of 3", " MB", " ms", "largest difference", "0 labels"):
        assert said in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert main(["export", str(run)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--format", "onx"],
            "'onx'; it must be onnx, keras, saved_model, litert, openvino, html or hub. Did you "
            "mean 'onnx'?",
        ),
        (["--outputs", "labels"], "probabilities or logits"),
        (["--output", "model.bin"], "must end in .onnx"),
        (["--format", "keras", "--output", "model.onnx"], "must end in .keras"),
        (["--output", "no/such/model.onnx"], "no folder"),
        ([], "does not exist"),
    ],
)
def test_bad_input_gets_one_message(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(UserError, match=r"onnxruntime, which is not .*'fmnist-keras3\[onnx\]'"):
        export("run", tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("format", "name"), [("litert", "ai_edge_litert"), ("openvino", "openvino")]
)
def test_a_missing_runtime_is_named_with_its_extra(format, name, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == name else find(one))
    said = rf"{name.replace('_', '-')}, which is not .*'fmnist-keras3\[{format}\]'"
    with pytest.raises(UserError, match=said):
        export("run", tmp_path / f"m{module.FORMATS[format][1]}", format)


def test_models_that_are_no_classifiers_of_one_image_are_refused(tmp_path):
    two = keras.Model([a := keras.Input((4,)), b := keras.Input((4,))], layers.add([a, b]))
    free = keras.Sequential([keras.Input((None, None, 1)), layers.GlobalMaxPooling2D()])
    maps = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3)])
    lost = net(layers.Conv2D(2, 3))
    lost.layers[1].set_weights([w * np.nan for w in lost.layers[1].get_weights()])
    for model, said in (
        (two, "one array"),
        (free, "of one size"),
        (maps, "row of logits"),
        (lost, "diverged"),
        (42, "one array"),
    ):
        with pytest.raises(UserError, match=said):
            export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
