"""One owner of a model: verbs within verbs, refits, and what is left after exceptions."""

from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from fmnist_keras3 import (
    ArrayData,
    Callback,
    EMAWeightAveraging,
    Trainer,
    Tuner,
    UserError,
    build_model,
)
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.layers import fast
from fmnist_keras3.layers.whitening import whiten
from fmnist_keras3.training.session import owner

N, BATCH = 52, 16  # of the 47 to train on, the last batch has 15


def features(n=N):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x[:, :3] > 0).astype("float32")


def data():
    return ArrayData(*features(), batch_size=BATCH)


def made(optimizer="adam", loss="mse", metrics=("mae",)):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "relu", name="first"), layers.Dense(3, name="last")]
    )
    model.compile(optimizer, loss, metrics=list(metrics))
    return model


def trainer(epochs=3, *callbacks, **options):
    options = {"enable_checkpointing": False, "enable_progress_bar": False, **options}
    return Trainer(epochs, callbacks=list(callbacks), **options)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(model):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables]


def assert_equal(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


class Each(Callback):
    """Calls ``action(fit)`` in one of the hooks."""

    def __init__(self, hook, action):
        self.action = action
        setattr(self, hook, lambda fit, *_: self.action(fit))


HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_epoch_start",
    "on_chunk_end",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_fit_end",
)


@pytest.mark.parametrize("own", [True, False], ids=["this Trainer", "another Trainer"])
def test_verbs_within_a_fit_are_right_and_change_nothing(own):
    plain, watched = made(), made()
    trainer(3, EMAWeightAveraging(0.9)).fit(plain, data())
    seen, (x, y) = set(), features(300)  # more than the fit has, and in longer batches

    def verbs(fit, hook):
        asking = training if own else another
        outputs = asking.predict(watched, x)
        np.testing.assert_allclose(fit.model.predict(x, verbose=0), outputs, atol=1e-6)
        loss = asking.validate(watched, (x, y))["loss"]
        assert loss == pytest.approx(float(np.mean((outputs - y) ** 2)), rel=1e-5)
        assert asking.test(watched, (x, y))["loss"] == loss
        seen.add(hook)

    asking = [Each(hook, lambda fit, hook=hook: verbs(fit, hook)) for hook in HOOKS]
    training, another = trainer(3, EMAWeightAveraging(0.9), *asking), trainer()
    training.fit(watched, data())
    assert seen == {*HOOKS}
    assert_equal(weights(watched), weights(plain))
    assert owner(watched) is None


@pytest.mark.parametrize("verb", ["fit", "ckpt_path", "lr_find", "scale_batch_size"])
def test_what_would_train_within_a_fit_is_refused(verb):
    model = made()
    do = {
        "fit": lambda: trainer().fit(model, data()),
        "ckpt_path": lambda: trainer().predict(model, features()[0], ckpt_path="runs/x"),
        "lr_find": lambda: Tuner(trainer()).lr_find(model, data()),
        "scale_batch_size": lambda: Tuner(trainer()).scale_batch_size(model, data()),
    }[verb]
    said = []

    def refused(fit):
        with pytest.raises(UserError, match=r"under way|being trained") as raised:
            do()
        said.append(raised)

    trainer(1, Each("on_train_epoch_end", refused)).fit(model, data())
    assert said


def test_another_model_may_be_trained_within_a_fit():
    model, other, alone = made(), made(), made()
    inner = Each("on_fit_start", lambda fit: trainer(1).fit(other, data()))
    trainer(1, inner).fit(model, data())
    trainer(1).fit(alone, data())
    assert_equal(weights(other), weights(alone))
    assert_equal(weights(model), weights(alone))


class Stop(Exception):
    """Raised by a callback."""


@pytest.mark.parametrize("schedule", [None, "linear"])
def test_an_exception_leaves_the_trained_weights_and_the_users_rate(schedule):
    model = made(keras.optimizers.Adam(0.01))
    training = trainer(3, schedule=schedule)
    for hook in HOOKS[1:]:
        expected, begun = [], weights(model)

        def stop(fit, expected=expected, first=hook in ("on_fit_start", "on_chunk_end")):
            if first or fit.position.epoch:
                expected.extend(weights(fit.model))
                raise Stop

        training.callbacks = [Each(hook, stop)]
        with pytest.raises(Stop):
            training.fit(model, data())
        assert_equal(weights(model), expected)
        changed = np.abs(weights(model)[0] - begun[0]).max()
        assert (changed > 0) == (hook != "on_fit_start")
        assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
        assert owner(model) is None


