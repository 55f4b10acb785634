"""The generated garments: same seed, same bytes; balanced, shuffled, learnable, never shared."""

import numpy as np
import pytest

from fmnist_keras3.data.dataset import FASHION_CLASSES, Split
from fmnist_keras3.data.synthetic import generate


@pytest.fixture(scope="module")
def data():
    return generate(seed=1, train=2_000, test=500)


def pictures(split: Split) -> set[bytes]:
    return {picture.tobytes() for picture in split.x}


def test_says_what_it_is(data):
    assert data.name == "synthetic"
    assert data.source == "generated garments, seed 1"
    assert data.class_names == FASHION_CLASSES
    assert data.sha256 is not None
    assert len(data.sha256) == 64
    assert "Fashion-MNIST" in data.note


@pytest.mark.parametrize(("part", "size"), [("train", 2_000), ("test", 500)])
def test_bright_garments_on_black(data, part, size):
    split = getattr(data, part)
    assert split.x.shape == (size, 28, 28, 1)
    assert split.x.dtype == np.uint8
    assert split.y.shape == (size,)
    assert split.y.dtype == np.int32
    assert split.x.max() == 255
    covered = (split.x > 0).mean(axis=(1, 2, 3))
    assert covered.min() > 0.04  # the thinnest sandals
    assert covered.max() < 0.98
    assert np.all(split.x.max(axis=(1, 2, 3)) > 40)


def test_same_seed_same_bytes():
    one, two = generate(5, 40, 30), generate(5, 40, 30)
    assert one.sha256 == two.sha256
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(one, part).x, getattr(two, part).x)
        np.testing.assert_array_equal(getattr(one, part).y, getattr(two, part).y)


def test_other_seed_other_pictures():
    one, two = generate(5, 40, 30), generate(6, 40, 30)
    assert one.sha256 != two.sha256
    assert not pictures(one.train) & pictures(two.train)


def test_size_of_one_split_does_not_change_the_other():
    small, large = generate(2, 20, 30), generate(2, 90, 30)
    np.testing.assert_array_equal(small.test.x, large.test.x)
    np.testing.assert_array_equal(small.test.y, large.test.y)


def test_no_picture_twice(data):
    train, test = pictures(data.train), pictures(data.test)
    assert len(train) == len(data.train)
    assert len(test) == len(data.test)
    assert not train & test


@pytest.mark.parametrize("size", [10, 11, 29, 100])
def test_balanced_to_within_one(size):
    data = generate(0, size, 10)
    counts = np.bincount(data.train.y, minlength=10)
    assert counts.sum() == size
    assert np.ptp(counts) == (size % 10 > 0)
    assert sorted(data.test.y) == list(range(10))


def test_shuffled(data):
    # In class order, or one class after the other, this would be near 0.9 or 0.
    same_as_before = np.mean(data.train.y[1:] == data.train.y[:-1])
    assert 0.05 < same_as_before < 0.15


def test_classes_can_be_told_apart(data):
    train, test = (split.x.reshape(len(split), -1) / 255 for split in (data.train, data.test))
    means = np.stack([train[data.train.y == label].mean(axis=0) for label in range(10)])
    nearest = ((test[:, None] - means) ** 2).sum(axis=-1).argmin(axis=-1)
    assert 0.5 < np.mean(nearest == data.test.y) < 0.95


@pytest.mark.parametrize("sizes", [{"train": 9}, {"test": 0}, {"train": -1}])
def test_a_split_too_small_is_refused(sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}={size}: give at least 10"):
        generate(**sizes)
