"""What the Trainer's arguments do: lengths, amounts, rhythms, precision, accumulation, clipping."""

from datetime import timedelta

import keras
import numpy as np
import pytest
from everything import (
    EPOCHS,
    STEPS,
    At,
    arrays,
    data,
    everything_model,
    last,
    terminate,
    trainer,
)
from float64 import in_float64
from kept import kept

from fmnist_keras3 import (
    ArrayData,
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    Trainer,
    UserError,
    build_model,
)
from fmnist_keras3.callbacks import Timer
from fmnist_keras3.callbacks import timer as timer_module
from fmnist_keras3.optimizers import OPTIMIZERS, make_optimizer
from fmnist_keras3.runs.history import read_metrics
from fmnist_keras3.training import arguments


def plain_model(optimizer, rate=None, policy=None):
    """A model without randomness: logits of a dense layer, weights drawn by NumPy.

    ``optimizer`` is one, or the name of one with the learning rate ``rate``. By another ``policy``
    `kept` knows apart the models that are trained in other precisions.
    """
    if rate is not None:
        optimizer = keras.optimizers.get(
            {"class_name": optimizer, "config": {"learning_rate": rate}}
        )
    keras.utils.clear_session()
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ],
        name="plain",
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.1, w.shape) for w in model.get_weights()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def steps_of(result, event):
    return [r["step"] for r in result.history if r["event"] == event]


def fit_plain(path, optimizer, batch_size=32, validation=0.2, **options):
    """Train a new model with an optimizer, or the one that is kept with its name and rate."""
    x, y = arrays()
    options = {"max_epochs": 1, "enable_progress_bar": False, "log_every_n_steps": 1, **options}
    ckpt_path = options.pop("ckpt_path", None)
    if isinstance(optimizer, tuple):
        model = kept.model(plain_model, *optimizer, options.get("precision"))
    else:
        model = plain_model(optimizer)
    result = Trainer(run_dir=path, **options).fit(
        model, ArrayData(x, y, batch_size=batch_size, validation=validation), ckpt_path=ckpt_path
    )
    return model, result


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("00:10:00", 600),
        ("1:00:00:30", 86430),
        ("90", 90),
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
        ({"hours": 1}, 3600),
    ],
)
def test_times_are_read_as_lightning_reads_them(value, expected):
    assert arguments.seconds(value) == expected


@pytest.mark.parametrize("value", ["soon", "10:00", 0, -1, "nan", {"weaks": 1}, []])
def test_times_that_are_none_are_named(value):
    with pytest.raises(UserError, match=r"max_time is .*00:10:00"):
        Trainer(max_time=value)