@pytest.mark.parametrize("change", ["optimizer", "loss", "metrics", "frozen", "frozen alone"])
def test_a_second_fit_trains_what_the_model_is_then(change):
    model, training = made(keras.optimizers.SGD(0.1)), trainer(2)
    training.fit(model, data())
    before, optimizer = weights(model), keras.optimizers.SGD(0.1)
    if change == "optimizer":
        optimizer = keras.optimizers.Adam(0.05)
    if change.startswith("frozen"):
        model.get_layer("first").trainable = False
    if change != "frozen alone":  # without compile, as Keras on TensorFlow takes it
        loss = "mae" if change == "loss" else "mse"
        model.compile(optimizer, loss, metrics=["mse" if change == "metrics" else "mae"])
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(type(optimizer)(float(optimizer.learning_rate)), model.loss)
    seen = {}
    keep = Each("on_train_epoch_end", lambda fit: seen.update(fit.logs))
    training.callbacks.append(keep)
    training.fit(model, data())
    trainer(2).fit(twin, data())
    for ours, theirs in zip(weights(model)[:4], weights(twin)[:4], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert (change == "metrics") == ("mse" in seen)
    if change.startswith("frozen"):
        np.testing.assert_array_equal(weights(model)[0], before[0])
        assert np.abs(weights(model)[2] - before[2]).max() > 0
    if change != "frozen alone":
        assert int(model.optimizer.iterations) == 2 * 3  # of 47 examples


def test_a_layer_frozen_without_compile_leaves_the_others_their_moments():
    def adam():
        return keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5)

    model, training = made(adam()), trainer(2)
    training.fit(model, data())
    model.get_layer("first").trainable = False
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(adam(), "mse")
    twin.optimizer.build(twin.trainable_variables)
    known = {v.path.split("/", 1)[1]: v for v in model.optimizer.variables}
    for variable in twin.optimizer.variables:
        variable.assign(known[variable.path.split("/", 1)[1]].value)
    training.fit(model, data())
    train = data().setup().train
    for epoch in range(2):  # Keras itself, on the batches of the plan
        plan = epoch_plan(0, epoch, examples=len(train), batch_size=BATCH)
        for rows, valid in zip(plan.indices, plan.valid, strict=True):
            twin.train_on_batch(train.x[rows[:valid]], train.y[rows[:valid]])
    for ours, theirs in zip(weights(model)[:4], weights(twin)[:4], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_frozen_normalization_is_another_model():
    inputs = keras.Input((6,))
    norm = keras.layers.BatchNormalization(center=False, scale=False, momentum=0.5)
    model = keras.Model(inputs, keras.layers.Dense(3)(norm(inputs)))
    model.compile("sgd", "mse")
    training = trainer(1)
    training.fit(model, data())
    norm.trainable = False
    kept = np.array(keras.ops.convert_to_numpy(norm.moving_mean.value))
    training.fit(model, data())
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(norm.moving_mean.value), kept)


def test_weights_that_a_failing_program_took_are_not_made_up():
    if keras.backend.backend() != "jax":
        pytest.skip("on TensorFlow the model's own variables are what is trained")

    def fail(fit):
        for array in fit.engine._state[0]:
            array.delete()
        fit.engine._ahead = True
        with pytest.raises(RuntimeError, match="was lost"):
            fit.engine.export_state()
        raise Stop

    model = made()
    before = weights(model)
    with pytest.raises(Stop) as raised:
        trainer(1, Each("on_fit_start", fail)).fit(model, data())
    assert "The weights were lost" in "".join(raised.value.__notes__)
    assert_equal(weights(model), before)


def test_an_optimizer_that_needs_all_its_weights_is_refused():
    model = made(keras.optimizers.SGD(0.1, use_ema=True))
    trainer(1).fit(model, data())
    model.get_layer("first").trainable = False
    with pytest.raises(UserError, match=r"frozen or unfrozen since. Call model.compile"):
        trainer(1).fit(model, data())


def test_an_optimizer_that_does_not_know_a_weight_is_refused():
    model = made()
    model.get_layer("first").trainable = False
    model.compile("adam", "mse")
    trainer(1).fit(model, data())
    model.get_layer("first").trainable = True
    with pytest.raises(UserError, match=r"frozen or unfrozen since. Call model.compile"):
        trainer(1).fit(model, data())


PREPARED = {
    "bf16": {"precision": "bf16-mixed"},
    "float16": {"precision": "16-mixed"},
    "norm": {"gradient_clip_val": 0.1},
    "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
}


def state(model):
    policies = [layer.dtype_policy.name for layer in model._flatten_layers()]
    optimizer = model.optimizer
    clips = [getattr(optimizer, name) for name in ("clipnorm", "global_clipnorm", "clipvalue")]
    return [*policies, id(optimizer), *clips]


