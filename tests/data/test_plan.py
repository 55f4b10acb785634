"""The laws of the epoch plan, for any sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.plan import epoch_plan, evaluation_plan

ALL = parse_augment("flip,crop,erase,rotate,contrast,cutout,mixup")
PINNED_ORDER = [[7, 8, 9, 4], [5, 6, 1, 0], [2, 3, 2, 3]]
PINNED_SUMS = {"flip": 6, "crop": 48, "erase": 2246, "rotate": 199363, "contrast": 3345}
PINNED_SUMS |= {"cutout": 621, "mixup": 737}
settings.register_profile("plan", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("plan")

seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 1_000)
sizes = st.integers(1, 300)
batches = st.integers(1, 80)


def plan(seed=0, epoch=0, examples=100, batch_size=16, augment=ALL, **options):
    return epoch_plan(
        seed,
        epoch,
        examples=examples,
        batch_size=batch_size,
        image_shape=(28, 28, 1),
        augment=augment,
        **options,
    )


def used(made):
    """The indices that count, in order."""
    return np.concatenate([row[:n] for row, n in zip(made.indices, made.valid, strict=True)])


@given(seeds, epochs, sizes, batches, st.booleans())
def test_each_example_exactly_once(seed, epoch, examples, batch_size, training):
    if training:
        made = plan(seed, epoch, examples, batch_size)
    else:
        made = evaluation_plan(examples, batch_size)
    assert made.steps == -(-examples // batch_size)
    assert made.indices.shape == (made.steps, batch_size)
    assert made.indices.dtype == made.valid.dtype == np.int32
    assert sorted(used(made)) == list(range(examples))
    if not training:
        assert not made.draws
        np.testing.assert_array_equal(used(made), np.arange(examples))
    assert (made.valid[:-1] == batch_size).all()
    assert 1 <= made.valid[-1] <= batch_size


@given(sizes, batches)
def test_the_last_batch_repeats_its_own_examples(examples, batch_size):
    made = plan(examples=examples, batch_size=batch_size)
    last, valid = made.indices[-1], made.valid[-1]
    np.testing.assert_array_equal(last, np.resize(last[:valid], batch_size))
    for draws in made.draws.values():
        own = draws[-1, :valid]
        np.testing.assert_array_equal(draws[-1], np.resize(own, draws[-1].shape))


@given(seeds, epochs, sizes, batches, st.integers(1, 20))
def test_a_limit_keeps_the_first_batches(seed, epoch, examples, batch_size, limit):
    whole = plan(seed, epoch, examples, batch_size)
    some = plan(seed, epoch, examples, batch_size, limit=limit)
    assert some.steps == min(limit, whole.steps)
    np.testing.assert_array_equal(some.indices, whole.indices[:limit])
    np.testing.assert_array_equal(some.valid, whole.valid[:limit])
    for name, draws in some.draws.items():
        np.testing.assert_array_equal(draws, whole.draws[name][:limit])


@given(seeds, epochs, st.data())
def test_any_step_can_be_made_again_alone(seed, epoch, data):
    in_its_epoch = plan(seed, epoch)
    for other in range(3):
        plan(seed, other)  # plans made in between leave no trace
    step = data.draw(st.integers(0, in_its_epoch.steps - 1))
    alone = plan(seed, epoch)
    np.testing.assert_array_equal(alone.indices[step], in_its_epoch.indices[step])
    for name, draws in alone.draws.items():
        np.testing.assert_array_equal(draws[step], in_its_epoch.draws[name][step])


@given(seeds, epochs, epochs)
def test_epochs_and_seeds_differ(seed, one, two):
    if one == two:
        two = one + 1
    a, others = plan(seed, one), [plan(seed, two), plan(seed + 1, one)]
    for b in others:
        assert not np.array_equal(a.indices, b.indices)
        for name in a.draws:
            assert not np.array_equal(a.draws[name], b.draws[name])


@given(seeds, epochs, sizes, batches, st.permutations(ALL), st.integers(0, len(ALL)))
def test_an_augmentation_changes_nothing_else(seed, epoch, examples, batch_size, order, count):
    whole = plan(seed, epoch, examples, batch_size)
    some = plan(seed, epoch, examples, batch_size, augment=tuple(order[:count]))
    np.testing.assert_array_equal(some.indices, whole.indices)
    assert list(some.draws) == [name for name, _ in order[:count]]
    for name, draws in some.draws.items():
        np.testing.assert_array_equal(draws, whole.draws[name])


@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_the_batch_size_does_not_change_the_order(seed, one, two):
    a, b = plan(seed, batch_size=one), plan(seed, batch_size=two)
    np.testing.assert_array_equal(used(a), used(b))


def test_draws_have_one_row_an_image():
    made = plan(examples=50, batch_size=20)
    assert list(made.draws) == [name for name, _ in ALL]
    for draws in made.draws.values():
        assert draws.shape[:2] == (3, 20)
        assert draws.dtype == np.int32


def test_the_order_is_well_mixed():
    order = used(plan(examples=10_000, batch_size=100, augment=()))
    assert np.mean(np.abs(np.diff(order))) == pytest.approx(10_000 / 3, rel=0.05)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_of_a_seed_stays_over_versions():
    # If this changed, a run that an older version began would go on with other batches.
    made = plan(seed=1, epoch=2, examples=10, batch_size=4)
    assert made.indices.tolist() == PINNED_ORDER
    assert {name: int(draws.sum()) for name, draws in made.draws.items()} == PINNED_SUMS


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    epoch=st.integers(0, 3),
)
def test_balanced_classes_come_equally_often(counts, epoch):
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    options = {"examples": len(classes), "batch_size": 7}
    plan = epoch_plan(0, epoch, classes=classes, **options)
    order = plan.indices.reshape(-1)[: plan.valid.sum()]
    assert len(order) == len(classes)
    of_class = np.bincount(classes[order], minlength=len(counts))
    assert of_class.max() - of_class.min() <= 1
    for label in range(len(counts)):  # none comes again before all others have
        seen = np.bincount(order, minlength=len(classes))[classes == label]
        assert seen.max() - seen.min() <= 1
    again = epoch_plan(0, epoch, classes=classes, **options)
    assert np.array_equal(again.indices, plan.indices)
