"""The engine against Keras' own training of the same model, and the laws of its state."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.chunk import Chunk, StepPlan
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.layers.fast import Conv2D, MaxPooling2D

BATCH, STEPS = 8, 10
RATE = 0.05


def build(
    *, dropout=0.0, batch_norm=False, l2=0.0, optimizer=None, loss=None, metrics=("accuracy",)
):
    """A small convolutional model, compiled, with weights that are the same every time."""
    regularizer = keras.regularizers.L2(l2) if l2 else None
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = Conv2D(4, 3, activation="relu", kernel_regularizer=regularizer)(x)
    x = MaxPooling2D(2)(x)
    x = keras.layers.BatchNormalization()(x) if batch_norm else x
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(dropout, seed=1)(x) if dropout else x
    model = keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if "kernel" in variable.path:
            variable.assign(0.2 * rng.normal(size=variable.shape))
    model.compile(
        optimizer or keras.optimizers.SGD(RATE, momentum=0.9),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
    )
    return model


@pytest.fixture(scope="module")
def batches(tiny_data):
    """``x [STEPS, BATCH, 8, 8, 1]``, ``y [STEPS, BATCH]``, on the host."""
    x, y = tiny_data
    size = STEPS * BATCH
    x = x[:size, 2:26:3, 2:26:3]
    return x.reshape(STEPS, BATCH, 8, 8, 1), y[:size].reshape(STEPS, BATCH)


def chunk_of(engine, batches, start=0, count=STEPS, valid=BATCH):
    """The batches from ``start`` on, filled up to the engine's chunk."""
    at = np.arange(start, start + engine.chunk_steps) % STEPS
    x, y = (engine.place(np.ascontiguousarray(part[at])) for part in batches)
    return Chunk(x, y, np.full(engine.chunk_steps, valid, np.int32), count)


def rates(engine, rate=RATE):
    return StepPlan(np.full(engine.chunk_steps, rate, np.float32))


def run(engine, batches, counts=(STEPS,), start=0):
    """Train in chunks of ``counts`` steps; returns the losses of all steps."""
    losses = []
    for count in counts:
        logs = engine.train(chunk_of(engine, batches, start, count), rates(engine))
        assert logs.loss.shape == logs.penalty.shape == (count,)
        losses += logs.loss.tolist()
        start += count
    return losses


def check_equal(ours, theirs):
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


class Rig:
    """An engine with everything that randomness and state can hide in, and where it began."""

    def __init__(self):
        self.engine = make_engine(
            build(dropout=0.5, batch_norm=True, l2=1e-3, optimizer=keras.optimizers.AdamW(RATE)),
            chunk_steps=STEPS,
        )
        self.began = self.engine.export_state()

    def begin(self):
        self.engine.import_state(self.began)
        return self.engine


@pytest.fixture(scope="module")
def rig():
    return Rig()


@pytest.fixture
def engine(rig):
    return rig.begin()


def test_no_steps_change_nothing(engine, batches):
    before = engine.export_state()
    logs = engine.train(chunk_of(engine, batches, count=0), rates(engine, rate=7))
    assert logs.loss.shape == (0,)
    after = engine.export_state()
    check_equal(
        [pair for pair in after if "learning_rate" not in pair[0]],
        [pair for pair in before if "learning_rate" not in pair[0]],
    )


@pytest.mark.parametrize("counts", [(7, 3), (1,) * STEPS, (0, 4, 6)], ids=str)
def test_how_steps_are_cut_into_chunks_does_not_change_a_bit(rig, batches, counts):
    whole = run(rig.begin(), batches), rig.engine.export_state(), rig.engine.metric_results()
    parts = run(rig.begin(), batches, counts), rig.engine.export_state()
    assert parts[0] == whole[0]
    check_equal(parts[1], whole[1])
    assert rig.engine.metric_results() == whole[2]