@pytest.mark.filterwarnings("ignore:On a CPU the precision")
@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.parametrize("end", ["refusal", "exception", "end"])
def test_what_is_set_for_a_fit_is_undone(tmp_path, name, end):
    model = made()
    before, begun = state(model), weights(model)
    options = {**PREPARED[name], "run_dir": tmp_path / "run"}

    def stop(fit):
        raise Stop

    if end == "refusal":
        (tmp_path / "run").write_text("a file")
        with pytest.raises(UserError, match="is a file"):
            trainer(1, **options).fit(model, data())
        assert_equal(weights(model), begun)
    elif end == "exception":
        with pytest.raises(Stop):
            trainer(1, Each("on_chunk_end", stop), **options).fit(model, data())
    else:
        training = trainer(2, **options)
        training.fit(model, data())
        training.run_dir = tmp_path / "again"
        training.fit(model, data())
        training.predict(model, features()[0])
    if end == "end" and "precision" in options:  # stays with the model
        assert model.get_layer("first").compute_dtype in ("bfloat16", "float16")
    else:
        assert state(model) == before


def test_clipping_and_precision_hold_while_they_are_set(tmp_path):
    seen = []
    training = trainer(
        1,
        Each("on_chunk_end", lambda fit: seen.append(state(fit.model))),
        precision="bf16-mixed",
        gradient_clip_val=0.5,
        run_dir=tmp_path / "run",
    )
    with pytest.warns(UserWarning, match="On a CPU the precision"):
        training.fit(made(), data())
    assert "mixed_bfloat16" in seen[0]
    assert seen[0][-2] == 0.5


class Pair(NamedTuple):
    left: Any
    right: Any


class Sum(keras.Model):
    """Two inputs, in any kind of sequence."""

    def __init__(self):
        super().__init__()
        self.last = keras.layers.Dense(3)

    def call(self, inputs):
        left, right = inputs
        return self.last(left + right)


def test_inputs_in_a_namedtuple_train_as_in_a_list():
    def two():
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model = Sum()
        model.compile("sgd", "mse")
        return model

    x, y = features()
    named, listed = two(), two()
    trainer(2).fit(named, ArrayData(Pair(x[:, :3], x[:, 3:]), y, batch_size=BATCH))
    trainer(2).fit(listed, ArrayData([x[:, :3], x[:, 3:]], y, batch_size=BATCH))
    assert_equal(weights(named), weights(listed))
    outputs = trainer().predict(named, Pair(x[:, :3], x[:, 3:]))
    np.testing.assert_allclose(outputs, listed.predict([x[:, :3], x[:, 3:]], verbose=0), atol=1e-6)


def test_a_callback_says_when_it_wants_to_be_called():
    class Odd(Callback):
        every_n_train_steps = "often"  # a user's own name, for something else

        def __init__(self):
            self.seen = []

        def next_event(self, fit, step):
            return 5 if step < 5 else None

        def on_chunk_end(self, fit):
            self.seen.append(fit.position.step)

    class Often(Callback):
        every_n_train_steps = 2.5

    odd = Odd()
    trainer(3, odd, Often()).fit(made(), data())
    assert 5 in odd.seen


def test_a_models_own_layers_are_fast_while_it_is_trained_and_plain_again_afterwards(monkeypatch):
    def convolved(x, kernel, padding):
        seen.append(padding)
        return convolve(x, kernel, padding)

    seen, convolve = [], fast.convolve
    monkeypatch.setattr(fast, "convolve", convolved)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.Dropout(0.1),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    parts = [loss, *model.layers]
    kinds = [type(part) for part in parts]
    x = np.zeros((40, 8, 8, 1), np.float32)
    data = ArrayData(x, np.arange(40) % 10, batch_size=BATCH, validation=0.0)
    trainer(1).fit(model, data)
    assert [type(part) for part in parts] == kinds
    # With Keras' own dropout TensorFlow runs without XLA, outside which its kernels are faster.
    assert bool(seen) == (keras.backend.backend() == "jax")
    assert kinds[1] is keras.layers.Conv2D
    with pytest.raises(ZeroDivisionError):
        trainer(1, Each("on_train_epoch_end", lambda fit: 1 / 0)).fit(model, data)
    assert [type(part) for part in parts] == kinds


def test_a_fit_takes_what_comes_from_the_data_into_the_weights():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 10
    build = partial(build_model, "airnet", widths=(8,), input_shape=(8, 8, 1))
    by_hand, by_fit = build(), build()
    whiten(by_hand, images)
    for model in (by_hand, by_fit):
        trainer(1).fit(model, ArrayData(images, labels, batch_size=BATCH, validation=0.0))
    assert_equal(weights(by_fit), weights(by_hand))
    assert np.asarray(by_fit.get_layer("whiten").bias.value).any()
    kept = np.array(by_fit.get_layer("whiten").kernel.value)
    raw = build()
    data = ArrayData(images, labels, batch_size=BATCH, validation=0.0)
    Tuner(trainer()).lr_find(raw, data, num_training=3)
    assert not np.asarray(raw.get_layer("whiten").bias.value).any()
    trainer(1).fit(by_fit, ArrayData(images[::-1] // 2, labels, batch_size=BATCH, validation=0.0))
    np.testing.assert_array_equal(np.array(by_fit.get_layer("whiten").kernel.value), kept)
