"""Optimizers that share a loss, and a backbone that waits: as by hand, and resumed to the bit."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from test_module import EPOCHS, IMAGES, batches, data, differentiated, records, same, trainer

from fmnist_keras3 import (
    BackboneFinetuning,
    Callback,
    EMAWeightAveraging,
    Module,
    Trainer,
    UserError,
    load_run,
)

STEPS = 6  # of an epoch


def dense(units, seed, activation=None):
    initial = keras.initializers.GlorotUniform(seed=seed)
    return layers.Dense(units, activation, kernel_initializer=initial)


class Tuned(Module):
    """A head on a backbone of two layers of equal shapes, named to their optimizer in reverse."""

    def __init__(self, rates=(2e-2, 1e-3)):
        super().__init__()
        self.rates = rates
        self.flat = layers.Flatten()
        self.one, self.two = dense(36, 1, "relu"), dense(36, 2, "relu")
        self.backbone = keras.Sequential([self.one, self.two])
        self.head = keras.Sequential([layers.Dropout(0.2, seed=4), dense(4, 3)])

    def call(self, x):
        return self.head(self.backbone(self.flat(x) / 255))

    def training_step(self, batch):
        x, y = batch
        entropy = keras.losses.sparse_categorical_crossentropy
        return ops.mean(entropy(y, self(x), from_logits=True))

    def configure_optimizers(self):
        head, backbone = map(keras.optimizers.Adam, self.rates)
        return {"head": (head, self.head), "backbone": (backbone, [self.two, self.one])}


class One(Tuned):
    """The same with one optimizer, the head's."""

    def configure_optimizers(self):
        return keras.optimizers.Adam(self.rates[0])