def test_it_learns_and_moves_all_of_its_state(engine, batches):
    before = dict(engine.export_state())
    first, *_, last = [np.mean(run(engine, batches)) for _ in range(6)]
    assert last < first - 0.1
    after = dict(engine.export_state())
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert [name for name in still if "learning_rate" not in name] == []
    assert any("moving_variance" in name for name in after)
    assert any("seed_generator_state" in name for name in after)


def test_state_goes_out_and_in_and_training_goes_on(rig, batches):
    engine = rig.begin()
    run(engine, batches, (4,))
    halfway = engine.export_state()
    rest = run(engine, batches, (6,), start=4)
    end, metrics = engine.export_state(), engine.metric_results()
    run(engine, batches)  # on to somewhere else
    engine.import_state(halfway)
    check_equal(engine.export_state(), halfway)
    assert run(engine, batches, (6,), start=4) == rest
    check_equal(engine.export_state(), end)
    assert engine.metric_results() == metrics


def test_exported_state_is_a_copy_with_unique_names(engine, batches):
    exported = engine.export_state()
    assert len({name for name, _ in exported}) == len(exported)
    kept = [(name, array.copy()) for name, array in exported]
    run(engine, batches)
    check_equal(exported, kept)


def test_the_model_is_brought_up_to_date(engine, batches):
    run(engine, batches)
    engine.sync_model()
    held = {f"model/{v.path}": np.asarray(v.value) for v in engine.model.variables}
    for name, array in engine.export_state():
        if name in held:
            np.testing.assert_array_equal(array, held[name], err_msg=name)
    run(engine, batches)  # the model's arrays are its own: donation took none of them away
    assert all(np.isfinite(np.asarray(v.value)).all() for v in engine.model.trainable_variables)


def test_weights_set_in_the_model_are_read(engine, batches):
    weights = [0.5 * w for w in engine.model.get_weights()[:2]]
    engine.model.trainable_variables[0].assign(weights[0])
    engine.read_model()
    np.testing.assert_array_equal(engine.export_state()[0][1], weights[0])


