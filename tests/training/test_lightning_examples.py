"""The examples of Lightning's documentation, as its users would write them here.

Each test has Lightning's own lines in its docstring, their translation as its code, and asserts
what Lightning's page promises.
"""

import csv
import inspect
import os

import keras
import numpy as np
import pytest
from everything import arrays, built_model
from kept import kept

from fmnist_keras3 import (
    ArrayData,
    Callback,
    CSVLogger,
    EarlyStopping,
    Logger,
    Lookahead,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TensorBoardLogger,
    ThroughputMonitor,
    Timer,
    Trainer,
    UserError,
    WeightAveraging,
    seed_everything,
)
from fmnist_keras3.callbacks import timer as timer_module
from fmnist_keras3.ground import lightning as lightning_names

STEPS = 8  # of an epoch: 160 examples in batches of 20


def small():
    """A model with dropout and batch normalisation."""
    return built_model(keras.optimizers.Adam(0.01))


@pytest.fixture
def model():
    return kept.model(small)


@pytest.fixture
def data():
    x, y = arrays()
    return ArrayData(x, y, test=(x[:60], y[:60]), batch_size=20, validation=0.2)


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
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


def steps(result, event):
    return [r["step"] for r in result.history if r["event"] == event]


def values(result, event, name):
    return [r[name] for r in result.history if r["event"] == event]


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


# The Trainer's flags


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


def test_default_root_dir(model, data, inside):
    """trainer = Trainer(default_root_dir=os.getcwd())"""
    result = Trainer(max_epochs=1, default_root_dir=os.getcwd()).fit(model, data)
    assert result.run_dir.parent == inside
    assert result.last_checkpoint.is_dir()
    assert result.last_checkpoint.is_relative_to(result.run_dir)


@pytest.mark.parametrize("callbacks", [None, RichProgressBar()])
def test_enable_progress_bar(model, data, capsys, callbacks):
    """trainer = Trainer(callbacks=[RichProgressBar()])"""
    Trainer(max_epochs=2, callbacks=callbacks).fit(model, data)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines] == ["epoch   1/2", "epoch   2/2"]  # no second bar


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


def test_log_every_n_steps(model, data):
    """trainer = Trainer(log_every_n_steps=50)"""
    result = Trainer(max_epochs=1, log_every_n_steps=3).fit(model, data)
    assert steps(result, "step") == [3, 6]


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


@pytest.mark.parametrize(("amount", "examples"), [(1, 20), (0.25, 40)])
def test_overfit_batches(model, data, amount, examples):
    """# debug by training and validating on exactly the same single batch
    trainer = Trainer(overfit_batches=1)
    """
    options = {"overfit_batches": amount, "enable_checkpointing": False}
    result = Trainer(max_epochs=20, **options).fit(model, data)
    assert steps(result, "train") == [epoch * examples // 20 for epoch in range(1, 21)]
    sizes = result.summary["dataset"]
    assert sizes["train"] == sizes["validation"] == examples
    losses = values(result, "validation", "loss")
    assert losses[-1] < 0.8 * losses[0]
    assert Trainer(overfit_batches=0.0).overfit_batches == 0  # Lightning's default


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
    assert list(rows[0])[:4] == ["epoch", "step", "loss", "accuracy"]
    assert [float(row["loss"]) for row in rows] == values(result, "train", "loss")
    assert [float(row["val_loss"]) for row in rows] == values(result, "validation", "loss")


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


# Everything else


def test_ckpt_path_last(model, data):
    """# automatically restores model, epoch, step, LR schedulers, etc...
    trainer.fit(model, ckpt_path="last")
    """
    options = {"schedule": "cosine", "max_epochs": 3}
    Trainer(**options, run_dir="straight").fit(model, data)
    straight = weights(model)
    model = kept.model(small)
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
        (lambda m, d: Trainer().fit(m, train_dataloaders=d), r"trainer\.fit\(model, data\)"),
        (lambda m, d: Trainer().test(m, dataloaders=d), "test has no dataloaders here"),
        (lambda m, d: Trainer().predict(m, dataloaders=d), r"trainer\.predict\(model, images\)"),
        (lambda m, d: Trainer().predict(m, d), r"Give images to predict"),
        (lambda m, d: ModelCheckpoint(dirpath="my/path/"), r"Trainer\(run_dir=\.\.\.\)"),
        (lambda m, d: ModelCheckpoint(save_last=False), "the last checkpoint is always kept"),
        (lambda m, d: Trainer().fit(m, d, epochs=3), r"type Trainer\(max_epochs=\.\.\.\)"),
        (lambda m, d: Trainer().fit(m, x=1, y=2), r"trainer\.fit\(model, \(x, y\)\)"),
        (lambda m, d: Trainer().fit(m, d, sample_weight=[1]), r"\(x, y, sample_weight\)"),
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