def compiled():
    """A compiled model of the same layers, with batch normalisation in the backbone."""
    backbone = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Flatten(), dense(36, 1), layers.BatchNormalization()],
        name="backbone",
    )
    dropout = layers.Dropout(0.2, seed=4, name="dropout")
    model = keras.Sequential([backbone, dropout, dense(4, 3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-2), loss, metrics=["accuracy"])
    return model


def by_hand(module, rates=None, waits=0):
    """Apply two optimizers to the gradients of one loss; the second after so many steps.

    ``rates``: of the first in each step; the second has a twentieth.
    """
    module(IMAGES[:1])
    head, backbone = map(keras.optimizers.Adam, module.rates)
    parts = [module.head.trainable_variables, module.backbone.trainable_variables]
    for number, batch in enumerate(batches(epochs=EPOCHS)):
        batch = tuple(map(ops.convert_to_tensor, batch))
        _, gradients = differentiated(module, [batch], parts[0] + parts[1])
        if rates is not None:
            head.learning_rate.assign(rates[number])
            backbone.learning_rate.assign(rates[number] / 20)
        head.apply(gradients[: len(parts[0])], parts[0])
        if number >= waits:
            backbone.apply(gradients[len(parts[0]) :], parts[1])


def test_a_dict_of_one_is_one_optimizer(tmp_path):
    class Named(One):
        def configure_optimizers(self):
            return {"all": (super().configure_optimizers(), [self.head, self.backbone])}

    named, plain = Named(), One()
    trainer(tmp_path / "named").fit(named, data())
    trainer(tmp_path / "plain").fit(plain, data())
    same(named.get_weights(), plain.get_weights())


@pytest.mark.parametrize("fails", [False, True])
def test_a_schedule_leaves_the_rates_of_all_optimizers_as_they_were(tmp_path, fails):
    """Of a fit that ended, and of one that failed: the next one begins there."""

    class Fails(Callback):
        def on_train_epoch_end(self, fit):
            if fails and fit.position.epoch == 2:
                raise RuntimeError("mine")

    model, backbones = compiled(), keras.optimizers.Adam(1e-3)
    callbacks = [BackboneFinetuning(1, backbones), Fails()]
    made = trainer(tmp_path / "run", callbacks=callbacks, max_epochs=3, schedule="cosine")
    if fails:
        with pytest.raises(RuntimeError, match="mine"):
            made.fit(model, data())
    else:
        made.fit(model, data())
    assert float(backbones.learning_rate) == float(np.float32(1e-3))
    assert float(model.optimizer.learning_rate) == float(np.float32(2e-2))


class Seen(Callback):
    """Keeps the backbone's first kernel of each epoch's end."""

    def __init__(self):
        self.kernels = []

    def on_train_epoch_end(self, fit):
        self.kernels.append(np.array(fit.model.get_layer("backbone").get_weights()[0]))


@pytest.fixture
def without_dropout(monkeypatch):
    """Leave out what draws other masks in a plain loop."""
    monkeypatch.setattr(layers.Dropout, "call", lambda self, x, training=False: x)


@pytest.mark.usefixtures("without_dropout")
@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_optimizers_of_one_loss_are_those_of_a_plain_loop(tmp_path, schedule):
    ours, hand = Tuned(), Tuned()
    trainer(tmp_path, schedule=schedule).fit(ours, data())
    by_hand(hand, [r["lr"] for r in records(tmp_path, "step")])
    same(ours.get_weights(), hand.get_weights())


@pytest.mark.usefixtures("without_dropout")
@pytest.mark.parametrize(
    ("make", "optimizer"),
    [(Tuned, None), (One, keras.optimizers.Adam(1e-3))],
    ids=["of the module", "of the callback"],
)
def test_a_backbone_waits_and_is_trained_afresh(tmp_path, make, optimizer):
    ours, hand = make(), make()
    trainer(tmp_path, callbacks=BackboneFinetuning(2, optimizer)).fit(ours, data())
    by_hand(hand, waits=2 * STEPS)
    same(ours.get_weights(), hand.get_weights())


def test_a_compiled_model_has_its_own_optimizer_again(tmp_path):
    model, seen = compiled(), Seen()
    first, own = model.layers[0].get_weights(), model.optimizer
    callbacks = [BackboneFinetuning(2, keras.optimizers.Adam(1e-3)), seen]
    made = trainer(tmp_path, callbacks=callbacks)
    made.fit(model, data(validation=0.2))
    np.testing.assert_array_equal(seen.kernels[0], first[0])
    np.testing.assert_array_equal(seen.kernels[1], first[0])
    assert not np.array_equal(seen.kernels[2], first[0])
    assert not np.array_equal(model.layers[0].get_weights()[4], first[4])  # statistics move on
    assert model.optimizer is own
    assert all(layer.trainable for layer in model.layers)
    assert made.validate(model, data(validation=0.2))["loss"] > 0
    again = load_run(tmp_path, "last").model
    same(again.get_weights(), model.get_weights())


@pytest.mark.parametrize(
    ("make", "stops"),
    [(Tuned, (STEPS, STEPS + 2)), (compiled, (STEPS - 2,))],
    ids=["module", "compiled"],
)
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, make, stops):
    def fit(path, **options):
        model, more = make(), {}
        given = None if make is Tuned else keras.optimizers.Adam(1e-3)
        callbacks = [BackboneFinetuning(1, given), EMAWeightAveraging(0.9)]
        made = trainer(tmp_path / path, callbacks=callbacks, max_epochs=2, **options)
        if (tmp_path / path).exists():
            more = {"ckpt_path": "last"}
        made.fit(model, data(), **more)
        return model.get_weights()

    whole = fit("whole")
    for stop in stops:
        fit(f"to {stop}", max_steps=stop)
        for a, b in zip(whole, fit(f"to {stop}"), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "callback", "message"),
    [
        (compiled, lambda: BackboneFinetuning(2), "no optimizer for backbone. Type Backbone"),
        (
            compiled,
            lambda: BackboneFinetuning(2, keras.optimizers.Adam(), backbone="bakcbone"),
            "no layer 'bakcbone'. Did you mean 'backbone'",
        ),
        (
            compiled,
            lambda: BackboneFinetuning(2, keras.optimizers.Adam(), backbone="dropout"),
            "no weights to train",
        ),
        (Tuned, lambda: BackboneFinetuning(2, keras.optimizers.Adam()), "Leave one of them out"),
        (Tuned, lambda: BackboneFinetuning(2, backbone=["one"]), "optimizers of one loss"),
        (None, lambda: BackboneFinetuning(-1), "whole number, at least 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(make, callback, message):
    with pytest.raises(UserError, match=message):
        Trainer(fast_dev_run=1, callbacks=callback()).fit(make(), data())
