"""Augmentations against slow NumPy ones, compiled and not, and on the other backend, to the bit."""

import hashlib

import keras
import numpy as np
import pytest

from fmnist_keras3.data.augment import AUGMENTATIONS, Crop, Erase, Flip, parse_augment
from fmnist_keras3.errors import UserError

# Every registered augmentation must be here, in the forms in which it is used.
FORMS = {"flip": ["flip", "flip:1"], "crop": ["crop", "crop:1", "crop:8"], "erase": ["erase:1"]}
SHAPES = [(28, 28, 1), (7, 10, 3), (5, 4, 1)]  # smaller than a crop's pads, too
ALL = [text for forms in FORMS.values() for text in forms]
IMAGES = 40


def slow_flip(image, draw, _):
    return image[:, ::-1] if draw == 1 else image


def slow_crop(image, draw, augmentation):
    height, width, _ = image.shape
    p, (top, left) = augmentation.pixels, draw
    padded = np.pad(image, [(p, p), (p, p), (0, 0)])
    return padded[top : top + height, left : left + width]


def slow_erase(image, draw, _):
    top, bottom, left, right, grey = draw
    image = image.copy()
    image[top:bottom, left:right] = grey
    return image


SLOW = {"flip": slow_flip, "crop": slow_crop, "erase": slow_erase}


def sample(text, shape):
    ((name, augmentation),) = parse_augment(text)
    rng = np.random.default_rng(ALL.index(text))
    images = rng.integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    return name, augmentation, images, augmentation.draw(rng, IMAGES, *shape[:2])


def digests():
    """Of every form's results; also run on the other backend."""
    found = []
    for text in ALL:
        for shape in SHAPES:
            _, augmentation, images, draws = sample(text, shape)
            changed = np.asarray(augmentation.apply(images, draws))
            found.append(hashlib.sha256(changed.tobytes()).hexdigest())
    return found


def compiled(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def test_every_augmentation_is_tested():
    assert set(FORMS) == set(SLOW) == set(AUGMENTATIONS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", ALL)
def test_equal_to_the_slow_one(text, shape):
    name, augmentation, images, draws = sample(text, shape)
    assert draws.dtype == np.int32
    pairs = zip(images, draws, strict=True)
    expected = np.stack([SLOW[name](image, draw, augmentation) for image, draw in pairs])
    changed = np.asarray(augmentation.apply(images, draws))
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, expected)
    assert not np.array_equal(changed, images)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_equals_not_compiled(shape):
    samples = [sample(text, shape)[1:] for text in ALL]
    augmentations = [augmentation for augmentation, _, _ in samples]

    def everything(images, draws):
        arguments = zip(augmentations, images, draws, strict=True)
        return [augmentation.apply(x, drawn) for augmentation, x, drawn in arguments]

    images, draws = [x for _, x, _ in samples], [drawn for _, _, drawn in samples]
    results = compiled(everything)(images, draws)
    for text, a, b in zip(ALL, results, everything(images, draws), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=text)


def test_equal_on_every_backend(other_backend):
    assert digests() == other_backend(digests)


def test_how_often_and_how_far():
    rng = np.random.default_rng(0)
    n = 20_000
    assert Flip(0.3).draw(rng, n, 28, 28).mean() == pytest.approx(0.3, abs=0.02)
    offsets = Crop(2).draw(rng, n, 28, 28)
    for axis in (0, 1):
        np.testing.assert_allclose(np.bincount(offsets[:, axis]) / n, [0.2] * 5, atol=0.02)
    top, bottom, left, right, grey = Erase(0.4).draw(rng, n, 28, 20).T
    erased = bottom > top
    assert erased.mean() == pytest.approx(0.4, abs=0.02)
    assert top.min() >= 0
    assert left.min() >= 0
    assert bottom.max() == 28
    assert right.max() == 20
    assert (right > left).all()
    assert (grey.min(), grey.max()) == (0, 255)
    area = ((bottom - top) * (right - left))[erased] / (28 * 20)
    assert area.min() > 0.005
    assert area.max() < 0.45
    assert area.mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("text", [None, "", "none", " none ", ","])
def test_none(text):
    assert parse_augment(text) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flip", [("flip", Flip(0.5))]),
        ("crop:3, flip:0.25", [("crop", Crop(3)), ("flip", Flip(0.25))]),
        ("erase:1,crop,flip:0", [("erase", Erase(1.0)), ("crop", Crop(2)), ("flip", Flip(0.0))]),
    ],
)
def test_parsed_in_the_order_given(text, expected):
    assert list(parse_augment(text)) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("flop", ["'flop'", "Did you mean 'flip'?", "flip, crop, erase", "--augment"]),
        ("flip,none", ["'none'", "--augment"]),
        ("flip,flip:0.2", ["'flip'", "twice"]),
        ("crop:0", ["crop:0", "from 1 to 8"]),
        ("crop:9", ["crop:9", "from 1 to 8"]),
        ("crop:1.5", ["'1.5'", "whole number"]),
        ("flip:1.1", ["flip:1.1", "probability 0..1"]),
        ("flip:nan", ["flip:nan", "probability 0..1"]),
        ("erase:-0.1", ["erase:-0.1", "probability 0..1"]),
        ("erase:much", ["'much'", "probability 0..1"]),
    ],
)
def test_refused(text, parts):
    with pytest.raises(UserError) as refusal:
        parse_augment(text)
    for part in parts:
        assert part in str(refusal.value)
