"""Models and data of users' own: the Trainer against Keras' `fit` on the same batches."""

import functools

import keras
import numpy as np
import pytest
from kept import kept

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.engines import make_engine

N, BATCH, EPOCHS = 52, 16, 2  # the last batch has 4 examples


def colours(n=N):
    """Images like CIFAR-10's, ``[n, 32, 32, 3]`` uint8, whose colour and place tell the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n).astype(np.int32)
    x = rng.integers(0, 80, (n, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[3 * label : 3 * label + 4, :, label % 3] += 150
    return x, y


def features(seed=0):
    return np.random.default_rng(seed).normal(size=(N, 6)).astype(np.float32)


def trainer(path, **options):
    return Trainer(EPOCHS, run_dir=path, enable_progress_bar=False, log_every_n_steps=0, **options)


def keras_fit(model, *parts):
    """Let Keras train on the batches of our plan; returns its values of the last epoch."""
    parts = [part for part in parts if part is not None]

    def batches(plan):
        for rows, valid in zip(plan.indices, plan.valid, strict=True):
            yield tuple(keras.tree.map_structure(lambda a, r=rows[:valid]: a[r], p) for p in parts)

    for epoch in range(EPOCHS):
        plan = epoch_plan(0, epoch, examples=N, batch_size=BATCH)
        history = model.fit(
            batches(plan), steps_per_epoch=plan.steps, shuffle=False, verbose=0
        ).history
    return {name: value for name, (value,) in history.items()}


def check(path, make, x, y, weight=None, ours=None, tolerance=1e-5, validation=0.0, **options):
    """Train twins with Keras and with the Trainer, from arrays.

    Returns the Trainer's last records by their events, the Trainer and its model (``ours``, if
    that is kept).
    """
    theirs, ours = make(), ours or make()
    data = ArrayData(x, y, weight, validation=validation, batch_size=BATCH)
    made = trainer(path, **options)
    result = made.fit(ours, data)
    values = keras_fit(theirs, x, y, weight)
    for a, b in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(a.value), np.array(b.value), atol=tolerance)
    records = {r["event"]: r for r in result.history}
    for name, value in values.items():
        if name.endswith("_loss"):
            continue  # of an output: Keras does not weigh it by the batches' lengths everywhere
        assert records["train"][name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    return records, made, ours


def seeded(make):
    """The same weights on each call."""

    def made(*arguments):
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        return make(*arguments)

    return made


def compiled(model, loss=None, metrics=None, **options):
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=metrics, **options)
    return model


@seeded
def sequential():
    layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255)]
    layers += [keras.layers.AveragePooling2D(4), keras.layers.Flatten(), keras.layers.Dense(10)]
    return compiled(
        keras.Sequential(layers), metrics=["accuracy", "sparse_top_k_categorical_accuracy"]
    )


def test_a_sequential_model_on_colour_images_with_several_metrics(tmp_path):
    x, y = colours()
    records, *_ = check(tmp_path / "run", sequential, x, y, ours=kept.model(sequential))
    assert {"accuracy", "sparse_top_k_categorical_accuracy"} < records["train"].keys()


def test_colour_images_are_learnt_with_augmentation(tmp_path):
    x, y = colours(400)
    data = ArrayData(x, y, batch_size=50, augment="flip,crop:1", validation=0.25)
    made = Trainer(20, run_dir=tmp_path / "run", enable_progress_bar=False, schedule="cosine")
    model = kept.model(sequential)
    made.fit(model, data)
    assert made.validate(model, data)["accuracy"] > 0.9


class Subclassed(keras.Model):
    """Built on its first batch; a loss of its own, without the weights, and its own metric."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.hidden = keras.layers.Dense(8, activation="relu", kernel_regularizer="l2")
        self.out = keras.layers.Dense(2)
        self.distance = keras.metrics.Mean(name="distance")

    def call(self, x, training=False):
        return self.out(self.hidden(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.distance.update_state(keras.ops.abs(y - y_pred))
        return keras.ops.mean(keras.ops.square(y - y_pred)) + sum(self.losses)


def test_a_subclassed_model_with_a_loss_of_its_own(tmp_path):
    x = features()
    y = x[:, :2] * 2
    make = seeded(lambda: compiled(Subclassed()))
    records, made, model = check(tmp_path / "run", make, x, y, validation=(x[:8], y[:8]))
    assert records["train"]["distance"] > 0
    assert "distance" in records["validation"]
    assert made.predict(model, x).shape == (N, 2)
    np.testing.assert_allclose(made.predict(model, x), model.predict(x, verbose=0), atol=1e-5)


@seeded
def two_by_two():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    a = keras.layers.Dense(3, name="a")(joined)
    b = keras.layers.Dense(1, name="b")(joined)
    model = keras.Model({"left": left, "right": right}, {"a": a, "b": b})
    losses = {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"}
    model.compile(
        keras.optimizers.Adam(1e-2),
        losses,
        metrics={"a": ["accuracy"], "b": ["mae"]},
        loss_weights={"a": 1.0, "b": 0.5},
    )
    return model


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_several_inputs_and_outputs(tmp_path, pipeline):
    x = {"left": features(1), "right": features(2)}
    y = {"a": (x["left"][:, 0] > 0).astype(np.int64), "b": x["right"][:, :1]}
    ours = kept.model(two_by_two)
    records, made, model = check(tmp_path / "run", two_by_two, x, y, ours=ours, pipeline=pipeline)
    assert {"a_loss", "b_loss", "a_accuracy", "b_mae"} < records["train"].keys()
    values, outputs = made.test_outputs(model, ArrayData(x, y, test=(x, y), batch_size=BATCH))
    assert {"a_loss", "b_loss", "a_accuracy", "b_mae"} < values.keys()
    theirs = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=N)
    assert values == pytest.approx({k: theirs[k] for k in values}, rel=1e-4)
    assert {k: v.shape for k, v in outputs.items()} == {"a": (N, 3), "b": (N, 1)}
    assert {k: v.shape for k, v in made.predict(model, x).items()} == {"a": (N, 3), "b": (N, 1)}


def regression(**options):
    @seeded
    def make():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        return compiled(model, **options)

    return make


def test_sample_weights_count_in_the_loss_and_in_weighted_metrics(tmp_path):
    x, rng = features(), np.random.default_rng(3)
    y, weight = x[:, :1] + x[:, 1:2], rng.uniform(0, 3, N).astype(np.float32)
    make = regression(loss="mse", metrics=["mae"], weighted_metrics=["mae"])
    records, made, model = check(tmp_path / "run", make, x, y, weight)
    assert records["train"]["mae"] != pytest.approx(records["train"]["weighted_mae"], rel=1e-3)
    made.run_dir = tmp_path / "none"
    none = np.zeros(N)
    nothing = made.fit(model, ArrayData(x, y, none, batch_size=BATCH, validation=(x, y, none)))
    assert [r["loss"] for r in nothing.history] == [0.0] * len(nothing.history)


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_a_loss_with_another_reduction_gets_whole_batches(tmp_path, reduction):
    x = features()
    make = regression(loss=keras.losses.MeanSquaredError(reduction=reduction))
    weight = np.linspace(0.5, 2, N).astype(np.float32)
    check(tmp_path / "run", make, x, x[:, :1], weight, tolerance=1e-4)


@seeded
def normalization(whose):
    """Batch normalisation, whose statistics are those of the examples of a batch."""
    first = keras.layers.Dense(4, use_bias=False)  # a bias here has no gradient but rounding
    layers = [keras.Input((6,)), first, keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    return compiled(keras.Sequential(layers), "mse")


def normalized():
    """The same model twice, in its first state: for the Trainer and for Keras."""
    return kept.model(normalization, "ours"), kept.model(normalization, "Keras'")


def check_equal_weights(ours, theirs):
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_a_short_last_batch_keeps_its_size(tmp_path, pipeline):
    x = features()
    ours, theirs = normalized()
    data = ArrayData(x, x[:, :1], validation=0.0, batch_size=BATCH)
    result = trainer(tmp_path / "run", pipeline=pipeline).fit(ours, data)
    values = keras_fit(theirs, x, x[:, :1])
    check_equal_weights(ours, theirs)
    assert result.history[-1]["loss"] == pytest.approx(values["loss"], rel=1e-5)


def test_a_short_last_batch_may_be_dropped(tmp_path):
    x, (ours, theirs) = features(), normalized()
    data = ArrayData(x, x[:, :1], validation=0.0, batch_size=BATCH)
    result = trainer(tmp_path / "run", last_batch="drop").fit(ours, data)
    assert [r["step"] for r in result.history] == [3, 6]
    for epoch in range(EPOCHS):
        for rows in epoch_plan(0, epoch, examples=N, batch_size=BATCH).indices[:3]:
            theirs.train_on_batch(x[rows], x[rows, :1])
    check_equal_weights(ours, theirs)


def test_a_short_last_batch_may_be_filled_up(tmp_path):
    """By repeats that normalisation counts, and the loss does not."""
    x, (ours, theirs) = features(), normalized()
    data = ArrayData(x, x[:, :1], validation=0.0, batch_size=BATCH)
    trainer(tmp_path / "run", last_batch="fill").fit(ours, data)
    for epoch in range(EPOCHS):
        plan = epoch_plan(0, epoch, examples=N, batch_size=BATCH)
        for rows, valid in zip(plan.indices, plan.valid, strict=True):
            weight = np.where(np.arange(BATCH) < valid, BATCH / valid, 0)
            theirs.train_on_batch(x[rows], x[rows, :1], weight)
    check_equal_weights(ours, theirs)
    model = regression(loss=keras.losses.Dice())()
    with pytest.raises(UserError, match=r"last_batch is 'fill', but the loss Dice may not"):
        trainer(tmp_path / "no", last_batch="fill").fit(model, data)


class Reconstruction(keras.Model):
    """An autoencoder that compares its outputs with its inputs, and needs no targets."""

    def __init__(self):
        super().__init__(name="reconstruction")
        self.layer = keras.layers.Dense(6)

    def call(self, x):
        return self.layer(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(x - y_pred))


def test_a_loss_may_need_no_targets(tmp_path):
    import tensorflow as tf

    x = features()
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
    model = seeded(lambda: compiled(Reconstruction()))()
    made = trainer(tmp_path)
    for kind, data in {"array": x, "tuple": (x, None), "dataset": dataset}.items():
        made.run_dir = tmp_path / kind
        result = made.fit(model, data, validation_data=data)
        by_hand = np.mean((x - model.predict(x, verbose=0)) ** 2)
        assert result.history[-1]["loss"] == pytest.approx(by_hand, rel=1e-5)
        assert made.validate(model, data)["loss"] == pytest.approx(by_hand, rel=1e-5)
        assert made.predict(model, x).shape == (N, 6)


def test_what_there_is_nothing_to_train_for_is_refused(tmp_path):
    x = features()
    with pytest.raises(UserError, match="has no targets"):
        trainer(tmp_path / "run").fit(regression(loss="mse")(), x)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd")
    with pytest.raises(UserError, match="without a loss"):
        trainer(tmp_path / "run").fit(model, (x, x[:, :1]))
    assert not (tmp_path / "run").exists()


class Shrinking(keras.layers.Layer):
    """Adds the mean square of what it lets through to the loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


def test_what_layers_add_may_be_the_whole_loss(tmp_path):
    @seeded
    def make():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3), Shrinking()])
        model.compile(keras.optimizers.SGD(0.1))
        return model

    records, *_ = check(tmp_path / "run", make, features(), features()[:, :1])
    assert records["train"]["loss"] > 0


def test_validation_data_may_be_given(tmp_path):
    x = features()
    y = x[:, :1]
    model = regression(loss="mse")()
    result = trainer(tmp_path / "run").fit(model, (x, y), (x[:8], y[:8]))
    dataset = result.summary["dataset"]
    assert (dataset["train"], dataset["validation"]) == (N, 8)
    last = [r for r in result.history if r["event"] == "validation"][-1]
    theirs = model.evaluate(x[:8], y[:8], verbose=0, return_dict=True)
    assert last["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_a_metric_of_several_values_is_logged_as_several(tmp_path):
    x, y = colours()
    model = sequential()
    compiled(
        model, keras.losses.CategoricalCrossentropy(from_logits=True), [keras.metrics.F1Score()]
    )
    result = trainer(tmp_path / "run").fit(model, (x, np.eye(10, dtype=np.float32)[y]))
    assert {f"f1_score_{i}" for i in range(10)} < result.history[0].keys()


@pytest.mark.parametrize("method", ["train_step", "test_step", "compute_metrics"])
def test_what_the_compiled_loop_would_not_run_is_refused(tmp_path, method):
    made = type("Own", (keras.Sequential,), {method: lambda self, *args: {}})
    model = compiled(made([keras.Input((6,)), keras.layers.Dense(1)]), "mse")
    with pytest.raises(UserError, match=f"Own has a {method} of its own"):
        trainer(tmp_path / "run").fit(model, (features(), features()[:, :1]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (([1.0, 2.0], [0, 1]), "give NumPy arrays"),
        ((np.zeros((4, 6)), np.zeros((3, 1))), "lengths 3, 4"),
        ((np.zeros((4, 6)), np.zeros((4, 1)), np.zeros(5)), "lengths 4, 5"),
        ((1, 2, 3, 4), "Cannot train on a tuple"),
    ],
)
def test_data_that_cannot_be_used_is_told(tmp_path, data, words):
    with pytest.raises(UserError, match=words):
        trainer(tmp_path / "run").fit(regression(loss="mse")(), data)


def test_augmentation_is_for_images():
    with pytest.raises(UserError, match="augment is for images"):
        ArrayData({"a": features()}, features()[:, :1], augment="flip", batch_size=8).setup()


def test_mixed_labels_are_for_losses_that_are_means(tmp_path):
    model = sequential()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    data = ArrayData(*colours(), augment="crop,cutmix", batch_size=BATCH)
    with pytest.raises(UserError, match=r"cutmix mixes labels.*leave cutmix out"):
        trainer(tmp_path).fit(model, data)


def test_arrays_are_evaluated_whole_and_checkpoints_loaded_before(tmp_path):
    x = features()
    y, model = x[:, :1], regression(loss="mse")()
    made = trainer(tmp_path / "run")
    result = made.fit(model, (x, y), validation_data=(x[:8], y[:8]))
    values = made.test(model, (x, y))
    assert values == made.validate(model, (x, y))
    theirs = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=N)
    assert values["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    model.set_weights([w * 0 for w in model.get_weights()])
    assert made.test(model, (x, y))["loss"] != values["loss"]
    assert made.test(model, (x, y), ckpt_path="last") == values
    assert made.test(model, (x, y)) == values  # the model holds them now
    model.set_weights([w * 0 for w in model.get_weights()])
    predicted = made.predict(model, x, ckpt_path=result.last_checkpoint)
    np.testing.assert_allclose(predicted, model.predict(x, verbose=0), atol=1e-5)


def test_there_must_be_something_to_test_on(tmp_path):
    model, data = regression(loss="mse")(), ArrayData(features(), features()[:, :1], batch_size=8)
    with pytest.raises(UserError, match="no test split"):
        trainer(tmp_path / "run").test(model, data)


SCHEDULES = {
    "cosine": lambda s: s.CosineDecay(0.01, 5, warmup_target=0.1, warmup_steps=3),
    "piecewise": lambda s: s.PiecewiseConstantDecay([2, 5], [0.1, 0.01, 0.001]),
    "exponential": lambda s: s.ExponentialDecay(0.1, 4, 0.5, staircase=True),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_of_a_schedule_in_the_optimizer_are_known(name):
    made = SCHEDULES[name](keras.optimizers.schedules)
    model = regression(loss="mse")()
    model.compile(keras.optimizers.Adam(made), "mse")
    rates = make_engine(model).scheduled_rates(np.arange(4, 20))
    assert rates.tolist() == pytest.approx([float(made(step)) for step in range(4, 20)], rel=1e-5)


def test_the_rates_of_a_schedule_in_the_optimizer_are_logged(tmp_path):
    made, x = SCHEDULES["cosine"](keras.optimizers.schedules), features()
    model = regression(loss="mse")()
    model.compile(keras.optimizers.Adam(made), "mse")
    training = Trainer(2, enable_progress_bar=False, log_every_n_steps=1)
    for fit in range(2):  # the optimizer counts on
        training.run_dir = tmp_path / str(fit)
        result = training.fit(model, ArrayData(x, x[:, :1], batch_size=BATCH, validation=0.0))
        rates = [r["lr"] for r in result.history if r["event"] == "step"]
        expected = [float(made(8 * fit + step)) for step in range(8)]
        assert rates == pytest.approx(expected, rel=1e-5)


class Distance:
    """A loss as an object that Keras can call, but not store."""

    def __call__(self, y, p):
        return keras.ops.mean(keras.ops.square(y - p), axis=-1)


@pytest.mark.parametrize("kind", ["partial", "object", "lambda"])
def test_a_loss_that_cannot_be_stored_leaves_a_model_without_it(tmp_path, kind):
    loss = {
        "partial": functools.partial(keras.losses.huber, delta=0.5),
        "object": Distance(),
        "lambda": eval("lambda y, p: keras.ops.mean(keras.ops.abs(y - p), axis=-1)"),
    }[kind]
    x = features()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    with pytest.warns(UserWarning, match="holds the model without loss, optimizer and metrics"):
        trainer(tmp_path / "run").fit(model, (x, x[:, :3]))
    assert model.compiled
    again = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert not again.compiled
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
