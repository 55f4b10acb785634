"""The examples of Lightning's documentation, as its users would write them here.

Each test has Lightning's own lines in its docstring, their translation as its code, and asserts
what Lightning's page promises.
"""

import csv
import inspect
import os
import random
from itertools import pairwise

import keras
import numpy as np
import pytest
import test_loggers
import yaml
from everything import arrays, built_model

from fmnist_keras3 import (
    ArrayData,
    Callback,
    CSVLogger,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    Logger,
    Lookahead,
    MLFlowLogger,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    TensorBoardLogger,
    ThroughputMonitor,
    Timer,
    Trainer,
    Tuner,
    UserError,
    WandbLogger,
    WeightAveraging,
    load_run,
    seed_everything,
)
from fmnist_keras3.callbacks import timer as timer_module
from fmnist_keras3.cli import main
from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.engines import make_engine
from fmnist_keras3.ground import lightning as lightning_names
from fmnist_keras3.training import trainer as trainer_module
from fmnist_keras3.training.session import Session

services = test_loggers.services  # the least of MLflow and W&B that our loggers call
STEPS = 8  # of an epoch: 160 examples in batches of 20
compiled = {}


def engine_of(model, example, **options):
    """Make each engine once for all tests of this file."""
    key = id(model), *options.items()
    if key not in compiled:
        compiled[key] = make_engine(model, example=example, **options)
    return compiled[key]


@pytest.fixture(scope="module")
def small():
    """A model with dropout and batch normalisation, and its first state."""
    model = built_model(keras.optimizers.Adam(0.01))
    model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    return model, [(v, np.array(v.value)) for v in variables]


@pytest.fixture
def model(small):
    model, state = small
    for variable, value in state:
        variable.assign(value)
    return model


@pytest.fixture
def data():
    x, y = arrays()
    return ArrayData(x, y, test=(x[:60], y[:60]), batch_size=20, validation=0.2)


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer_module, "make_engine", engine_of)
    return tmp_path


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock that is a second later at each look of a Timer."""

    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 1
            return self.now

    monkeypatch.setattr(timer_module, "time", Clock())


def linear(optimizer):
    """A model without randomness, whose update is the gradient of the batch."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer="zeros"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def steps(result, event):
    return [r["step"] for r in result.history if r["event"] == event]


def values(result, event, name):
    return [r[name] for r in result.history if r["event"] == event]


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


# The Trainer's flags