def test_inference_is_that_of_keras(engine, batches):
    run(engine, batches)
    engine.sync_model()
    kept, training = engine.export_state(), engine.metric_results()
    short = replace(chunk_of(engine, batches, 4, 3), valid=np.array([8, 8, 5] + [0] * 7, np.int32))
    logs, outputs = engine.infer([chunk_of(engine, batches, 0, 4), short])
    x, y = (part[:7].reshape(-1, *part.shape[2:])[:53] for part in batches)
    np.testing.assert_allclose(
        outputs, engine.model.predict(x, batch_size=53, verbose=0), atol=1e-5, rtol=1e-5
    )
    assert engine.metric_results() == training  # neither Keras' sums nor inference's
    check_equal(engine.export_state(), kept)
    theirs = engine.model.evaluate(x, y, batch_size=53, verbose=0, return_dict=True)
    penalty = sum(float(loss) for loss in engine.model.losses)
    assert logs["loss"] == pytest.approx(theirs["loss"] - penalty, abs=1e-6, rel=1e-6)
    assert logs["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)


def test_inference_of_nothing(engine):
    logs, outputs = engine.infer([])
    assert outputs is None
    assert logs["loss"] == 0


def test_training_metrics_add_up_until_reset(engine, batches):
    engine.reset_metrics()
    assert engine.metric_results() == {"accuracy": 0}
    run(engine, batches, (5,))
    once = engine.metric_results()["accuracy"]
    assert (once * 5 * BATCH) == pytest.approx(round(once * 5 * BATCH), abs=1e-4)
    run(engine, batches, (5,), start=5)
    both = engine.metric_results()["accuracy"]
    engine.reset_metrics()
    run(engine, batches, (0,))
    assert engine.metric_results() == {"accuracy": 0}
    assert both * 2 * 5 * BATCH == pytest.approx(round(both * 10 * BATCH), abs=1e-4)


def test_the_learning_rates_are_those_given(batches):
    engine = make_engine(build(optimizer=keras.optimizers.SGD(1.0)), chunk_steps=STEPS)
    assert engine.sets_learning_rate
    before = dict(engine.export_state())
    chunk = chunk_of(engine, batches, count=3)
    lr = np.zeros(STEPS, np.float32)
    engine.train(chunk, StepPlan(lr))
    after = dict(engine.export_state())
    for name in before:
        if name.startswith("model/"):
            np.testing.assert_array_equal(before[name], after[name])
    lr[1] = 0.5
    engine.train(replace(chunk, count=2), StepPlan(lr))
    moved = dict(engine.export_state())
    (rate,) = [array for name, array in moved.items() if name.endswith("learning_rate")]
    assert rate == np.float32(0.5)
    # Plain gradient descent: twice the rate, twice as far.
    engine.import_state(list(before.items()))
    engine.train(replace(chunk, count=2), StepPlan(2 * lr))
    twice = dict(engine.export_state())
    for name in before:
        if name.startswith("model/"):
            step = moved[name] - before[name]
            assert np.abs(step).max() > 0
            np.testing.assert_allclose(twice[name] - before[name], 2 * step, atol=1e-6)


def twins(**options):
    """An engine and a model of the same make, to be trained by Keras."""
    chunk_steps = options.pop("chunk_steps", 3)
    engine_options = {k: options.pop(k) for k in ("label_smoothing", "example") if k in options}
    make = options.pop("make", build)
    ours, theirs = make(**options), make(**options)
    return make_engine(ours, chunk_steps=chunk_steps, **engine_options), theirs


def check_trained_alike(engine, model, tolerance=1e-6):
    engine.sync_model()
    for ours, theirs in zip(engine.model.variables, model.variables, strict=True):
        if "seed" not in ours.path:
            ours, theirs = np.asarray(ours.value), np.asarray(theirs.value)
            np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("valid", [BATCH, 5])
def test_a_filled_up_batch_counts_its_own_examples_only(batches, valid):
    engine, model = twins(l2=1e-2)
    chunk = chunk_of(engine, batches, count=3, valid=valid)
    logs = engine.train(chunk, rates(engine))
    for x, y, ours, penalty in zip(*batches, logs.loss, logs.penalty, strict=False):
        theirs = model.train_on_batch(x[:valid], y[:valid], return_dict=True)
        assert penalty > 0
        model.reset_metrics()
        assert ours + penalty == pytest.approx(theirs["loss"], abs=1e-6, rel=1e-6)
    check_trained_alike(engine, model)


def test_the_mean_over_a_split_is_over_examples(batches):
    """Five examples of a padded batch weigh five, not eight, in the training metrics."""
    engine, model = twins()
    chunk = replace(chunk_of(engine, batches, count=2), valid=np.array([8, 5, 0], np.int32))
    engine.train(chunk, rates(engine))
    right = 0
    for i, valid in enumerate((8, 5)):
        x, y = (part[i, :valid] for part in batches)
        right += (np.asarray(model(x)).argmax(-1) == y).sum()
        model.train_on_batch(x, y)
    assert engine.metric_results()["accuracy"] == pytest.approx(right / 13, abs=1e-6)


def train_both(engine, model, batches, tolerance=2e-6):
    """Take three steps in both; returns how many of the labels were Keras' first guesses."""
    engine.train(chunk_of(engine, batches, count=3), rates(engine))
    right = 0
    for x, y in zip(*(part[:3] for part in batches), strict=True):
        right += np.sum(np.asarray(model(x)).argmax(-1) == y) if y.ndim == 1 else 0
        model.train_on_batch(x, y)
    check_trained_alike(engine, model, tolerance)
    return right


OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(RATE, weight_decay=0.1, clipnorm=0.5),
    "loss scale": lambda: keras.optimizers.SGD(RATE, loss_scale_factor=64.0),
    "accumulation": lambda: keras.optimizers.SGD(RATE, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.3, 0.1, 0.01])
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_of_the_optimizer_are_kept(batches, name):
    def make():
        return build(optimizer=OPTIMIZERS[name]())

    engine, model = twins(make=make)
    assert engine.sets_learning_rate == (name != "schedule")
    train_both(engine, model, batches)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_is_that_of_keras(batches, column, weighted):
    def make():
        return build(
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
        )

    engine, model = make_engine(build(), chunk_steps=3, label_smoothing=0.2), make()
    weight = np.random.default_rng(0).random((STEPS, BATCH)).astype(np.float32)
    chunk = chunk_of(engine, batches, count=3, valid=5)
    y, w = (a[:3, :, None] if column else a[:3] for a in (batches[1], weight))
    chunk = replace(chunk, y=engine.place(y), weight=engine.place(w) if weighted else None)
    logs = engine.train(chunk, rates(engine))
    for x, y, w in zip(*(part[:3, :5] for part in (*batches, weight)), strict=True):
        model.train_on_batch(x, np.eye(10, dtype=np.float32)[y], w if weighted else None)
    check_trained_alike(engine, model)
    if weighted:
        return
    # What is reported is the loss without smoothing.
    plain = make_engine(build(), chunk_steps=3)
    first = plain.train(chunk_of(plain, batches, count=1, valid=5), rates(plain)).loss[0]
    assert logs.loss[0] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(("smoothing", "valid", "weighted"), [(0, 8, 0), (0.2, 5, 0), (0, 5, 1)])
