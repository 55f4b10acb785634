"""One epoch of ours is one of plain Keras on the same batches, whatever the loss, metrics, layers.

The last batch is short. Weights, moving statistics and values are compared to 1e-5. Our loss is
reported without the penalty of regularisers and `add_loss`, Keras' with it: for the comparison it
is added in training, and Keras' loss is computed without it in validation.
"""

import catalogue
import keras
import numpy as np
import pytest
from catalogue import CLASS, CLASSES, LAYERS, LOSSES, METRICS, NUMBERS, ROWS, WHOLE, N
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers, optimizers

from fmnist_keras3 import ArrayData, Callback, Trainer, UserError
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.engines import filling

pytestmark = pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
BATCH, VALIDATED = 16, 21
TOLERANCE = 1e-5

# What cannot be compared, and why.
NO_COMPARISON = {
    "AugMix": "its inner layers draw by Python's random while they are traced",
    "RandomCrop": "Keras' own evaluation fails on TensorFlow",
    "RandomElasticTransform": "on TensorFlow it draws by whether the batch's size is known",
}


OF_TENSORFLOW = ("Hashing", "HashedCrossing", "IntegerLookup")


class Seen(Callback):
    """Keeps the values of the epoch; a fit that leaves no files has no history."""

    def __init__(self):
        self.penalties = []

    def on_chunk_end(self, fit):
        self.penalties.extend(fit.step_logs.penalty)

    def on_train_epoch_end(self, fit):
        valid = epoch_plan(0, 0, examples=len(fit.data.train), batch_size=fit.data.batch_size).valid
        self.logs = {**fit.logs, "penalty": np.average(self.penalties, weights=valid)}


def ours(model, x, y, weight=None, batch=BATCH, **options):
    """Train for one epoch; returns the values by Keras' names."""
    seen = Seen()
    data = ArrayData(x, y, weight, batch_size=batch, validation=validated(x, y, weight))
    made = Trainer(
        1,
        callbacks=seen,
        enable_progress_bar=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **options,
    )
    made.fit(model, data)
    return seen.logs


def validated(*parts):
    return tuple(part[:VALIDATED] for part in parts if part is not None)


def kerass(model, x, y, weight=None, batch=BATCH, penalty=False):
    """Let Keras train on the batches of our plan; returns the values, vectors of several.

    With a ``penalty``, which Keras adds, the loss of the validation is computed without it.
    """
    parts = [part for part in (x, y, weight) if part is not None]
    plan = epoch_plan(0, 0, examples=len(x), batch_size=batch)

    def batches():
        for rows, valid in zip(plan.indices, plan.valid, strict=True):
            yield tuple(part[rows[:valid]] for part in parts)

    history = model.fit(batches(), steps_per_epoch=plan.steps, shuffle=False, verbose=0).history
    model.set_weights(model.get_weights())  # Keras shares arrays with the average, and loses them
    x, y, *weight = kept = validated(*parts)
    options = {"sample_weight": weight[0]} if weight else {}
    found = model.evaluate(x, y, batch_size=batch, verbose=0, return_dict=True, **options)
    if penalty:
        found["loss"] = loss_alone(model, batch, kept)
    return {k: v[0] for k, v in history.items()} | {f"val_{k}": v for k, v in found.items()}


def loss_alone(model, batch, parts):
    """Return the mean over batches of Keras' loss, without the penalty."""
    total, outputs = 0.0, model.predict(parts[0], batch_size=batch, verbose=0)
    for first in range(0, len(outputs), batch):
        y, p, *weight = (a[first : first + batch] for a in (parts[1], outputs, *parts[2:]))
        total += len(p) * float(model._compile_loss(y, p, *weight))
    return total / len(outputs)


def close(a, b):
    a, b = np.ravel(np.asarray(a, np.float64)), np.ravel(np.asarray(b, np.float64))
    return np.abs(a - b).max(initial=0) <= TOLERANCE * max(1, np.abs(b).max(initial=0))


