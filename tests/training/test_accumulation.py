"""Accumulated gradients: every update is that of the mean, and each epoch ends with one."""

import keras
import numpy as np
import pytest
from everything import At, arrays, last, terminate
from hypothesis import given
from hypothesis import strategies as st
from kept import kept
from test_arguments import fit_plain as fit_with_validation
from test_arguments import plain_model

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.training.accumulation import Accumulation

RATE = 0.1


def fit_plain(path, optimizer, batch_size=40, **options):
    """Five batches an epoch, and no validation to compile."""
    return fit_with_validation(path, optimizer, batch_size, validation=0.0, **options)


@given(
    batches=st.integers(2, 9),
    steps=st.integers(1, 12),
    epochs=st.integers(1, 3),
    skipped=st.sets(st.integers(1, 36), max_size=4),
)
def test_each_batch_is_in_one_update_of_its_own_epoch(batches, steps, epochs, skipped):
    made, done = Accumulation(batches, steps), np.arange(epochs * steps)
    means = made.means(done, sorted(skipped))
    waiting = 0
    for step, mean in zip(done.tolist(), means.tolist(), strict=True):
        waiting += step + 1 not in skipped
        if mean:
            assert step + 1 not in skipped
            assert mean == waiting <= batches
            waiting = 0
        if (step + 1) % steps == 0:
            assert waiting == 0  # nothing is left over at an epoch's end
    if not skipped:
        counted = [made.updates(np.array(step)) for step in range(epochs * steps + 1)]
        assert np.array_equal(np.diff(counted), means > 0)


def batch_gradients(batch_size, weights):
    """The gradients of an epoch's batches, all at the same weights, by steps of plain Keras."""
    x, y = arrays()
    plan = epoch_plan(0, 0, examples=len(x), batch_size=batch_size)
    model = kept.model(plain_model, "sgd", 1.0)
    found = []
    for rows, valid in zip(plan.indices, plan.valid, strict=True):
        model.set_weights(weights)
        model.train_on_batch(x[rows[:valid]], y[rows[:valid]])
        after = model.get_weights()
        found.append([a - b for a, b in zip(weights, after, strict=True)])
    return found


def moved(weights, gradients):
    """What plain gradient descent by the mean of ``gradients`` makes of the weights."""
    means = [np.mean(parts, 0) for parts in zip(*gradients, strict=True)]
    return [w - RATE * mean for w, mean in zip(weights, means, strict=True)]


@pytest.mark.filterwarnings("ignore:On a CPU the precision")
@pytest.mark.parametrize("precision", [None, "16-mixed"])
def test_an_epoch_ends_with_an_update_by_the_mean_of_what_is_left(precision):
    """Four batches, of 60, 60, 60 and 20 examples: one update of all, or one of three and one."""
    x, y = arrays()
    for batches in (8, 3):
        model = kept.model(plain_model, "sgd", RATE, precision)
        start = model.get_weights()
        made = Trainer(1, accumulate_grad_batches=batches, precision=precision, barebones=True)
        made.fit(model, ArrayData(x, y, batch_size=60, validation=0.0))
        expected = moved(start, batch_gradients(60, start)[:batches])
        if batches == 3:
            expected = moved(expected, batch_gradients(60, expected)[3:])
        for a, b in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 if precision is None else 2e-3)


def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path):
    one = fit_plain(tmp_path / "one", ("sgd", RATE))[0].get_weights()
    two, result = fit_plain(tmp_path / "two", ("sgd", RATE), 20, accumulate_grad_batches=2)
    assert result.summary["steps"] == 10
    for a, b in zip(one, two.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_a_schedule_in_the_optimizer_counts_updates(tmp_path):
    """Five batches an epoch, three to accumulate: updates after the third and the fifth."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1, 2], [0.4, 0.3, 0.2, 0.1])
    _, result = fit_plain(
        tmp_path / "run", keras.optimizers.SGD(schedule), max_epochs=2, accumulate_grad_batches=3
    )
    rates = [r["lr"] for r in result.history if r["event"] == "step"]
    assert rates == pytest.approx([0.4, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2, 0.1, 0.1])


def test_a_stop_amid_an_accumulation_is_resumed_to_the_bit(tmp_path):
    options = {"max_epochs": 2, "accumulate_grad_batches": 3}
    straight = fit_plain(tmp_path / "straight", ("adam", 0.01), **options)[0].get_weights()
    fit_plain(tmp_path / "run", ("adam", 0.01), callbacks=At(7, terminate), **options)
    found = last(tmp_path / "run")
    assert found.manifest["position"]["step"] == 7
    sums = [a for name, a in found.state if name.startswith("optimizer/gradients/")]
    assert len(sums) == 4
    assert all(np.any(a) for a in sums)
    resumed, _ = fit_plain(tmp_path / "run", ("adam", 0.01), ckpt_path="last", **options)
    for a, b in zip(straight, resumed.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_accumulation_is_asked_for_once():
    model = plain_model(keras.optimizers.SGD(RATE, gradient_accumulation_steps=2))
    with pytest.raises(UserError, match="gradient_accumulation_steps=2 already"):
        Trainer(accumulate_grad_batches=3).fit(model, arrays())