def test_amounts_are_numbers_or_fractions():
    assert [arguments.batches(v, 10) for v in (None, 3, 99, 0.25, 1.0, 0.01)] == [
        10,
        3,
        10,
        2,
        10,
        1,
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit_train_batches": 0}, "limit_train_batches is 0"),
        ({"limit_train_batches": 1.5}, "limit_train_batches is 1.5"),
        ({"limit_test_batches": "all"}, "limit_test_batches is 'all'"),
        ({"val_check_interval": 0.0}, "val_check_interval is 0.0"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch is 0"),
        ({"min_epochs": 20}, "min_epochs is 20, more than max_epochs 10"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0"),
        ({"gradient_clip_val": 0}, "gradient_clip_val is 0"),
        ({"gradient_clip_algorithm": "norms"}, "gradient_clip_algorithm is 'norms'"),
        ({"precision": "bf16-mixd"}, "Did you mean 'bf16-mixed'"),
        ({"barebones": True, "logger": "csv"}, "barebones goes without"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Trainer(**options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(tmp_path, name):
    lr = {"adadelta": 1.0, "sgd": 0.1, "ftrl": 0.05, "adagrad": 0.1}.get(name, 0.01)
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255)])
    model.add(keras.layers.AveragePooling2D(4))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make_optimizer(name, lr, weight_decay=1e-3), loss)
    made = Trainer(3, run_dir=tmp_path / "run", enable_progress_bar=False)
    result = made.fit(model, ArrayData(*arrays(), batch_size=40, validation=0.0))
    losses = [r["loss"] for r in result.history if r["event"] == "train"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_muon_takes_convolution_kernels_as_matrices():
    kernel, gradient = np.random.default_rng(0).normal(size=(2, 3, 3, 4, 8)).astype(np.float32)
    ours, keras_own = keras.Variable(kernel), keras.Variable(kernel.reshape(-1, 8))
    make_optimizer("muon", 0.01).apply([keras.ops.convert_to_tensor(gradient)], [ours])
    keras.optimizers.Muon(0.01, weight_decay=0.0).apply(
        [keras.ops.convert_to_tensor(gradient.reshape(-1, 8))], [keras_own]
    )
    assert np.allclose(np.asarray(ours).reshape(-1, 8), np.asarray(keras_own), atol=1e-6)
    assert not np.allclose(np.asarray(ours), kernel, atol=1e-4)


def test_a_model_with_muon_loads_with_plain_keras(tmp_path):
    model = build_model("lenet", optimizer=make_optimizer("muon", 0.01))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is keras.optimizers.Muon
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert a.shape == b.shape


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_limits_what_a_step_changes(tmp_path, algorithm):
    before = kept.model(plain_model, "sgd", 1.0).get_weights()
    model, _ = fit_plain(
        tmp_path / "run",
        ("sgd", 1.0),
        validation=0.0,
        max_steps=1,
        gradient_clip_val=0.01,
        gradient_clip_algorithm=algorithm,
    )
    moves = np.concatenate(
        [(a - b).ravel() for a, b in zip(model.get_weights(), before, strict=True)]
    )
    size = np.linalg.norm(moves) if algorithm == "norm" else np.abs(moves).max()
    assert size == pytest.approx(0.01, rel=1e-3)


def test_two_ways_of_clipping_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"clipnorm=1\.0 already"):
        fit_plain(tmp_path / "run", keras.optimizers.SGD(1.0, clipnorm=1.0), gradient_clip_val=0.1)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.filterwarnings("ignore:On a CPU the precision")
def test_mixed_precision_learns_and_resumes(tmp_path, precision):
    options = {"precision": precision, "max_epochs": 3}
    model, straight = fit_plain(tmp_path / "straight", ("adam", 0.01), **options)
    assert model.get_layer("hidden").compute_dtype in ("bfloat16", "float16")
    assert model.get_layer("logits").compute_dtype == "float32"
    assert model.get_layer("hidden").kernel.dtype == "float32"
    assert straight.summary["precision"] == precision
    losses = [r["loss"] for r in straight.history if r["event"] == "train"]
    assert losses[-1] < losses[0]
    fit_plain(tmp_path / "run", ("adam", 0.01), max_steps=7, **options)
    fit_plain(tmp_path / "run", ("adam", 0.01), ckpt_path="last", **options)
    pairs = zip(last(tmp_path / "run").state, last(tmp_path / "straight").state, strict=True)
    for (name, a), (_, b) in pairs:
        assert a.tobytes() == b.tobytes(), name


class NoTraining(Callback):
    """Ends a fit before anything is compiled."""

    def setup(self, fit):
        raise NotImplementedError


def test_lower_precision_on_a_cpu_is_warned_of(tmp_path):
    options = {"precision": "bf16-mixed", "callbacks": NoTraining()}
    warned = pytest.warns(UserWarning, match="On a CPU the precision bf16-mixed is slower")
    with warned, pytest.raises(NotImplementedError):
        fit_plain(tmp_path / "run", keras.optimizers.SGD(), **options)


def test_full_precision_is_what_it_says(tmp_path):
    model, result = fit_plain(tmp_path / "run", ("sgd", 0.1), precision="32-true", max_epochs=3)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    losses = [r["loss"] for r in result.history if r["event"] == "validation"]
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:On a CPU the precision")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_in_64_bits_keep_their_precision(tmp_path, precision):
    with in_float64():
        model = plain_model("sgd")
        with pytest.raises(UserError, match="has weights in float64"):
            trainer(tmp_path / "run", precision=precision).fit(model, data())
        assert {layer.compute_dtype for layer in model.layers} == {"float64"}
    assert not (tmp_path / "run").exists()


def test_limits_may_be_fractions(tmp_path):
    made = trainer(tmp_path / "run", limit_train_batches=0.4, limit_val_batches=0.5, max_epochs=2)
    result = made.fit(everything_model(), data())
    assert steps_of(result, "train") == [2, 4]
    assert result.summary["steps"] == 4
    whole = trainer(tmp_path / "whole", max_epochs=2, limit_train_batches=2)
    other = whole.fit(everything_model(), data())
    assert steps_of(other, "train") == [2, 4]
    values = [[r["loss"] for r in f.history if r["event"] == "validation"] for f in (result, other)]
    assert values[0] != values[1]  # half of the validation batches


def test_the_test_can_be_limited(tmp_path):
    x, y = arrays()
    module = ArrayData(x, y, test=(x, y), batch_size=32)
    made = Trainer(limit_test_batches=2, enable_progress_bar=False)
    model = kept.model(plain_model, "sgd", 0.1)
    logs, outputs = made.test_outputs(model, module)
    assert outputs.shape == (64, 10)
    assert logs["loss"] == pytest.approx(model.evaluate(x[:64], y[:64], verbose=0)[0], rel=1e-5)


@pytest.mark.parametrize("count", [True, 3])
def test_a_fast_dev_run_takes_a_few_batches_and_leaves_nothing(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    made = trainer(None, max_epochs=7, fast_dev_run=count)  # which asks for files
    result = made.fit(everything_model(), data())
    assert result.status == "completed"
    assert (result.summary["steps"], result.summary["epochs"]) == (int(count), 1)
    assert len(steps_of(result, "validation")) == 1
    assert result.run_dir is result.last_checkpoint is None
    assert not list(tmp_path.iterdir())


def test_barebones_trains_to_the_same_weights_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = Trainer(max_epochs=2, barebones=True)
    model = kept.model(plain_model, "sgd", 0.1)
    x, y = arrays()
    before = model.get_weights()
    result = made.fit(model, ArrayData(x, y, batch_size=32, validation=0.2))
    assert result.summary["steps"] == 2 * STEPS
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
    weights = model.get_weights()
    assert not any(np.array_equal(a, b) for a, b in zip(weights, before, strict=True))
    other, _ = fit_plain(tmp_path / "run", ("sgd", 0.1), max_epochs=2)
    for a, b in zip(weights, other.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_the_sanity_check_comes_first_and_leaves_no_trace(tmp_path):
    class Watch(Callback):
        def setup(self, fit):
            self.seen = []
            take = fit._fit.validation_feed.take
            fit._fit.validation_feed.take = lambda count: self.seen.append(count) or take(count)

        def on_chunk_end(self, fit):
            self.seen.append("training")

    watch, none = Watch(), Watch()
    one = trainer(tmp_path / "one", watch, num_sanity_val_steps=1).fit(everything_model(), data())
    whole = Watch()
    trainer(tmp_path / "all", whole, num_sanity_val_steps=-1, max_epochs=1).fit(
        everything_model(), data()
    )
    two = trainer(tmp_path / "two", none, num_sanity_val_steps=0).fit(everything_model(), data())
    # The first batch is of the compilation, which takes no step.
    assert watch.seen[:3] == [1, 1, "training"]
    assert whole.seen[:3] == [1, 2, "training"]
    assert none.seen[:2] == [1, "training"]
    assert [r["loss"] for r in one.history] == [r["loss"] for r in two.history]
    pairs = zip(last(tmp_path / "one").state, last(tmp_path / "two").state, strict=True)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"val_check_interval": 2}, [2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20]),
        ({"val_check_interval": 0.6}, [3, 5, 8, 10, 13, 15, 18, 20]),
        ({"check_val_every_n_epoch": 2}, [10, 20]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": 4}, [18, 20]),
    ],
)
def test_validations_come_in_their_rhythm(tmp_path, options, steps):
    result = trainer(tmp_path / "run", **options).fit(everything_model(), data())
    assert steps_of(result, "validation") == steps
    assert steps_of(result, "train") == [5, 10, 15, 20]