def test_accumulate_grad_batches(data):
    """# accumulate every 4 batches (effective batch size is batch*4)
    trainer = Trainer(accumulate_grad_batches=4)
    """
    model, large = linear(keras.optimizers.SGD(0.1)), linear(keras.optimizers.SGD(0.1))
    Trainer(max_steps=4, accumulate_grad_batches=4).fit(model, data)
    Trainer(max_steps=1).fit(large, ArrayData(*arrays(), batch_size=80, validation=0.2))
    for ours, expected in zip(weights(model), weights(large), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        assert ours.any()


def test_barebones(model, data, inside, capsys):
    """trainer = Trainer(barebones=True)"""
    before = weights(model)
    result = Trainer(max_epochs=1, barebones=True).fit(model, data)
    assert result.summary["steps"] == STEPS
    assert not equal(before, weights(model))
    assert not list(inside.iterdir())
    assert capsys.readouterr().out == ""


class PrintCallback(Callback):
    def on_fit_start(self, fit):
        print("Training is started!")

    def on_fit_end(self, fit):
        print("Training is done.")


@pytest.mark.parametrize("callbacks", [PrintCallback(), [PrintCallback()]])
def test_callbacks(model, data, capsys, callbacks):
    """# single callback, or a list of callbacks
    trainer = Trainer(callbacks=PrintCallback())
    """
    trainer = Trainer(max_epochs=1, callbacks=callbacks, enable_progress_bar=False)
    trainer.fit(model, data)
    assert capsys.readouterr().out.splitlines() == ["Training is started!", "Training is done."]
    assert repr(trainer).count("PrintCallback") == 1


def test_check_val_every_n_epoch(model, data):
    """# run val loop every 10 training epochs
    trainer = Trainer(check_val_every_n_epoch=10)
    """
    result = Trainer(max_epochs=4, check_val_every_n_epoch=2).fit(model, data)
    assert values(result, "train", "epoch") == [1, 2, 3, 4]
    assert values(result, "validation", "epoch") == [2, 4]


def test_default_root_dir(model, data, inside):
    """trainer = Trainer(default_root_dir=os.getcwd())"""
    result = Trainer(max_epochs=1, default_root_dir=os.getcwd()).fit(model, data)
    assert result.run_dir.parent == inside
    assert result.last_checkpoint.is_dir()
    assert result.last_checkpoint.is_relative_to(result.run_dir)


def test_deterministic(data, backend, monkeypatch):
    """seed_everything(42, workers=True)
    trainer = Trainer(deterministic=True)
    """
    asked = []
    if backend == "tensorflow":  # which has no way back
        switch = "tensorflow.config.experimental.enable_op_determinism"
        monkeypatch.setattr(switch, lambda: asked.append(True))
    ends = []
    for _ in range(2):
        seed_everything(42)
        model = linear("sgd")
        result = Trainer(max_epochs=1, deterministic=True).fit(model, data)
        ends.append(weights(model))
    assert equal(*ends)
    assert result.summary["deterministic"] is True
    assert bool(asked) == (backend == "tensorflow")


def test_enable_checkpointing(model, data):
    """# turn off automatic checkpointing
    trainer = Trainer(enable_checkpointing=False)
    """
    result = Trainer(max_epochs=1).fit(model, data)
    assert result.last_checkpoint.is_dir()
    result = Trainer(max_epochs=1, enable_checkpointing=False).fit(model, data)
    assert result.last_checkpoint is None
    assert not list((result.run_dir / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("shown", [True, False])
def test_enable_progress_bar(model, data, capsys, shown):
    """# disable progress bar
    trainer = Trainer(enable_progress_bar=False)
    """
    Trainer(max_epochs=1, enable_progress_bar=shown).fit(model, data)
    assert ("epoch   1/1" in capsys.readouterr().out) == shown


@pytest.mark.parametrize("shown", [True, False])
def test_enable_model_summary(model, data, capsys, monkeypatch, shown):
    """# disable summarization
    trainer = Trainer(enable_model_summary=False)
    """
    monkeypatch.setattr("fmnist_keras3.ground.screen.on_screen", lambda: True)
    Trainer(max_epochs=1, enable_model_summary=shown).fit(model, data)
    out = capsys.readouterr().out
    assert all((word in out) == shown for word in ("hidden", "Dense", "parameters"))


@pytest.mark.parametrize(("fast_dev_run", "count"), [(True, 1), (7, 7)])
def test_fast_dev_run(model, data, inside, fast_dev_run, count):
    """# runs only 1 training and 1 validation batch and the program ends
    trainer = Trainer(fast_dev_run=True)
    """
    trainer = Trainer(fast_dev_run=fast_dev_run, logger=True, callbacks=[ModelCheckpoint()])
    result = trainer.fit(model, data)
    assert (result.summary["steps"], result.summary["epochs"]) == (count, 1)
    assert len(values(result, "validation", "loss")) == 1
    assert not list(inside.iterdir())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_clip_val(data, algorithm):
    """# clip gradients' global norm to <=0.5; clip by value with gradient_clip_algorithm="value"
    trainer = Trainer(gradient_clip_val=0.5)
    """
    model, free = linear(keras.optimizers.SGD(1.0)), linear(keras.optimizers.SGD(1.0))
    limit = 0.05
    Trainer(
        max_steps=1, gradient_clip_val=limit, gradient_clip_algorithm=algorithm
    ).fit(model, data)  # fmt: skip
    Trainer(max_steps=1).fit(free, data)

    def size(model):  # with a rate of 1 the weights, which were 0, are the gradient
        parts = np.concatenate([w.ravel() for w in weights(model)])
        return np.linalg.norm(parts) if algorithm == "norm" else np.abs(parts).max()

    assert size(free) > 1.1 * limit
    assert size(model) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize(("limit", "count"), [(0.25, 2), (3, 3), (1.0, STEPS)])
def test_limit_train_batches(model, data, limit, count):
    """# run through only 25% of the training set each epoch
    trainer = Trainer(limit_train_batches=0.25)
    """
    result = Trainer(max_epochs=2, limit_train_batches=limit).fit(model, data)
    assert steps(result, "train") == [count, 2 * count]


def test_limit_val_batches(model, data):
    """# run for only 10 batches; disable validation
    trainer = Trainer(limit_val_batches=10); trainer = Trainer(limit_val_batches=0)
    """
    data.setup()
    x, y = data.validation.x[:20], data.validation.y[:20]
    result = Trainer(max_epochs=1, limit_val_batches=1).fit(model, data)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert values(result, "validation", "accuracy") == [pytest.approx(expected["accuracy"])]
    for none in (0, 0.0):
        result = Trainer(max_epochs=1, limit_val_batches=none).fit(model, data)
        assert not steps(result, "validation")


def test_limit_test_batches(model, data):
    """# run for only 10 batches
    trainer = Trainer(limit_test_batches=10)
    """
    x, y = arrays()
    found = Trainer(limit_test_batches=1).test(model, data)
    expected = model.evaluate(x[:20], y[:20], verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert found != Trainer().test(model, data)


def test_log_every_n_steps(model, data):
    """trainer = Trainer(log_every_n_steps=50)"""
    result = Trainer(max_epochs=1, log_every_n_steps=3).fit(model, data)
    assert steps(result, "step") == [3, 6]


def test_logger(model, data):
    """logger = TensorBoardLogger(save_dir=os.getcwd(), version=1, name="lightning_logs")
    Trainer(logger=logger)
    """
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(save_dir=os.getcwd(), name="lightning_logs")
    Trainer(max_epochs=1, logger=logger).fit(model, data)
    found, _ = test_loggers.accumulated("lightning_logs")
    assert {"train/loss", "validation/accuracy"} <= {name for name, *_ in found}


def test_several_loggers(model, data):
    """logger1 = TensorBoardLogger(...); logger2 = CSVLogger(save_dir="logs/", name="my_exp_name")
    trainer = Trainer(logger=[logger1, logger2])
    """
    pytest.importorskip("tensorboard")
    logger1 = TensorBoardLogger(save_dir="logs/", name="tensorboard")
    logger2 = CSVLogger(save_dir="logs/", name="my_exp_name")
    result = Trainer(max_epochs=2, logger=[logger1, logger2]).fit(model, data)
    assert list(os.scandir("logs/tensorboard"))
    with open("logs/my_exp_name/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == values(result, "validation", "loss")


def test_no_logger(model, data):
    """Trainer(logger=False)"""
    result = Trainer(max_epochs=1, logger=False).fit(model, data)
    assert not (result.run_dir / "metrics.csv").exists()
    assert (Trainer(max_epochs=1, logger=True).fit(model, data).run_dir / "metrics.csv").exists()


def test_max_epochs(model, data):
    """trainer = Trainer(max_epochs=1000)"""
    result = Trainer(max_epochs=2).fit(model, data)
    assert (result.status, result.summary["epochs"]) == ("completed", 2)


def test_min_epochs(model, data):
    """trainer = Trainer(min_epochs=1)"""
    stop = EarlyStopping(monitor="val_loss", patience=1, min_delta=1e9)
    result = Trainer(max_epochs=4, min_epochs=3, callbacks=[stop]).fit(model, data)
    assert (result.status, result.summary["epochs"]) == ("stopped", 3)


def test_max_steps(model, data):
    """# Default (disabled)
    trainer = Trainer(max_steps=-1)
    # Stop after 100 steps
    trainer = Trainer(max_steps=100)
    """
    assert Trainer(max_steps=100).fit(model, data).summary["steps"] == 100  # 13 epochs
    result = Trainer(max_steps=13, max_epochs=2).fit(model, data)
    assert (result.status, result.summary["steps"]) == ("completed", 13)
    assert Trainer(max_steps=-1, max_epochs=2).fit(model, data).summary["steps"] == 2 * STEPS


def test_max_time(model, data, slow_clock):
    """# Stop after 12 hours of training or when reaching 10 epochs (string)
    trainer = Trainer(max_time="00:12:00:00", max_epochs=10)
    # Stop after 1 day and 5 hours (dict)
    trainer = Trainer(max_time={"days": 1, "hours": 5})
    """
    result = Trainer(max_time="00:12:00:00", max_epochs=1).fit(model, data)
    assert result.status == "completed"
    result = Trainer(max_time={"seconds": 5}, max_epochs=100).fit(model, data)
    assert result.status == "stopped"
    assert result.summary["steps"] < 100 * STEPS
    assert load_run(result.run_dir, "last").model is not None  # what was trained is kept


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (0, 0), (-1, 2)])
def test_num_sanity_val_steps(model, data, monkeypatch, count, batches):
    """# turn it off
    trainer = Trainer(num_sanity_val_steps=0)
    # check all validation data
    trainer = Trainer(num_sanity_val_steps=-1)
    """
    seen = []

    class FirstStep(Callback):
        def on_fit_start(self, fit):
            seen.append("training")

    trainer = Trainer(max_epochs=1, num_sanity_val_steps=count, callbacks=FirstStep())
    engine = trainer._engine_for(Session(model, "fit"), data.setup().train, 20)
    infer = engine.infer

    def watched(chunks, *more):
        logs, outputs = infer(chunks, *more)
        seen.append(0 if outputs is None else len(outputs))
        return logs, outputs

    monkeypatch.setattr(engine, "infer", watched)
    trainer.fit(model, data)
    # The first is the compilation, of no batch.
    assert seen == [0, *[20 * batches] * bool(batches), "training", 40]


@pytest.mark.parametrize(("amount", "examples"), [(1, 20), (0.25, 40)])
def test_overfit_batches(model, data, amount, examples):
    """# debug by training and validating on exactly the same single batch
    trainer = Trainer(overfit_batches=1)
    """
    result = Trainer(max_epochs=20, overfit_batches=amount).fit(model, data)
    sizes = result.summary["dataset"]
    assert sizes["train"] == sizes["validation"] == examples
    losses = values(result, "validation", "loss")
    assert losses[-1] < 0.8 * losses[0]
    assert Trainer(overfit_batches=0.0).overfit_batches == 0  # Lightning's default


@pytest.mark.parametrize(
    ("precision", "compute"),
    [("bf16-mixed", "bfloat16"), ("16-mixed", "float16"), ("32-true", "float32")],
)
@pytest.mark.filterwarnings("ignore:On a CPU the precision")
def test_precision(data, precision, compute):
    """# 16-bit bfloat mixed precision (model weights remain in torch.float32)
    trainer = Trainer(precision="bf16-mixed", devices=1)
    """
    model = linear(keras.optimizers.SGD(0.1))
    result = Trainer(max_epochs=3, precision=precision).fit(model, data)
    assert model.layers[0].compute_dtype == compute
    assert model.layers[-1].compute_dtype == "float32"  # the logits
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    losses = values(result, "validation", "loss")
    assert losses[-1] < losses[0]


def test_profiler(model, data):
    """# to profile standard training events
    trainer = Trainer(profiler="simple")
    """
    result = Trainer(max_epochs=1, profiler="simple").fit(model, data)
    found = {row["section"]: row for row in result.profile}
    assert {"step", "data", "validation", "checkpoint"} <= set(found)
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)
    with pytest.raises(UserError, match=r"'advanced'.*simple"):
        Trainer(profiler="advanced")


@pytest.mark.parametrize(("interval", "expected"), [(0.25, [2, 4, 6, 8]), (3, [3, 6, 8])])
def test_val_check_interval(model, data, interval, expected):
    """# check validation set 4 times during a training epoch
    trainer = Trainer(val_check_interval=0.25)
    """
    result = Trainer(max_epochs=1, val_check_interval=interval).fit(model, data)
    assert steps(result, "validation") == expected


# Callbacks


def test_early_stopping(model, data):
    """early_stop_callback = EarlyStopping(monitor="val_accuracy", min_delta=0.00, patience=3,
    verbose=False, mode="max")
    """
    early_stop_callback = EarlyStopping(
        monitor="val_accuracy", min_delta=1.00, patience=3, verbose=False, mode="max"
    )
    result = Trainer(max_epochs=50, callbacks=[early_stop_callback]).fit(model, data)
    assert result.status == "stopped"
    assert early_stop_callback.stopped_epoch == result.summary["epochs"] == 1 + 3
    assert early_stop_callback.wait_count == 3
    assert early_stop_callback.best_score == values(result, "validation", "accuracy")[0]
    with pytest.raises(UserError, match=r"'val_acc'.*Did you mean 'val_accuracy'"):
        Trainer(max_epochs=1, callbacks=EarlyStopping("val_acc")).fit(model, data)


def test_model_checkpoint(model, data):
    """checkpoint_callback = ModelCheckpoint(save_top_k=2, monitor="val_loss", mode="min",
    filename="sample-mnist-{epoch:02d}-{val_loss:.2f}"); checkpoint_callback.best_model_path
    """
    checkpoint_callback = ModelCheckpoint(
        save_top_k=2,
        monitor="val_loss",
        mode="min",
        filename="sample-mnist-{epoch:02d}-{val_loss:.2f}",
    )
    result = Trainer(max_epochs=4, callbacks=[checkpoint_callback]).fit(model, data)
    losses = values(result, "validation", "loss")
    best = int(np.argmin(losses))
    assert checkpoint_callback.best_model_score == losses[best]
    assert checkpoint_callback.best_model_path == result.best_checkpoint
    ending = f"sample-mnist-epoch={best + 1:02d}-val_loss={losses[best]:.2f}"
    assert checkpoint_callback.best_model_path.name.endswith(ending)
    ranked = sorted(range(4), key=losses.__getitem__)
    kept = {*ranked[:2], 3, 2}  # the two best, the last, and the one before it
    names = [path.name for path in checkpoint_callback.best_model_path.parent.glob("step-*")]
    assert sorted(names) == sorted(
        f"step-{8 * (n + 1):08d}-sample-mnist-epoch={n + 1:02d}-val_loss={losses[n]:.2f}"
        for n in kept
    )


def test_model_checkpoint_within_an_epoch(model, data):
    """checkpoint_callback = ModelCheckpoint(every_n_train_steps=100, save_top_k=-1)"""
    checkpoint_callback = ModelCheckpoint(every_n_train_steps=3)
    result = Trainer(max_steps=7, callbacks=[checkpoint_callback]).fit(model, data)
    names = [path.name for path in (result.run_dir / "checkpoints").glob("step-*")]
    assert sorted(names) == ["step-00000006", "step-00000007"]  # 3 is neither last nor best


def test_a_checkpoint_by_a_value_that_is_not_logged(model, data):
    """checkpoint_callback = ModelCheckpoint(monitor="my_metric")"""

    class MyMetric(Callback):
        def on_validation_end(self, fit):
            fit.logs["my_metric"] = -fit.position.epoch

    checkpoint_callback = ModelCheckpoint(monitor="my_metric", mode="min")
    Trainer(max_epochs=2, callbacks=[MyMetric(), checkpoint_callback]).fit(model, data)
    assert checkpoint_callback.best_model_score == -1
    trainer = Trainer(max_epochs=2, callbacks=[ModelCheckpoint(monitor="val_acc")])
    with pytest.raises(UserError, match=r"'val_acc'.*Did you mean 'val_accuracy'"):
        trainer.fit(model, data)


def test_learning_rate_monitor(model, data):
    """lr_monitor = LearningRateMonitor(logging_interval="step")
    trainer = Trainer(callbacks=[lr_monitor])
    """
    lr_monitor = LearningRateMonitor(logging_interval="step")
    result = Trainer(max_epochs=2, schedule="linear", callbacks=[lr_monitor]).fit(model, data)
    assert steps(result, "lr") == list(range(1, 17))
    rates = values(result, "lr", "lr")
    assert rates[0] == pytest.approx(0.01)
    assert all(then > now for then, now in pairwise(rates))


class Ends(Callback):
    """Keeps the trained weights of each epoch's end."""

    def setup(self, fit):
        self.seen = []

    def on_train_epoch_end(self, fit):
        fit.engine.sync_model()
        self.seen.append([np.array(v.value) for v in fit.model.trainable_variables])


def averaged(model, expected):
    for variable, *parts in zip(model.trainable_variables, *expected, strict=True):
        np.testing.assert_allclose(np.array(variable.value), np.mean(parts, 0), atol=1e-6)


def test_stochastic_weight_averaging(model, data):
    """trainer = Trainer(callbacks=[StochasticWeightAveraging(swa_lrs=1e-2)])"""
    ends = Ends()
    callbacks = [StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=0.5), ends]
    result = Trainer(max_epochs=4, callbacks=callbacks).fit(model, data)
    averaged(model, ends.seen[2:])
    assert values(result, "train", "lr")[-1] == pytest.approx(1e-2)


def test_ema_weight_averaging(model, data):
    """trainer = Trainer(callbacks=EMAWeightAveraging())"""
    ends = Ends()
    ema = EMAWeightAveraging(decay=0.0, update_every_n_steps=STEPS, use_warmup=False)
    Trainer(max_epochs=2, callbacks=[ema, ends]).fit(model, data)
    averaged(model, ends.seen[-1:])  # without memory it is what was trained
    callbacks = EMAWeightAveraging(decay=0.9)
    result = Trainer(max_epochs=1, callbacks=callbacks).fit(model, data)
    raw = load_run(result.run_dir).path / "model_raw.keras"
    assert raw.is_file()
    record = result.history[-1]
    assert record["averaged_loss"] != record["loss"]


def test_weight_averaging_of_ones_own(model, data):
    """class EMAWeightAveraging(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None): ...  # when
    """

    class LastEpochs(WeightAveraging):  # the mean of the ends of all epochs from the second on
        def shares(self, fit, steps):
            epochs, past = np.divmod(steps + 1, fit.steps_in_epoch)
            share = 1 / np.maximum(1, epochs - 1)
            return np.where((past == 0) & (epochs >= 2), share, 0).astype(np.float32)

    ends = Ends()
    result = Trainer(max_epochs=4, callbacks=[LastEpochs(), ends]).fit(model, data)
    averaged(model, ends.seen[1:])
    measured = ["averaged_loss" in r for r in result.history if r["event"] == "validation"]
    assert measured == [False, True, True, True]


def test_timer(model, data, slow_clock):
    """timer = Timer(duration="00:12:00:00"); trainer = Trainer(callbacks=[timer])
    # query training/validation/test time (in seconds)
    timer.time_elapsed("train")
    """
    timer = Timer(duration="00:12:00:00")
    Trainer(max_epochs=2, callbacks=[timer]).fit(model, data)
    assert 0 < timer.time_elapsed("validate") < timer.time_elapsed("train")
    assert timer.time_elapsed() == timer.time_elapsed("train")
    assert timer.time_remaining() == 12 * 3600 - timer.time_elapsed()
    with pytest.raises(UserError, match="stage is 'test'"):
        timer.time_elapsed("test")
    result = Trainer(max_epochs=100, callbacks=[Timer(duration={"seconds": 9})]).fit(model, data)
    assert result.status == "stopped"


def test_device_stats_monitor(model, data):
    """trainer = Trainer(callbacks=[DeviceStatsMonitor(cpu_stats=True)])"""
    monitor = DeviceStatsMonitor(cpu_stats=True)
    result = Trainer(max_epochs=2, callbacks=[monitor], log_every_n_steps=1).fit(model, data)
    found = [r for r in result.history if r["event"] == "device_stats"]
    assert found[-1]["step"] == 16
    assert all(r["peak_memory_mb"] > 50 and r["cpu_percent"] >= 0 for r in found)


def test_throughput_monitor(model, data):
    """throughput = ThroughputMonitor(batch_size_fn=lambda batch: batch.size(0))
    trainer = Trainer(max_steps=1000, log_every_n_steps=10, callbacks=throughput, logger=logger)
    """
    throughput = ThroughputMonitor()
    trainer = Trainer(max_steps=16, log_every_n_steps=4, callbacks=throughput, logger=True)
    found = [r for r in trainer.fit(model, data).history if r["event"] == "throughput"]
    assert found[-1]["step"] == 16
    for record in found:
        assert record["images_per_second"] == pytest.approx(20 * record["batches_per_second"])
        assert record["flops_per_second"] > 0


def test_model_summary(model, data, capsys):
    """trainer = Trainer(callbacks=[ModelSummary(max_depth=-1)])"""
    Trainer(max_epochs=1, callbacks=[ModelSummary(max_depth=-1)]).fit(model, data)
    out = capsys.readouterr().out
    assert all(layer.name in out for layer in model.layers)
    assert f"{model.count_params():,}" in out


def test_rich_progress_bar(model, data, capsys):
    """trainer = Trainer(callbacks=[RichProgressBar()])"""
    Trainer(max_epochs=2, callbacks=[RichProgressBar()]).fit(model, data)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines] == ["epoch   1/2", "epoch   2/2"]  # no second bar