def test_mixed_labels_are_those_of_keras(batches, smoothing, valid, weighted):
    """Keras takes them as rows of probabilities."""
    rng = np.random.default_rng(0)
    share = rng.random((STEPS, BATCH)).astype(np.float32)
    other = rng.permuted(batches[1], axis=1)
    weight = rng.random((STEPS, BATCH)).astype(np.float32) if weighted else None
    engine = make_engine(build(l2=1e-2), chunk_steps=3, label_smoothing=smoothing)
    mixed = replace(
        chunk_of(engine, batches, count=3, valid=valid),
        mix=(engine.place(other[:3]), engine.place(share[:3])),
        weight=None if weight is None else engine.place(weight[:3]),
    )
    logs = engine.train(mixed, rates(engine))
    model = build(
        l2=1e-2,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing),
    )
    right, eye = 0, np.eye(10, dtype=np.float32)
    for i in range(3):
        x, y, y2, s = (part[i, :valid] for part in (*batches, other, share))
        right += (np.asarray(model(x)).argmax(-1) == np.where(s >= 0.5, y, y2)).sum()
        true = s[:, None] * eye[y] + (1 - s[:, None]) * eye[y2]
        w = None if weight is None else weight[i, :valid]
        theirs = model.train_on_batch(x, true, w, return_dict=True)["loss"]
        model.reset_metrics()
        if not smoothing:  # which the loss that is reported is without
            assert logs.loss[i] + logs.penalty[i] == pytest.approx(theirs, rel=1e-5)
    check_trained_alike(engine, model, 2e-6)
    assert engine.metric_results()["accuracy"] == pytest.approx(right / (3 * valid), abs=1e-6)


def test_batch_normalization_is_that_of_keras(batches):
    engine, model = twins(batch_norm=True)
    before = model.get_weights()
    train_both(engine, model, batches)
    moving = [v for v in engine.model.non_trainable_variables if "moving" in v.path]
    assert len(moving) == 2
    after = [np.asarray(v.value) for v in moving]
    assert not any(np.array_equal(a, b) for a in after for b in before if a.shape == b.shape)