def test_more_validations_change_no_weight(tmp_path):
    for name, options in (("one", {}), ("two", {"val_check_interval": 1})):
        trainer(tmp_path / name, **options).fit(everything_model(), data())
    pairs = zip(last(tmp_path / "one").state, last(tmp_path / "two").state, strict=True)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)


def test_a_stop_in_a_validation_within_an_epoch_is_made_up_for(tmp_path):
    options = {"val_check_interval": 2}
    straight = trainer(tmp_path / "straight", **options).fit(everything_model(), data())
    stopped = trainer(tmp_path / "run", At(-7, terminate), **options)
    result = stopped.fit(everything_model(), data())
    assert result.status == "interrupted"
    assert steps_of(result, "validation") == [2, 4, 5]
    again = trainer(tmp_path / "run", **options)
    again.fit(everything_model(), data(), ckpt_path="last")
    keys = ("event", "epoch", "step", "loss")
    records = [
        [[r[k] for k in keys] for r in read_metrics(path / "metrics.jsonl")]
        for path in (straight.run_dir, tmp_path / "run")
    ]
    assert records[0] == records[1]
    pairs = zip(last(tmp_path / "run").state, last(straight.run_dir).state, strict=True)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)


def test_the_best_may_be_within_an_epoch(tmp_path):
    made = trainer(tmp_path / "run", ModelCheckpoint(save_top_k=20), val_check_interval=1)
    result = made.fit(everything_model(), data())
    best = last(tmp_path / "run").manifest["callbacks"]["ModelCheckpoint"]["best"]
    assert len(best) == STEPS * EPOCHS  # all validations were ranked, each with its checkpoint
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == STEPS * EPOCHS
    assert result.best_checkpoint.name == best[0][1]