def test_a_callback_with_a_state(model, data):
    """class Counter(Callback):
    def load_state_dict(self, state_dict): self.state.update(state_dict)
    def state_dict(self): return self.state.copy()
    """

    class Counter(Callback):
        def __init__(self, what="epochs"):
            self.what = what
            self.state = {"epochs": 0, "batches": 0}

        def on_train_epoch_end(self, fit):
            if self.what == "epochs":
                self.state["epochs"] += 1

        def on_chunk_end(self, fit):
            if self.what == "batches":
                self.state["batches"] = fit.position.step

        def load_state_dict(self, state):
            self.state.update(state)

        def state_dict(self):
            return self.state.copy()

    # two callbacks of the same type are being used
    result = Trainer(max_epochs=2, callbacks=[Counter("epochs"), Counter("batches")]).fit(
        model, data
    )
    again = [Counter("epochs"), Counter("batches")]
    Trainer(max_epochs=3, callbacks=again).fit(model, data, ckpt_path=result.run_dir)
    assert [c.state for c in again] == [{"epochs": 3, "batches": 0}, {"epochs": 0, "batches": 24}]


# Loggers


def test_csv_logger(model, data):
    """logger = CSVLogger("logs", name="my_exp_name")
    trainer = Trainer(logger=logger)
    """
    logger = CSVLogger("logs", name="my_exp_name")
    result = Trainer(max_epochs=2, logger=logger).fit(model, data)
    with open("logs/my_exp_name/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == values(result, "train", "loss")


def test_mlflow_logger(model, data, services):
    """mlf_logger = MLFlowLogger(experiment_name="lightning_logs", tracking_uri="file:./ml-runs")
    trainer = Trainer(logger=mlf_logger)
    """
    mlf_logger = MLFlowLogger(experiment_name="lightning_logs", tracking_uri="file:./ml-runs")
    result = Trainer(max_epochs=2, logger=mlf_logger).fit(model, data)
    run = test_loggers.only(services["mlflow"])
    assert run.options == "file:./ml-runs lightning_logs"
    losses = [value for name, _, value in run.points if name == "validation/loss"]
    assert losses == values(result, "validation", "loss")


def test_wandb_logger(model, data, services):
    """wandb_logger = WandbLogger(project="MNIST")
    trainer = Trainer(logger=wandb_logger)
    """
    wandb_logger = WandbLogger(project="MNIST")
    result = Trainer(max_epochs=2, logger=wandb_logger).fit(model, data)
    run = test_loggers.only(services["wandb"])
    assert run.options["project"] == "MNIST"
    assert run.params["model"] == "everything"
    losses = [value for name, _, value in run.points if name == "validation/loss"]
    assert losses == values(result, "validation", "loss")


def test_a_logger_of_ones_own(model, data):
    """class MyLogger(Logger):
    def log_hyperparams(self, params): ...
    def log_metrics(self, metrics, step): ...
    """

    class MyLogger(Logger):
        def log_hyperparams(self, params):
            self.params, self.records = params, []

        def log(self, record):
            self.records.append(record)

    logger = MyLogger()
    result = Trainer(max_epochs=1, logger=logger).fit(model, data)
    assert logger.params["model"] == "everything"
    assert logger.records == result.history


# Tuner


def test_lr_find(model, data, inside):
    """tuner = Tuner(trainer); lr_finder = tuner.lr_find(model)
    print(lr_finder.results); fig = lr_finder.plot(suggest=True)
    new_lr = lr_finder.suggestion()
    """
    before = weights(model)
    tuner = Tuner(Trainer())
    lr_finder = tuner.lr_find(model, data)
    assert len(lr_finder.results["lr"]) == len(lr_finder.results["loss"]) > 10
    fig = lr_finder.plot(suggest=True)
    assert fig.subfigs[-1].axes[0].get_xscale() == "log"
    new_lr = lr_finder.suggestion()
    assert 1e-6 < new_lr < 1
    assert equal(before, weights(model))
    model.optimizer.learning_rate = new_lr
    result = Trainer(max_epochs=1).fit(model, data)
    assert values(result, "train", "lr") == [pytest.approx(new_lr)]


def test_scale_batch_size(model, data):
    """# Auto-scale batch size by growing it exponentially (default)
    tuner.scale_batch_size(model, mode="power")
    """
    before = weights(model)
    tuner = Tuner(Trainer())
    found = tuner.scale_batch_size(model, data, mode="power", init_val=16, max_trials=2)
    assert [r["batch_size"] for r in found.results] == [16, 32]
    assert found.suggestion() in (16, 32)
    assert found.largest == 32
    assert data.batch_size == 20
    assert equal(before, weights(model))


# Everything else


def test_seed_everything():
    """seed_everything(42)"""

    def drawn():
        assert seed_everything(42) == 42
        layer = keras.layers.Dense(3)
        layer.build((1, 2))
        return [random.random(), *np.random.rand(2), *np.array(layer.kernel).ravel()]

    assert drawn() == drawn()


def test_fit_validate_test_predict(model, data):
    """trainer.fit(model, train_dataloader, val_dataloader)
    trainer.validate(dataloaders=val_dataloaders); trainer.test(dataloaders=test_dataloaders)
    predictions = trainer.predict(model, dataloaders=predict_dataloader)
    """
    data.setup()
    train, val = (data.train.x, data.train.y), (data.validation.x, data.validation.y)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0)
    result = trainer.fit(model, train, val)
    assert result.summary["dataset"]["validation"] == 40
    validated = trainer.validate(model, val)
    assert validated["accuracy"] == values(result, "validation", "accuracy")[0]
    tested = trainer.test(model, data)
    predictions = trainer.predict(model, data.test.x)
    assert predictions.shape == (60, 10)
    assert tested["accuracy"] == pytest.approx(np.mean(predictions.argmax(1) == data.test.y))


