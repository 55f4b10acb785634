"""Data that does not suit a model is refused by one message, before anything is compiled."""

import keras
import numpy as np
import pytest

from fmnist_keras3 import ArrayData, Trainer, UserError, build_model
from fmnist_keras3.training.check_data import check_inputs, check_split

N = 24
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (N, *(shape or (28, 28, 1)))).astype(dtype)


def labels(low=0, high=10):
    return np.resize(np.arange(low, high), N)


def dense(loss=SPARSE, **layer):
    """Six numbers to three outputs; never trained here."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, **layer)])
    model.compile("sgd", loss)
    return model


def with_values(array, *rows, value):
    array = array.copy()
    array[list(rows)] = value
    return array


@pytest.fixture(scope="module")
def lenet():
    return build_model("lenet")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return Trainer(1, run_dir=tmp_path_factory.mktemp("never") / "run")


X, Y = images(), labels()
NAN, INF = np.nan, np.inf
WHAT = {
    "from -1": ((X, with_values(Y, 3, 8, value=-1)), r"hold -1 in 2 of 24 examples \(rows 3, 8\)"),
    "from 1": ((X, labels(1, 11)), r"count from 1: type y - 1, for 0\.\.9"),
    "too many": ((X, with_values(Y, 5, value=12)), r"hold 12 in 1 of 24 .*\(row 5\).*10 outputs"),
    "fractions": ((X, Y + 0.5), r"hold 0\.5, 1\.5, .*classes 0\.\.9"),
    "one-hot": ((X, np.eye(10)[Y]), r"\[24, 10\], one-hot rows.*y\.argmax\(-1\)"),
    "strings": ((X, np.array(["a", "b"] * 12)), r"of dtype <U1, as 'a'.*np\.unique"),
    "objects": ((X, Y.astype(object)), r"labels are of dtype object"),
    "object images": ((X.astype(object), Y), r"inputs are of dtype object.*np\.asarray"),
    "flat": ((X.reshape(N, 784), Y), r"\[24, 784\].*x\.reshape\(-1, 28, 28, 1\)"),
    "colours": ((images(28, 28, 3), Y), r"takes \[N, 28, 28, 1\].*x\.mean\(-1, keepdims=True\)"),
    "size": ((images(32, 32, 1), Y), r"\[24, 32, 32, 1\].*input_shape=\(32, 32, 1\)"),
    "scaled": ((X / 255.0, Y), r"divides by 255 itself.*Leave out `/ 255`"),
    "from -1 to 1": ((X / 127.5 - 1, Y), r"in -1\.\.1, but .*Leave out `/ 255`, or what else"),
    "standardised": (
        ((X - 73.0) / 90, Y),
        r"in -0\.81111\.\.2\.0222, but .*Leave out what was done",
    ),
    "int8": ((X.astype(np.int8), Y), r"in -128\.\.127, but .*Leave out what was"),
    "16 bits": ((X.astype(np.uint16) * 257, Y), r"in 0\.\.65535, but .*\(x // 257\)"),
    "10 bits": ((X.astype(np.int32) * 4, Y), r"in 0\.\.1020, but .*Bring them to 0\.\.255"),
    "lists": ((X.tolist(), Y.tolist()), r"np\.asarray\(x\), np\.asarray\(y\)"),
    "nan": ((with_values(X.astype("float32"), 2, value=NAN), Y), r"inputs hold .*\(row 2\)"),
    "weights": ((X, Y, with_values(np.ones(N), 7, value=INF)), r"sample weights hold .*\(row 7\)"),
    "no targets": ((X, None), "has no targets"),
}


@pytest.mark.parametrize("name", WHAT)
def test_what_does_not_suit_the_model_is_told(lenet, trainer, name):
    data, words = WHAT[name]
    with pytest.raises(UserError, match=words):
        trainer.fit(lenet, data, validation_data=(X, Y))
    with pytest.raises(UserError, match=words):
        trainer.validate(lenet, data)
    if name not in ("lists", "nan"):  # of which the first is no data, the second fits a model
        with pytest.raises(UserError, match=words.replace("training", "validation")):
            trainer.fit(lenet, (X, Y), validation_data=data)
    assert not trainer.run_dir.exists()


@pytest.mark.parametrize("name", ["flat", "colours", "size", "scaled"])
def test_predict_wants_the_same_images(lenet, trainer, name):
    (x, _), words = WHAT[name]
    with pytest.raises(UserError, match=words):
        trainer.predict(lenet, x)


def test_numbers_for_a_categorical_loss_are_told():
    model = dense(keras.losses.CategoricalCrossentropy(from_logits=True))
    x, y = images(6, dtype=np.float32), labels(0, 3)
    data = ArrayData(x, y, batch_size=4).setup()
    with pytest.raises(UserError, match=r"keras\.utils\.to_categorical\(y, 3\)"):
        check_split(model, data.train, "training")
    check_split(model, ArrayData(x, np.eye(3)[y], batch_size=4).setup().train, "training")


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", SPARSE.__class__()])
@pytest.mark.parametrize("form", [lambda y: y[:, None], lambda y: y.astype("float32"), np.int64])
def test_labels_in_every_form_of_whole_numbers_suit_a_sparse_loss(loss, form):
    data = ArrayData(images(6, dtype=np.float32), form(labels(0, 3)), batch_size=4).setup()
    check_split(dense(loss, activation="softmax"), data.train, "training")
    other = ArrayData(images(6, dtype=np.float32), form(labels(0, 4)), batch_size=4)
    with pytest.raises(UserError, match="hold 3"):
        check_split(dense(loss), other.train, "test")


def test_ignored_labels_are_no_classes():
    model = dense(keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    y = with_values(labels(0, 3), 1, value=255)
    check_split(model, ArrayData(images(6), y, batch_size=4).train, "training")


def test_validation_data_has_the_shape_of_the_training_data(trainer):
    class Any(keras.Model):
        def call(self, x):
            return x

    model = Any()
    model.compile("sgd", "mse")
    x = images(6, dtype=np.float32)
    with pytest.raises(UserError, match=r"validation inputs have the shape \[N, 5\].*\[N, 6\]"):
        trainer.fit(model, (x, x), validation_data=(x[:, :5], x))
    with pytest.raises(UserError, match=r"validation labels have the shape \[N, 5\].*\[N, 6\]"):
        trainer.fit(model, (x, x), validation_data=(x, x[:, :5]))


@pytest.mark.parametrize(
    ("shape", "takes"), [((28, 28), (28, 28, 1)), ((6, 1), (6,)), ((), (1,)), ((5, 7), (None, 7))]
)
def test_what_keras_reshapes_is_taken(shape, takes):
    inputs = keras.Input(takes)
    check_inputs(keras.Model(inputs, keras.layers.Identity()(inputs)), np.zeros((N, *shape)))


def test_raw_pixels_in_floats_are_no_fractions(lenet):
    for x in (X.astype("float32"), (X > 99).astype("float32"), np.zeros((N, 28, 28, 1))):
        check_inputs(lenet, x)
    check_inputs(dense(), np.random.default_rng(0).random((N, 6)))


def test_images_without_a_channel_are_those_with_one():
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.compile("sgd", SPARSE)
    made = Trainer(1, barebones=True)
    flat, full = X[..., 0], X
    assert np.array_equal(made.predict(model, flat), made.predict(model, full))
    assert made.test(model, (flat, Y)) == made.test(model, (full, Y))
