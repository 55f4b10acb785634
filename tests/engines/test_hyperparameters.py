"""Numbers that are arguments of the programs: another value counts at once and compiles nothing."""

import keras
import numpy as np
import pytest

from fmnist_keras3 import Trainer, build_model
from fmnist_keras3.engines.step import CompiledStep
from fmnist_keras3.training.programs import Programs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 28, 28, 1), np.uint8)
LABELS = RNG.integers(0, 10, 64)
OTHERWISE = {"rate": 0.1, "l2": 1e-2, "decay": 1.0, "seed": 3}


def make(rate=0.3, l2=1e-3, decay=0.05, seed=0):
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=decay)
    return build_model("baseline", dropout=rate, l2=l2, seed=seed, optimizer=optimizer)


def own(rate=0.3, l1=1e-3, decay=0.05):
    """Return a model of plain Keras layers, as a user's."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L1(l1)),
            keras.layers.Dropout(rate, seed=2),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, weight_decay=decay), loss)
    return model


def fit(model, programs, seed=0):
    trainer = Trainer(
        max_epochs=2, barebones=True, num_sanity_val_steps=0, seed=seed, limit_val_batches=0
    )
    trainer.programs = programs
    trainer.fit(model, (IMAGES, LABELS))
    return model.get_weights()


@pytest.fixture
def traced(monkeypatch):
    """List the steps that are traced, which is when a program is compiled."""
    calls, train = [], CompiledStep.train
    monkeypatch.setattr(
        CompiledStep, "train", lambda self, *args: calls.append(1) or train(self, *args)
    )
    return calls


def test_another_value_compiles_nothing_and_counts(traced):
    programs = Programs()
    before = fit(make(), programs)
    compiled = len(traced)
    assert compiled
    for other in ({"rate": 0.5}, {"l2": 1e-1}, {"decay": 10.0}, {"seed": 5}, OTHERWISE):
        model = programs.adopt(make(**other))
        assert model is programs.engine.model
        after = fit(model, programs)
        assert any((a != b).any() for a, b in zip(before, after, strict=True)), other
        before = after
    assert len(traced) == compiled
    for ours, alone in zip(after, fit(make(**OTHERWISE), Programs()), strict=True):
        np.testing.assert_array_equal(ours, alone)
    for other in ({"rate": 0.0}, {"l2": 0.0}, {"decay": 0.0}):  # whose programs do less
        model = make(**other)
        assert programs.adopt(model) is model


@pytest.mark.parametrize("other", [{"rate": 0.5}, {"l1": 1e-1}, {"decay": 10.0}], ids=str)
def test_a_number_changed_by_the_user_counts_in_the_next_fit(other):
    model, wanted, programs = own(), own(**other), Programs()
    state = [*model.variables, *model.optimizer.variables]
    began = [np.array(v.value) for v in state]
    fit(model, programs)
    for variable, value in zip(state, began, strict=True):
        variable.assign(value)
    for variable in model.optimizer.variables[len(state) - len(model.variables) :]:
        variable.assign(np.zeros(variable.shape))
    model.layers[-2].rate = wanted.layers[-2].rate
    model.layers[-3].kernel_regularizer.l1 = wanted.layers[-3].kernel_regularizer.l1
    model.optimizer.weight_decay = wanted.optimizer.weight_decay
    after = fit(model, programs)
    for ours, alone in zip(after, fit(wanted, Programs()), strict=True):
        np.testing.assert_array_equal(ours, alone)


def test_numbers_that_are_no_arguments_compile_anew(traced):
    model, programs = own(), Programs()
    fit(model, programs)
    compiled = len(traced)
    fit(model, programs)
    assert len(traced) == compiled
    model.optimizer.momentum = 0.9
    assert not programs.engine.is_current()