def test_ckpt_path_last(model, small, data):
    """# automatically restores model, epoch, step, LR schedulers, etc...
    trainer.fit(model, ckpt_path="last")
    """
    options = {"schedule": "cosine", "max_epochs": 3}
    Trainer(**options, run_dir="straight").fit(model, data)
    straight = weights(model)
    for variable, value in small[1]:
        variable.assign(value)
    Trainer(**options, run_dir="run", callbacks=[StopAt(11)]).fit(model, data)
    assert not equal(straight, weights(model))
    result = Trainer(**options, run_dir="run").fit(model, data, ckpt_path="last")
    assert equal(straight, weights(model))
    assert steps(result, "train") == [8, 11, 16, 24]  # 11: the part of the epoch until the stop


class StopAt(Callback):
    every_n_train_steps = 1

    def __init__(self, step):
        self.step = step

    def on_chunk_end(self, fit):
        if fit.position.step == self.step:
            fit.stop("enough")


def test_ckpt_path_best_and_a_path(model, data):
    """# load the best checkpoint automatically (lightning tracks this for you during .fit())
    trainer.test(ckpt_path="best"); trainer.test(ckpt_path="my_checkpoint.ckpt")
    """
    checkpoint_callback = ModelCheckpoint(monitor="val_loss", mode="max", save_top_k=2)
    trainer = Trainer(max_epochs=3, callbacks=[checkpoint_callback])
    result = trainer.fit(model, data)
    last = trainer.validate(model, data)
    best = trainer.validate(model, data, ckpt_path="best")
    assert best["loss"] == checkpoint_callback.best_model_score != last["loss"]
    assert trainer.validate(model, data, ckpt_path="last") == last
    assert Trainer().validate(model, data, ckpt_path=result.best_checkpoint) == best
    assert Trainer().test(model, data, ckpt_path=result.best_checkpoint).keys() == best.keys()