def check(make, x, y, weight=None, batch=BATCH, **options):
    """Train twins of ``make()`` in both ways and compare all that they have."""

    def made():
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        return make()

    mine, theirs = made(), made()
    logs = ours(mine, x, y, weight, batch, **options)
    expected = kerass(theirs, x, y, weight, batch, penalty=bool(logs["penalty"]))
    for a, b in zip(mine.variables, theirs.variables, strict=True):
        if "seed" not in a.path:
            a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
            assert close(a, b), f"{np.abs(a - b).max()} between weights"
    for a, b in zip(mine.optimizer.variables, theirs.optimizer.variables, strict=True):
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        assert close(a, b), "the optimizers differ"
    logs["loss"] += logs["penalty"]
    for name, value in expected.items():
        if mine.optimizer.use_ema and name.startswith("val_"):
            continue  # measured before the average takes the weights' place, as in Keras' fit
        several = [logs[f"{name}_{i}"] for i in range(np.size(value))] if np.size(value) > 1 else []
        assert close(several or logs[name], value), f"{name} is {logs.get(name)}, not {value}"


def numbers(shape):
    drawn = np.random.default_rng(1)
    if shape == "whole":
        return drawn.integers(0, 7, (N, 5)).astype("int32")
    return drawn.uniform(-0.5 if len(shape) < 3 else 0, 1, (N, *shape)).astype("float32")


def dense(loss, metrics=None, optimizer=None, **options):
    """Probabilities of three classes, from six numbers."""

    def make():
        first = layers.Dense(5, activation="relu")
        model = keras.Sequential(
            [keras.Input((6,)), first, layers.Dense(CLASSES, activation="softmax")]
        )
        made = optimizer() if optimizer else optimizers.SGD(0.1)
        loss_now = loss if isinstance(loss, (str, keras.Loss)) else loss()
        model.compile(made, loss_now, metrics=metrics and metrics(), **options)
        return model

    return make


def with_layer(shape, layer):
    """``layer()`` between an input of ``shape`` and three numbers."""

    def make():
        whole = shape == "whole"
        inputs = keras.Input((5,), dtype="int32") if whole else keras.Input(shape)
        x = layer()(inputs)
        if "int" in x.dtype:
            x = keras.ops.cast(x, "float32")
        x = layers.Flatten()(x) if len(x.shape) > 2 else x
        model = keras.Model(inputs, layers.Dense(CLASSES)(x))
        model.compile(optimizers.SGD(0.05), "mse", metrics=["mae"])
        return model

    return make


EVERY_LAYER = {
    name: (shape, layer)
    for shape, some in (*LAYERS.items(), ("whole", WHOLE))
    for name, layer in some.items()
}
# In the default suite: what a filled-up batch would get wrong, and what it would not.
SOME_LAYERS = ["BatchNormalization", "ActivityRegularization", "an operation", "add_loss", "Conv2D"]
SOME_LAYERS += ["across the batch", "Dropout", "Masking", "RandomRotation", "a model inside"]
SOME_LOSSES = ["MeanSquaredError", "Dice", "own sum", "ignored class", "a column"]


def slow_but(some, every):
    return [name if name in some else pytest.param(name, marks=pytest.mark.slow) for name in every]


@pytest.mark.parametrize("name", slow_but(SOME_LOSSES, LOSSES))
def test_every_loss(name):
    loss, y = LOSSES[name]
    check(dense(loss), numbers((6,)), y)


@pytest.mark.filterwarnings("ignore:.*independent predictors", "ignore:.*requested dtype int64")
@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name):
    labels, *others = name.split(", ")
    y = {"rows": ROWS, "classes": CLASS}[labels]
    loss = "mse" if labels == "rows" else keras.losses.SparseCategoricalCrossentropy()
    given = [m for m in METRICS[name]() if isinstance(m, keras.Metric)]
    assert given
    assert all((type(m).__name__ in filling.METRICS) != bool(others) for m in given)
    check(dense(loss, METRICS[name]), numbers((6,)), y)


@pytest.mark.filterwarnings(
    "ignore:XLA cannot compile this model", "ignore:.*requested dtype int64"
)
@pytest.mark.parametrize("name", slow_but(SOME_LAYERS, EVERY_LAYER))
def test_every_layer(name):
    if name in NO_COMPARISON:
        pytest.skip(NO_COMPARISON[name])
    shape, layer = EVERY_LAYER[name]
    if name in OF_TENSORFLOW and keras.backend.backend() == "jax":
        with pytest.raises(UserError, match=f"The layer {name} .* computes with TensorFlow"):
            ours(with_layer(shape, layer)(), numbers(shape), NUMBERS)
        return
    check(with_layer(shape, layer), numbers(shape), NUMBERS)


