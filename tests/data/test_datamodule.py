"""What a Trainer takes as data: modules, pairs of arrays, tf.data datasets."""

import random

import keras
import numpy as np
import pytest

from fmnist_keras3 import ArrayData, UserError, seed_everything
from fmnist_keras3.data.datamodule import as_datamodule

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
        (dataset.map(lambda x, y: x), "must give .x, y."),
    ):
        with pytest.raises(UserError, match=words):
            as_datamodule(made)


def test_other_things_are_named():
    with pytest.raises(UserError, match="Cannot train on a list"):
        as_datamodule([1, 2])


def test_seed_everything_seeds_all_generators():
    draws = []
    for _ in range(2):
        assert seed_everything(7) == 7
        backend = np.asarray(keras.ops.convert_to_numpy(keras.random.normal((3,))))
        draws.append((random.random(), np.random.random(), *backend.tolist()))
    assert draws[0] == draws[1]
    with pytest.raises(UserError, match="seed is -1"):
        seed_everything(-1)