def test_load_from_checkpoint(model, data):
    """self.save_hyperparameters()
    model = LitModel.load_from_checkpoint("path/to/checkpoint.ckpt")
    print(model.learning_rate); y_hat = model(x)
    """
    trainer = Trainer(max_epochs=2)
    result = trainer.fit(model, data, hparams={"learning_rate": 0.01, "layers": [16, 10]})
    x, _ = arrays()
    for which in ("best", "last"):
        run = load_run(result.run_dir, which)
        expected = trainer.predict(model, x, ckpt_path=which)
        np.testing.assert_allclose(run.model.predict(x, verbose=0), expected, atol=1e-5)
    assert run.config["hparams"] == {"learning_rate": 0.01, "layers": [16, 10]}
    assert run.config["trainer"]["max_epochs"] == 2


def test_yaml_configuration(inside, capsys, monkeypatch):
    """python main.py fit --print_config > config.yaml
    python main.py fit --config config.yaml
    """
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    x, y = arrays()
    tiny = ImageData("idx", "", Split(x, y), Split(x[:60], y[:60]), FASHION_CLASSES)
    idx.write_folder(inside / "idx", tiny)
    settings = "--model lenet --data_dir idx --epochs 1 --batch_size 20 --limit_train_batches 2"
    assert main(["train", "--print_config", *settings.split()]) == 0
    (inside / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "config.yaml", "--run_dir", "run", "--epochs", "2"]) == 0
    run = load_run("run")
    asked = yaml.safe_load((inside / "config.yaml").read_text())
    assert (asked["epochs"], run.config["epochs"]) == (1, 2)  # the command line rules
    assert run.config["limit_train_batches"] == asked["limit_train_batches"] == 2
    assert run.summary["steps"] == 4
    assert run.summary["test_accuracy"] > 0


