"""Augmentations against slow NumPy ones, compiled and not, and on the other backend, to the bit."""

import hashlib
import math

import keras
import numpy as np
import pytest
from PIL import Image

from fmnist_keras3.data.arrays import ArrayData
from fmnist_keras3.data.augment import (
    AUGMENTATIONS,
    AlternatingFlip,
    Brightness,
    Contrast,
    Crop,
    CutMix,
    Cutout,
    Epoch,
    Erase,
    Flip,
    MixUp,
    Rotate,
    augmented,
    is_mixing,
    parse_augment,
    partners,
)
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.ground.errors import UserError

# Every registered augmentation must be here, in the forms in which it is used.
FORMS = {
    "flip": ["flip", "flip:1"],
    "altflip": ["altflip"],
    "crop": ["crop", "crop:1", "crop:8"],
    "rotate": ["rotate", "rotate:1", "rotate:180"],
    "brightness": ["brightness", "brightness:1"],
    "contrast": ["contrast", "contrast:1"],
    "erase": ["erase:1"],
    "cutout": ["cutout:3", "cutout"],
    "mixup": ["mixup", "mixup:10"],
    "cutmix": ["cutmix"],
}
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


def slow_rotate(image, draw, _):
    """Pixel by pixel, from places rounded to 1/128 of a pixel."""
    height, width, _ = image.shape
    (cos, sin), rotated = draw / 2**14, np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        y, x = row - (height - 1) / 2, column - (width - 1) / 2
        from_y = math.floor(128 * (cos * y + sin * x + (height - 1) / 2) + 0.5)
        from_x = math.floor(128 * (cos * x - sin * y + (width - 1) / 2) + 0.5)
        for i in (from_y // 128, from_y // 128 + 1):
            for j in (from_x // 128, from_x // 128 + 1):
                if 0 <= i < height and 0 <= j < width:
                    share = (1 - abs(from_y / 128 - i)) * (1 - abs(from_x / 128 - j))
                    rotated[row, column] += share * image[i, j]
    return np.floor(rotated + 0.5).astype(np.uint8)


def slow_brightness(image, draw, _):
    return np.minimum(np.floor(image * (draw / 256) + 0.5), 255).astype(np.uint8)


def slow_contrast(image, draw, _):
    mean = math.floor(image.mean() + 0.5)
    changed = mean + np.floor((image.astype(float) - mean) * (draw / 256) + 0.5)
    return np.clip(changed, 0, 255).astype(np.uint8)


def slow_erase(image, draw, _):
    top, bottom, left, right, grey = draw
    image = image.copy()
    image[top:bottom, left:right] = grey
    return image


def slow_cutout(image, draw, augmentation):
    return slow_erase(image, [*draw, 0], augmentation)


def slow_mixup(image, draw, _, other):
    share = draw / 256
    return np.floor(share * image + (1 - share) * other + 0.5).astype(np.uint8)


def slow_cutmix(image, draw, _, other):
    top, bottom, left, right = draw
    image = image.copy()
    image[top:bottom, left:right] = other[top:bottom, left:right]
    return image


SLOW = {name: globals()[f"slow_{name}"] for name in FORMS if name != "altflip"}
SLOW["altflip"] = slow_flip


def epoch_of(n=IMAGES, height=28, width=28, number=0, seed=0):
    order = np.random.default_rng(seed).permutation(n)
    return Epoch(order, height, width, number, *(np.random.default_rng(seed) for _ in range(2)))


def sample(text, shape):
    ((name, augmentation),) = parse_augment(text)
    seed = ALL.index(text)
    images = np.random.default_rng(seed).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    return name, augmentation, images, augmentation.draw(epoch_of(IMAGES, *shape[:2], seed=seed))


def apply(augmentation, images, draws):
    """One batch, or its examples in another place, through what the feeds call."""
    return augmented({"it": augmentation}, images[None], {"it": draws[None]})[0]


def digests():
    """Of every form's results; also run on the other backend."""
    found = []
    for text in ALL:
        for shape in SHAPES:
            _, augmentation, images, draws = sample(text, shape)
            changed = np.asarray(apply(augmentation, images, draws))
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
    more = (np.roll(images, 1, 0),) if is_mixing(augmentation) else ()
    each = zip(images, draws, [augmentation] * IMAGES, *more, strict=True)
    expected = np.stack([SLOW[name](*one) for one in each])
    changed = np.asarray(apply(augmentation, images, draws))
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, expected)
    assert not np.array_equal(changed, images)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_equals_not_compiled(shape):
    samples = [sample(text, shape)[1:] for text in ALL]
    augmentations = [augmentation for augmentation, _, _ in samples]

    def everything(images, draws):
        arguments = zip(augmentations, images, draws, strict=True)
        return [apply(augmentation, x, drawn) for augmentation, x, drawn in arguments]

    images, draws = [x for _, x, _ in samples], [drawn for _, _, drawn in samples]
    results = compiled(everything)(images, draws)
    for text, a, b in zip(ALL, results, everything(images, draws), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=text)


def test_equal_on_every_backend(on_tensorflow):
    assert digests() == on_tensorflow(digests)


def test_how_often_and_how_far():
    n = 20_000

    def drawn(augmentation, width=28):
        return augmentation.draw(epoch_of(n, 28, width)).T

    assert drawn(Flip(0.3)).mean() == pytest.approx(0.3, abs=0.02)
    for offsets in drawn(Crop(2)):
        np.testing.assert_allclose(np.bincount(offsets) / n, [0.2] * 5, atol=0.02)
    top, bottom, left, right, grey = drawn(Erase(0.4), 20)
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
    angles = np.degrees(np.arcsin(drawn(Rotate(20))[1] / 2**14))
    assert np.abs(angles).max() == pytest.approx(20, abs=0.1)
    assert angles.std() == pytest.approx(20 / 3**0.5, rel=0.02)
    for kind in (Brightness, Contrast):
        factors = drawn(kind(0.25)) / 256
        assert (factors.min(), factors.max()) == pytest.approx((0.75, 1.25), abs=0.003)
        assert factors.mean() == pytest.approx(1, abs=0.005)
    top, bottom, left, right = drawn(Cutout(6), 20)
    assert ((bottom - top).max(), (right - left).max()) == (6, 6)
    assert ((bottom - top).min(), (right - left).min()) == (3, 3)  # the centre is in the image
    assert top.min() == left.min() == 0
    assert (bottom.max(), right.max()) == (28, 20)
    shares = drawn(MixUp(0.2)) / 256
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(0.25 / 1.4, abs=0.005)  # of Beta(a, a): 1 / (8 a + 4)
    boxes = CutMix(1.0).draw(epoch_of(n, 28, 20))
    shares = CutMix(1.0).share(boxes, 28, 20)
    assert shares.dtype == np.float32
    assert shares.min() < 0.06
    assert shares.max() > 0.99
    top, bottom, left, right = boxes[0]
    kept = 28 * 20 - (bottom - top) * (right - left)
    assert shares[0] == np.float32(kept) / np.float32(28 * 20)


def test_alternating_flips_show_every_example_both_ways_in_two_epochs():
    def flips(number, seed=3):
        made = epoch_plan(
            seed, number, examples=500, batch_size=10, image_shape=(28, 28, 1),
            augment=(("altflip", AlternatingFlip()),),
        )  # fmt: skip
        by_example = np.empty(500, int)
        by_example[made.indices.ravel()] = made.draws["altflip"].ravel()
        return by_example

    first = flips(0)
    assert 200 < first.sum() < 300
    np.testing.assert_array_equal(flips(1), 1 - first)
    np.testing.assert_array_equal(flips(2), first)
    assert not np.array_equal(flips(0, seed=4), first)


@pytest.mark.parametrize("angle", [-15, 4, 90])
def test_a_rotation_is_that_of_pillow(tiny_data, angle):
    image, radians = tiny_data[0][0], math.radians(angle)
    draws = np.round(2**14 * np.array([[math.cos(radians), math.sin(radians)]])).astype(np.int32)
    ours = np.asarray(apply(Rotate(90.0), image[None], draws))[0, ..., 0].astype(int)
    theirs, wrong = (
        np.asarray(Image.fromarray(image[..., 0]).rotate(turned, Image.Resampling.BILINEAR))
        for turned in (angle, -angle)
    )
    inside = (slice(1, -1), slice(1, -1))  # Pillow repeats the greys at an edge for half a pixel
    assert np.median(np.abs(ours - theirs)[inside]) <= 1
    assert np.mean(np.abs(ours - theirs)[inside] > 2) < 0.05
    assert np.mean(np.abs(ours - wrong)[inside] > 2) > 0.5


def test_partners_are_of_the_same_batch_and_count():
    """Also in a batch that is filled up, whose further examples repeat the valid ones."""
    made = epoch_plan(0, 0, examples=23, batch_size=10)
    others = np.asarray(partners(made.indices))
    for batch, other, valid in zip(made.indices, others, made.valid, strict=True):
        assert sorted(batch) == sorted(other)
        assert set(other[:valid]) <= set(batch[:valid])
        assert (batch[:valid] != other[:valid]).sum() >= valid - 1


def test_what_computes_greys_takes_uint8_only():
    images = np.zeros((20, 4, 4, 1), np.float32)
    for text in ("rotate", "brightness", "contrast", "mixup"):
        with pytest.raises(UserError, match=rf"{text}.*uint8.*float32"):
            ArrayData(images, np.zeros(20, int), augment=text, batch_size=4).setup()
    ArrayData(images, np.zeros(20, int), augment="flip,cutmix", batch_size=4).setup()


@pytest.mark.parametrize("text", [None, "", "none", " none ", ","])
def test_none(text):
    assert parse_augment(text) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flip", [("flip", Flip(0.5))]),
        ("crop:3, flip:0.25", [("crop", Crop(3)), ("flip", Flip(0.25))]),
        ("altflip,rotate:7", [("altflip", AlternatingFlip()), ("rotate", Rotate(7.0))]),
        ("cutmix:0.5,cutout:12", [("cutmix", CutMix(0.5)), ("cutout", Cutout(12))]),
        ("erase:1,crop,flip:0", [("erase", Erase(1.0)), ("crop", Crop(2)), ("flip", Flip(0.0))]),
    ],
)
def test_parsed_in_the_order_given(text, expected):
    assert list(parse_augment(text)) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("flop", ["'flop'", "Did you mean 'flip'?", "flip, altflip, crop", "--augment"]),
        ("flip,none", ["'none'", "--augment"]),
        ("flip,flip:0.2", ["'flip'", "twice"]),
        ("crop:0", ["crop:0", "from 1 to 8"]),
        ("crop:9", ["crop:9", "from 1 to 8"]),
        ("crop:1.5", ["'1.5'", "whole number"]),
        ("flip:1.1", ["flip:1.1", "probability 0..1"]),
        ("flip:nan", ["flip:nan", "probability 0..1"]),
        ("erase:-0.1", ["erase:-0.1", "probability 0..1"]),
        ("altflip:1", ["altflip takes no value"]),
        ("rotate:181", ["rotate:181", "from 0 to 180 degrees"]),
        ("mixup:0", ["mixup:0", "from 0.01 to 10"]),
        ("cutout:0", ["cutout:0", "whole number of pixels"]),
        ("flip,altflip", ["flip or altflip, not both"]),
        ("cutmix,crop,mixup", ["mixup or cutmix, not both"]),
        ("erase:much", ["'much'", "probability 0..1"]),
    ],
)
def test_refused(text, parts):
    with pytest.raises(UserError) as refusal:
        parse_augment(text)
    for part in parts:
        assert part in str(refusal.value)
