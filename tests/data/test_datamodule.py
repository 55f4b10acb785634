"""What a Trainer takes as data: modules, pairs of arrays, tf.data datasets."""

import random

import keras
import numpy as np
import pytest

from fmnist_keras3 import ArrayData, DataModule, UserError, seed_everything
from fmnist_keras3.data import given
from fmnist_keras3.data.given import as_datamodule

N = 200


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N, 8, 8, 3), np.uint8), np.arange(N, dtype=np.int64) % 4


@pytest.fixture
def tf():
    from fmnist_keras3.runtime import import_tensorflow_for_data

    return import_tensorflow_for_data()


def equal(module, pair):
    data = module.source.train
    assert np.array_equal(data.x, pair[0])
    assert np.array_equal(data.y, pair[1])
    assert data.y.dtype == np.int32


def test_a_pair_is_a_module(pair):
    equal(as_datamodule(pair), pair)
    module = ArrayData(*pair)
    assert as_datamodule(module) is module


@pytest.mark.parametrize("batch", [None, 1, 7, N])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_a_dataset_is_read_as_it_is_batched(tf, pair, batch, drop_remainder):
    dataset = tf.data.Dataset.from_tensor_slices(pair)
    kept = N
    if batch:
        dataset = dataset.batch(batch, drop_remainder=drop_remainder)
        kept = N - N % batch if drop_remainder else N
    equal(as_datamodule(dataset), (pair[0][:kept], pair[1][:kept]))


def test_one_hot_labels_are_no_batch(tf, pair):
    hot = np.eye(4, dtype=np.float32)[pair[1]]
    module = as_datamodule(tf.data.Dataset.from_tensor_slices((pair[0], hot)))
    assert np.array_equal(module.source.train.y, hot)


def test_datasets_that_cannot_be_read_are_told(tf, pair):
    dataset = tf.data.Dataset.from_tensor_slices(pair)
    for made, words in (
        (dataset.repeat(), "never ends"),
        (dataset.take(0), "is empty"),
        (dataset.map(lambda x, y: (x, y, y, y)), "must give .x, y."),
    ):
        with pytest.raises(UserError, match=words):
            as_datamodule(made)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("batch", [None, 4])
def test_inputs_and_targets_of_one_length_are_no_batch_by_that(tf, built, batch):
    """An autoencoder's 8 x 8 images: 36 examples, not 288 of 8 numbers."""
    x = np.random.default_rng(0).random((36, 8, 8), np.float32)
    model = keras.Sequential([keras.Input((8, 8))] * built + [keras.layers.Dense(8)])
    dataset = tf.data.Dataset.from_tensor_slices((x, x))
    if batch:
        dataset = dataset.batch(batch, drop_remainder=True).prefetch(1)
    module = as_datamodule(dataset, model=model)
    assert np.array_equal(module.source.train.x, x)
    assert batch is None or module.batch_size == batch


def test_a_dataset_of_unknown_length_is_read_so_far(tf, monkeypatch):
    def endless():
        while True:
            yield np.zeros(100, np.float32), 0

    signature = (tf.TensorSpec((100,), tf.float32), tf.TensorSpec((), tf.int32))
    dataset = tf.data.Dataset.from_generator(endless, output_signature=signature)
    assert len(as_datamodule(dataset.take(20)).train) == 18
    monkeypatch.setattr(given, "MAX_EXAMPLES", 50)
    with pytest.raises(UserError, match=r"read for 51 examples .*take\(N\).*assert_cardinality"):
        as_datamodule(dataset)
    monkeypatch.setattr(given, "MAX_BYTES", 10 * 404)
    with pytest.raises(UserError, match="read for 11 examples"):
        as_datamodule(dataset)
    known = dataset.take(60).apply(tf.data.experimental.assert_cardinality(60))
    assert len(as_datamodule(known).source.train) == 60


def test_splits_are_read_when_they_are_asked_for(pair):
    module = ArrayData(*pair, batch_size=8, augment="flip")
    assert repr(module) == "ArrayData(not read yet, batch_size=8, augment='flip')"
    assert len(module.train) == 180
    assert repr(module).startswith("ArrayData(180 train, 20 validation, batch_size=8")
    assert module.setup("fit") is module.setup(stage="test") is module
    assert not hasattr(module, "trian")
    broken = ArrayData(*pair, batch_size=1000)
    for _ in range(2):
        with pytest.raises(UserError, match="batch_size 1000 is larger"):
            len(broken.train)


def test_labels_with_an_axis_of_one_are_split_as_those_without(pair):
    x, y = pair
    plain, one = ArrayData(x, y, validation=0.3), ArrayData(x, y[:, None], validation=0.3)
    assert np.array_equal(one.validation.x, plain.validation.x)
    assert np.array_equal(one.train.y[:, 0], plain.train.y)
    assert np.bincount(plain.validation.y).tolist() == [15] * 4


def test_a_split_is_the_same_as_ever(pair):
    x, y = np.arange(40), pair[1][:40]
    of_classes = [8, 13, 14, 26, 27, 36, 37, 39]
    of_all = [2, 3, 22, 26, 34, 37]
    for labels, held in ((y, of_classes), (y.astype(np.float32), of_all), (np.eye(4)[y], of_all)):
        assert ArrayData(x, labels, batch_size=8, validation=0.15).validation.x.tolist() == held


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_whole_numbers_of_which_each_is_rare_are_split_as_one(pair, shape):
    module = ArrayData(pair[0], np.arange(N).reshape(shape), validation=0.1)
    assert len(module.validation) == 20


@pytest.mark.parametrize("hook", ["train_dataloader", "prepare_data", "setup"])
def test_a_module_of_lightnings_form_is_told(hook):
    with pytest.raises(UserError, match=rf"no hook {hook} here. It is load\(\)"):
        type("Mine", (DataModule,), {hook: lambda self: None})


def test_other_things_are_named():
    with pytest.raises(UserError, match="Cannot train on a list"):
        as_datamodule([1, 2])


def test_seed_everything_seeds_all_generators():
    draws = []
    for _ in range(2):
        assert seed_everything(7) == 7
        backend = np.asarray(keras.ops.convert_to_numpy(keras.random.normal((3,))))
        layer = keras.layers.Dense(3)
        layer.build((1, 2))
        initial = np.asarray(layer.kernel.value).ravel()
        draws.append((random.random(), np.random.random(), *backend.tolist(), *initial.tolist()))
    assert draws[0] == draws[1]
    with pytest.raises(UserError, match="seed is -1"):
        seed_everything(-1)