# What only Lightning has

LIGHTNING = """accelerator strategy devices num_nodes precision logger callbacks fast_dev_run
max_epochs min_epochs max_steps min_steps max_time limit_train_batches limit_val_batches
limit_test_batches limit_predict_batches overfit_batches val_check_interval check_val_every_n_epoch
num_sanity_val_steps log_every_n_steps enable_checkpointing enable_progress_bar
enable_model_summary accumulate_grad_batches gradient_clip_val gradient_clip_algorithm deterministic
benchmark inference_mode use_distributed_sampler profiler detect_anomaly barebones plugins
sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams
model_registry"""  # of Lightning 2.6


def test_every_argument_of_lightnings_trainer_is_taken_or_explained():
    """trainer = Trainer(accelerator="gpu", devices=2, strategy="ddp")"""
    theirs, ours = set(LIGHTNING.split()), set(inspect.signature(Trainer).parameters)
    assert theirs - ours == set(lightning_names.ARGUMENTS["Trainer"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, d: Trainer(accelerator="gpu", devices=2), "accelerator here: a GPU is used"),
        (lambda m, d: Trainer().fit(m, datamodule=d), "fit has no datamodule here: data comes"),
        (lambda m, d: Trainer().fit(m, train_dataloaders=d), r"trainer\.fit\(model, data\)"),
        (lambda m, d: Trainer().test(m, dataloaders=d), "test has no dataloaders here"),
        (lambda m, d: Trainer().predict(m, dataloaders=d), r"trainer\.predict\(model, images\)"),
        (lambda m, d: Trainer().predict(m, d), r"Give images to predict"),
        (lambda m, d: Tuner(Trainer()).lr_find(m, datamodule=d), "lr_find has no datamodule"),
        (lambda m, d: ModelCheckpoint(dirpath="my/path/"), r"Trainer\(run_dir=\.\.\.\)"),
        (lambda m, d: ModelCheckpoint(save_last=False), "the last checkpoint is always kept"),
        (lambda m, d: Trainer().fit(m, d, epochs=3), r"type Trainer\(max_epochs=\.\.\.\)"),
        (lambda m, d: Trainer().fit(m, x=1, y=2), r"trainer\.fit\(model, \(x, y\)\)"),
        (lambda m, d: Trainer().fit(m, d, class_weight={0: 2}), r"\(x, y, weights\[y\]\)"),
        (lambda m, d: ThroughputMonitor(batch_size_fn=len), "Leave it out"),
        (lambda m, d: TensorBoardLogger("logs", version=1), "give another name"),
        (lambda m, d: seed_everything(42, workers=True), "no worker draws numbers"),
        (lambda m, d: Trainer(callbacks=["early"]), r"'early'.*callbacks=\[EarlyStopping\(\)\]"),
        (lambda m, d: Trainer(callbacks=EarlyStopping), "which is no fmnist_keras3.Callback"),
    ],
)
def test_what_only_lightning_has_is_explained(model, data, call, words):
    with pytest.raises(UserError, match=words):
        call(model, data)