@pytest.mark.parametrize("kind", ["losses", "metrics", "layers"])
def test_nothing_of_keras_is_left_out(kind):
    namespace = getattr(keras, kind)
    classes = {n for n in dir(namespace) if isinstance(getattr(namespace, n), type)}
    names = {getattr(namespace, name).__name__ for name in classes}  # without aliases
    tried = {"losses": LOSSES, "layers": EVERY_LAYER}.get(kind)
    if kind == "metrics":
        made = [m for some in METRICS.values() for m in some()]
        tried = {type(m).__name__ for m in made}
    missing = names - set(tried) - getattr(catalogue, f"NOT_{kind.upper()}")
    assert not missing, f"add these to catalogue.py: {sorted(missing)}"


OPTIMIZERS = {
    "average": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "overwritten by the average": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    ),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "clipping and decay": lambda: optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.1),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_is_asked_for(name):
    check(dense("mse", optimizer=OPTIMIZERS[name]), numbers((6,)), NUMBERS)


@pytest.mark.parametrize(  # a column is an obstacle to filling up, and so is Dice
    ("loss", "column"), [("mse", False), ("mse", True), (keras.losses.Dice(), False)]
)
def test_sample_weights(loss, column):
    weight = np.linspace(0, 2, N).astype("float32")
    weight = weight[:, None] if column else weight
    more = {"weighted_metrics": ["mae"]}
    check(dense(loss, lambda: ["mae"], **more), numbers((6,)), NUMBERS, weight)


class NoWeights(keras.metrics.Metric):
    """Knows no weights at all; Keras' own loop fails on it."""

    def __init__(self):
        super().__init__(name="above")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred):
        self.total.assign_add(keras.ops.sum(keras.ops.cast(y_pred > 0.3, "float32")))

    def result(self):
        return self.total + 0


def test_a_metric_may_know_no_weights():
    model, x = dense("mse", lambda: [NoWeights()])(), numbers((6,))
    model.optimizer.learning_rate.assign(0.0)
    logs = ours(model, x, NUMBERS)
    outputs = model.predict(x, verbose=0)
    assert logs["above"] == (outputs > 0.3).sum()
    assert logs["val_above"] == (outputs[:VALIDATED] > 0.3).sum()


@pytest.mark.parametrize("length", [4, BATCH])
def test_sequences_with_a_mask(length):
    """A loss and labels at each place; Keras' JAX trainer forgets the mask in training metrics."""
    x = numbers((length, 2))
    x[np.random.default_rng(2).random((N, length)) < 0.3] = 0
    y = np.random.default_rng(3).integers(0, CLASSES, (N, length))

    def make():
        steps = [keras.Input((length, 2)), layers.Masking(), layers.LSTM(3, return_sequences=True)]
        model = keras.Sequential([*steps, layers.Dense(CLASSES)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.SGD(0.1), loss)
        return model

    check(make, x, y)
    model = make()
    model.compile(optimizers.SGD(0.0), model.loss, metrics=["accuracy"])
    logs, kept = ours(model, x, y), np.abs(x).sum(-1) > 0
    right = model.predict(x, verbose=0).argmax(-1) == y
    assert logs["accuracy"] == pytest.approx(right[kept].mean(), abs=1e-6)


SAFE = ["Dense", "PReLU", "Concatenate", "Softmax", "LayerNormalization"]
ACROSS = ["BatchNormalization", "across the batch", "ActivityRegularization", "Lambda", "Dropout"]


@settings(
    deadline=None,
    max_examples=5,
    derandomize=True,
    phases=[Phase.generate],  # to make a failure smaller would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    batch=st.integers(1, 60),
    loss=st.sampled_from(["MeanSquaredError", "Hinge", "Dice", "own mean", "weighted mean"]),
    chosen=st.lists(st.sampled_from(SAFE + ACROSS), min_size=1, max_size=3),
    weighted=st.booleans(),
)
def test_whatever_is_put_together(batch, loss, chosen, weighted):
    def make():
        x = inputs = keras.Input((6,))
        for name in chosen:
            x = LAYERS[catalogue.VECTOR][name]()(x)
        model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))
        model.compile(optimizers.SGD(0.05), LOSSES[loss][0](), metrics=["mae", scalar])
        return model

    scalar = catalogue.scalar_metric
    weight = np.linspace(0.1, 2, N).astype("float32") if weighted else None
    check(make, numbers((6,)), LOSSES[loss][1], weight, batch=min(batch, N))
