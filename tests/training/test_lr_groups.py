"""Factors on the learning rate are the learning rates of optimizers of their own."""

import keras
import numpy as np
import pytest

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.optimizers import OPTIMIZERS, make_optimizer, parse_lr_groups

RNG = np.random.default_rng(0)
SHAPES = {"kernel": (3, 3, 2, 4), "beta": (4,), "gamma": (4,)}
GRADIENTS = [{name: RNG.normal(size=s).astype("float32") for name, s in SHAPES.items()}] * 2
START = {name: RNG.normal(size=s).astype("float32") for name, s in SHAPES.items()}


def updated(names, make, lr=None, **options):
    """The variables of these names after two updates of an optimizer."""
    variables = [keras.Variable(START[name], name=name) for name in names]
    optimizer = make(0.01, weight_decay=0.1, **options)
    for gradients in GRADIENTS:
        if lr is not None:
            optimizer.learning_rate.assign(lr)
        optimizer.apply([keras.ops.convert_to_tensor(gradients[n]) for n in names], variables)
    return {name: np.asarray(v.value) for name, v in zip(names, variables, strict=True)}


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "ftrl"])
def test_a_factor_is_another_learning_rate(name):
    def make(lr, **options):
        return make_optimizer(name, lr, **options)

    groups = {"kernel": 8.0, "beta": 64.0}
    together = updated(list(SHAPES), make, lr_groups=groups)
    for variable in SHAPES:
        alone = updated([variable], make, lr=0.01 * groups.get(variable, 1.0))
        np.testing.assert_allclose(together[variable], alone[variable], rtol=1e-6, atol=1e-7)
        moved = np.abs(together[variable] - START[variable]).max()
        assert moved > 1e-5


def build(optimizer):
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Dense(4, kernel_initializer="ones", name="hidden")(
        keras.layers.Flatten()(inputs)
    )
    model = keras.Model(inputs, keras.layers.Dense(10, kernel_initializer="ones", name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def trained(tmp_path, tiny_data, optimizer, **options):
    made = Trainer(2, enable_progress_bar=False, run_dir=tmp_path / str(id(optimizer)), **options)
    model = build(optimizer)
    x, y = tiny_data
    made.fit(model, ArrayData(x / np.float32(255), y, batch_size=50))
    return {v.path: np.asarray(v.value) for v in model.trainable_variables}


def test_in_a_training_they_follow_the_schedule(tmp_path, tiny_data):
    """A layer with the factor 0 stays; the other one is that of a training where it is frozen."""
    options = {"schedule": "cosine", "accumulate_grad_batches": 2}
    grouped = make_optimizer("sgd", 0.1, lr_groups={"hidden": 0, "logits": 0.5})
    found = trained(tmp_path, tiny_data, grouped, **options)
    np.testing.assert_array_equal(found["hidden/kernel"], 1)
    same = make_optimizer("sgd", 0.05, lr_groups={"hidden": 0})
    expected = trained(tmp_path, tiny_data, same, **options)
    for name in ("logits/kernel", "logits/bias"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
        assert np.ptp(found[name]) > 0.01


def test_a_model_file_has_the_plain_optimizer(tmp_path):
    model = build(make_optimizer("sgd", 0.1, lr_groups={"bias": 2}))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is keras.optimizers.SGD


def test_a_name_that_no_variable_has_is_told():
    optimizer = make_optimizer("sgd", 0.1, lr_groups={"beat": 64})
    with pytest.raises(UserError, match=r"'beat'.*Did you mean 'beta'.*There are beta, gamma"):
        optimizer.build([keras.Variable(START[name], name=name) for name in SHAPES])


def test_groups_in_a_text():
    assert parse_lr_groups("beta=64, logits=0.5") == {"beta": 64.0, "logits": 0.5}
    assert parse_lr_groups(None) == {}
    for text in ("beta", "beta=x", "beta=-1", "beta=inf"):
        with pytest.raises(UserError, match=f"lr_groups has '{text}'.*--lr_groups beta=64"):
            parse_lr_groups(text)


def test_options_of_optimizers():
    sgd = make_optimizer("sgd:momentum=0.85,nesterov=0", 0.1)
    assert (sgd.momentum, sgd.nesterov) == (0.85, False)
    assert make_optimizer("adamw:beta_2=0.95", 0.1).beta_2 == 0.95
    assert make_optimizer("muon:ns_steps=3", 0.1).ns_steps == 3
    for text, words in (
        ("sgd:momentun=0.9", "Did you mean 'momentum'"),
        ("sgd:momentum=1", "less than 1"),
        ("lion:momentum=1", "no options"),
        ("sdg:momentum=0.9", "Did you mean 'sgd'"),
    ):
        with pytest.raises(UserError, match=words):
            make_optimizer(text, 0.1)


def test_renormalized_kernels_have_one_norm_before_the_step():
    kernel = keras.Variable(START["kernel"])
    optimizer = make_optimizer("muon:renormalize=1", 0.0)
    optimizer.apply([keras.ops.convert_to_tensor(GRADIENTS[0]["kernel"])], [kernel])
    value = np.asarray(kernel.value)
    assert np.linalg.norm(value) == pytest.approx(2.0, rel=1e-5)  # the root of 4 filters
    np.testing.assert_allclose(
        value / np.linalg.norm(value), START["kernel"] / np.linalg.norm(START["kernel"]), atol=1e-6
    )