@pytest.mark.parametrize("name", lightning_names.NAMES)
def test_a_class_of_lightnings_that_is_not_here_is_explained(name):
    """from lightning.pytorch.callbacks import TQDMProgressBar"""
    with pytest.raises(ImportError, match=f"There is no {name} in fmnist_keras3. It is "):
        exec(f"from fmnist_keras3 import {name}")


def test_as_many_epochs_as_it_takes(model, data):
    """trainer = Trainer(max_epochs=-1)"""
    stop = EarlyStopping("val_loss", patience=0, min_delta=1e9)
    result = Trainer(max_epochs=-1, callbacks=stop).fit(model, data)
    assert result.reason == "early stopping: val_loss did not improve on " + (
        f"{stop.best_score:.4f} for 1 validations"
    )
    assert result.summary["epochs"] == 2
    assert Trainer(max_epochs=-1, max_steps=5).fit(model, data).summary["steps"] == 5
    for options, words in (
        ({"schedule": "cosine"}, "schedule cosine goes by the length"),
        ({"callbacks": StochasticWeightAveraging()}, "swa_epoch_start is a fraction"),
        ({"callbacks": Lookahead(anneal=True)}, "anneal goes by the length"),
    ):
        with pytest.raises(UserError, match=words):
            Trainer(max_epochs=-1, **options).fit(model, data)