def test_patience_counts_validations(tmp_path):
    never = EarlyStopping("val_loss", patience=3, min_delta=1e9)
    made = trainer(tmp_path / "run", val_check_interval=2)
    made.callbacks = [never, ModelCheckpoint()]
    result = made.fit(everything_model(), data())
    assert (
        result.summary["steps"] == 7
    )  # the validations at 4, 5 and 7 are no better than that at 2
    assert "for 3 validations" in result.reason


def test_before_min_epochs_nothing_stops_early(tmp_path):
    made = trainer(tmp_path / "run", min_epochs=3)
    made.callbacks = [EarlyStopping("val_loss", patience=1, min_delta=1e9), ModelCheckpoint()]
    result = made.fit(everything_model(), data())
    assert result.status == "stopped"
    assert result.summary["epochs"] == 3


class Clock:
    """A clock that is a second later at each look."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now


def test_max_time_ends_the_training_and_counts_over_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(timer_module, "time", Clock())
    run = tmp_path / "run"
    every = At(99, None)  # a boundary at each step
    result = trainer(run, every, max_time=6).fit(everything_model(), data())
    assert result.status == "stopped"
    assert "max_time of 6 s" in result.reason
    assert 0 < result.summary["steps"] == last(run).manifest["step"] < STEPS * EPOCHS
    more = trainer(run, every, max_time=12).fit(everything_model(), data(), ckpt_path="last")
    assert result.summary["steps"] < more.summary["steps"] < STEPS * EPOCHS
    none = trainer(run, every, max_time=6).fit(everything_model(), data(), ckpt_path="last")
    assert none.summary["steps"] == more.summary["steps"]
    long = trainer(run, every, max_time="00:12:00:00")
    assert long.fit(everything_model(), data(), ckpt_path="last").status == "completed"


def test_a_run_without_checkpoints(tmp_path):
    options = {"run_dir": tmp_path / "run", "label_smoothing": 0.1}
    result = Trainer(1, enable_checkpointing=False, **options).fit(everything_model(), data())
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
    assert result.last_checkpoint is None
    assert (tmp_path / "run/model.keras").exists()
    with pytest.raises(UserError, match="there is a ModelCheckpoint"):
        Trainer(1, enable_checkpointing=False, callbacks=[ModelCheckpoint()])
    with pytest.raises(UserError, match="leave them enabled"):
        Trainer(1, enable_checkpointing=False, on_nonfinite="rollback")


def test_a_timer_takes_lightnings_times():
    for duration in ("00:12:00:00", {"hours": 12}, timedelta(hours=12), 43200):
        timer = Timer(duration)
        assert timer.duration == 43200
        assert timer.time_remaining() == 43200
    assert Timer().time_remaining() is None
    with pytest.raises(UserError, match="a time above 0"):
        Timer("soon")


@pytest.mark.parametrize("trial", ["fast_dev_run", "barebones"])
def test_a_trial_does_not_pass_over_a_checkpoint(tmp_path, trial):
    made = Trainer(1, run_dir=tmp_path / "run", label_smoothing=0.1, **{trial: True})
    with pytest.raises(UserError, match="Leave ckpt_path out"):
        made.fit(everything_model(), data(), ckpt_path="last")