LOSSES = {
    "string": "sparse_categorical_crossentropy",
    "function": keras.losses.sparse_categorical_crossentropy,
    "own function": lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_every_form_of_compile(batches, name):
    def make():
        model = build()
        outputs = keras.layers.Softmax()(model.output)
        model = keras.Model(model.input, outputs)
        model.compile(keras.optimizers.SGD(RATE), LOSSES[name], metrics=["accuracy"])
        return model

    engine, model = twins(make=make, example=Split(*(part[0, :1] for part in batches)))
    right = train_both(engine, model, batches)
    assert right
    assert engine.metric_results()["accuracy"] == pytest.approx(right / (3 * BATCH), abs=1e-6)


def test_regression_without_metrics(batches):
    def make():
        inputs = keras.Input((8, 8, 1))
        outputs = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, outputs)
        model.layers[-1].kernel.assign(np.linspace(-1, 1, 128).reshape(64, 2))
        model.compile(keras.optimizers.SGD(RATE), "mse")
        return model

    x = batches[0].astype(np.float32) / 255
    y = x[:, :, 0, :2, 0].copy()
    engine, model = twins(make=make)
    train_both(engine, model, (x, y))
    assert engine.metric_results() == {}


def test_mixed_precision_is_that_of_keras(batches):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        engine, model = twins(chunk_steps=3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    train_both(engine, model, batches, tolerance=5e-3)


class Own(keras.Model):
    def train_step(self, *_):
        return {}


def test_what_cannot_be_trained_is_refused():
    bare = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(UserError, match=r"not compiled.*model\.compile\("):
        make_engine(bare)
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    unbuilt.compile("sgd", "mse")
    with pytest.raises(UserError, match=r"not built.*Input"):
        make_engine(unbuilt)
    inputs = keras.Input((4,))
    own = Own(inputs, keras.layers.Dense(2)(inputs))
    own.compile("sgd", "mse")
    with pytest.raises(UserError, match="Own has a train_step of its own"):
        make_engine(own)
    bare.compile("sgd", keras.losses.MeanSquaredError(reduction="none"))
    with pytest.raises(UserError, match="reduction 'none'"):
        make_engine(bare)
    bare.compile("sgd", "mse")
    with pytest.raises(UserError, match=r"label_smoothing needs.*SparseCategoricalCrossentropy"):
        make_engine(bare, label_smoothing=0.1)


def test_what_xla_cannot_compile_runs_without_it(batches, backend):
    if backend != "tensorflow":
        pytest.skip("about TensorFlow only")
    import tensorflow as tf

    class InPython(keras.layers.Layer):
        def call(self, x):
            squared = tf.py_function(lambda a: a * a, [x], x.dtype)
            squared.set_shape(x.shape)
            return squared

    def make():
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        outputs = keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(InPython()(x)))
        model = keras.Model(inputs, outputs)
        kernel = np.random.default_rng(0).normal(size=(64, 10))
        model.get_layer("logits").kernel.assign(0.2 * kernel)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(RATE), loss, metrics=["accuracy"])
        return model

    engine, model = twins(make=make)
    assert engine.determinism()[0]
    with pytest.warns(UserWarning, match=r"XLA cannot compile this model.*EagerPyFunc"):
        train_both(engine, model, batches)
    assert engine.infer([chunk_of(engine, batches, count=1)])[0]["loss"] > 0
    assert not engine.determinism()[0]


def test_several_models_in_a_process_are_no_reason_for_warnings(batches, caplog):
    """TensorFlow's: "5 out of the last 5 calls ... triggered tf.function retracing"."""
    inputs = keras.Input((8, 8, 1))
    for units in range(2, 9):
        outputs = keras.layers.Dense(units)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        engine = make_engine(model, chunk_steps=1)
        chunk = chunk_of(engine, (batches[0], batches[1] % 2), count=1)
        engine.train(chunk, rates(engine))
        engine.infer([chunk])
    assert "retracing" not in caplog.text


def test_says_what_it_runs_on(engine):
    assert engine.device.kind in ("cpu", "gpu")
    assert engine.device.name
    assert (engine.peak_memory_mb() is None) == engine.device.is_host