def test_all_checkpoints_are_kept(model, data):
    """checkpoint_callback = ModelCheckpoint(save_top_k=-1, save_last=True)"""
    result = Trainer(
        max_epochs=4, callbacks=ModelCheckpoint("val_loss", save_top_k=-1, save_last=True)
    ).fit(model, data)
    kept = {path.name for path in (result.run_dir / "checkpoints").glob("step-*")}
    assert len(kept) == 4
    assert {result.best_checkpoint.name, result.last_checkpoint.name} <= kept


@pytest.mark.parametrize(
    ("base", "hook", "ours"),
    [
        (Callback, "on_train_start", "on_fit_start"),
        (Callback, "on_train_batch_end", "on_chunk_end"),
        (Callback, "on_validation_epoch_end", "on_validation_end"),
        (Callback, "on_test_epoch_end", "none: trainer.test"),
        (Callback, "teardown", "on_fit_end"),
        (Logger, "log_metrics", "log, which takes a record"),
    ],
)
def test_a_hook_that_would_never_be_called_is_refused(base, hook, ours):
    """class MyPrintingCallback(Callback):
    def on_train_start(self, trainer, pl_module): ...
    """
    with pytest.raises(UserError, match=f"no hook {hook} here. It is {ours}"):
        type("Mine", (base,), {hook: lambda self, *args: None})


def test_every_name_of_the_explanations_is_there_to_explain():
    import fmnist_keras3

    for name, arguments in lightning_names.ARGUMENTS.items():
        owner, _, method = name.partition(".")
        function = getattr(fmnist_keras3, owner)
        function = getattr(function, method) if method else function
        if isinstance(function, type):
            function = function.__init__
        for argument in arguments:
            with pytest.raises(UserError, match=f"{name} has no {argument} here: "):
                function(**{argument: 1})
    assert not any(hasattr(Callback, hook) for hook in lightning_names.CALLBACK_HOOKS)
