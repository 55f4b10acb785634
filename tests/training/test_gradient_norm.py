"""The norms of the gradients, against those that Keras' own backend gives."""

import keras
import numpy as np
import pytest
from everything import STEPS, data, everything_model, trainer
from kept import kept

from fmnist_keras3 import GradientNorm, UserError
from fmnist_keras3.data.plan import epoch_plan

RATE = 1e-3


def linear_model(scale=None):
    """Plain gradient descent moves each weight by rate times gradient, which gives it away."""
    optimizer = keras.optimizers.SGD(RATE)
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, name="out")],
        name="linear",
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(path, callback, scale=None, **options):
    options = {"label_smoothing": 0.0, "schedule": None, "max_epochs": 1, **options}
    made = trainer(path, callback, **options)
    model = kept.model(linear_model, scale)
    return made.fit(model, data(augment=None)), model


def records(result, event="gradients"):
    return [r for r in result.history if r["event"] == event]


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_norm_of_the_first_step_is_that_of_its_update(tmp_path, clip):
    before = [np.array(w) for w in kept.model(linear_model, None).get_weights()]
    options = {"gradient_clip_val": clip} if clip else {}
    result, model = fit(tmp_path / "run", GradientNorm(True), max_steps=1, **options)
    (record,) = records(result)
    moved = [
        np.linalg.norm((a - b).ravel()) / RATE
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    total = float(np.hypot(*moved))
    if clip:  # the norm is that before clipping
        assert total == pytest.approx(clip, rel=1e-2)
        assert record["grad_norm"] > 100 * clip
        return
    assert record["grad_norm"] == pytest.approx(total, rel=1e-3)
    assert record["grad_norm/linear/out/kernel"] == pytest.approx(moved[0], rel=1e-3)
    assert record["grad_norm/linear/out/bias"] == pytest.approx(moved[1], rel=1e-3)


def test_a_scaled_loss_does_not_scale_the_norm(tmp_path):
    plain, _ = fit(tmp_path / "one", GradientNorm())
    other, _ = fit(tmp_path / "two", GradientNorm(), scale=1024.0)
    norms = [[r["grad_norm"] for r in records(result)] for result in (plain, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_an_epoch_has_the_mean_and_the_largest(tmp_path):
    result, _ = fit(tmp_path / "run", GradientNorm(log_every_n_steps=1))
    norms = [r["grad_norm"] for r in records(result)]
    assert len(norms) == STEPS
    (train,) = records(result, "train")
    assert train["grad_norm"] == pytest.approx(np.mean(norms))
    assert train["grad_norm_max"] == max(norms)
    few, _ = fit(tmp_path / "few", GradientNorm(log_every_n_steps=2))
    assert [r["step"] for r in records(few)] == [2, 4]


def test_nothing_is_computed_unless_it_is_asked_for(tmp_path):
    made = trainer(tmp_path / "run", max_epochs=1)
    made.fit(everything_model(), data())
    assert made.programs.engine.values_per_step == 2


def test_a_number_of_steps_below_one_is_told():
    with pytest.raises(UserError, match="log_every_n_steps is 0"):
        GradientNorm(log_every_n_steps=0)


def test_the_plan_of_the_tests_has_as_many_steps_as_they_say():
    assert epoch_plan(0, 0, examples=len(data().setup().train), batch_size=32).steps == STEPS
