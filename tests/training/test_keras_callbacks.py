"""Keras' own callbacks work at the ends of epochs, or are refused with the reason."""

from pathlib import Path

import keras
import numpy as np
import pytest
from everything import EPOCHS, built_model, data, everything_model, last, trainer

from fmnist_keras3 import Trainer, UserError


def fit(path, callback, model=None, **options):
    options = {"schedule": None, **options}
    made = trainer(path, **options)
    made.callbacks = Trainer(callbacks=[callback]).callbacks + made.callbacks
    return made.fit(model or everything_model(), data())


class Watch(keras.callbacks.Callback):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append(("train begin", self.params["epochs"]))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begin", epoch))

    def on_test_end(self, logs=None):
        self.calls.append(("test end", sorted(logs)))

    def on_epoch_end(self, epoch, logs=None):
        weights = [np.array(w) for w in self.model.get_weights()]
        self.calls.append(("epoch end", epoch))
        self.logs, self.weights = logs, weights

    def on_train_end(self, logs=None):
        self.at_end = [np.array(w) for w in self.model.get_weights()]
        self.calls.append(("train end", None))


def test_the_hooks_come_in_order_with_the_values_and_the_weights_of_the_moment(tmp_path):
    watch = Watch()
    model = everything_model()
    result = fit(tmp_path / "run", watch, model, max_epochs=2)
    one = [("epoch begin", 0), ("test end", ["accuracy", "loss"]), ("epoch end", 0)]
    two = [(name, 1 if value == 0 else value) for name, value in one]
    assert watch.calls == [("train begin", 2), *one, *two, ("train end", None)]
    assert watch.logs["val_loss"] == result.summary["validation_loss"]
    assert watch.logs["learning_rate"] == pytest.approx(0.01)
    kept = dict(last(tmp_path / "run").state)["model/everything/logits/kernel"]
    assert any(np.array_equal(kept, weight) for weight in watch.weights)
    # As with Keras, the optimizer's own average (`use_ema`) takes their place before the end.
    for a, b in zip(watch.at_end, model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_history_and_csv_logger_get_each_epoch(tmp_path):
    history = keras.callbacks.History()
    result = fit(tmp_path / "one", history)
    losses = [r["loss"] for r in result.history if r["event"] == "train"]
    assert history.history["loss"] == losses
    fit(tmp_path / "two", keras.callbacks.CSVLogger(tmp_path / "log.csv"))
    assert len((tmp_path / "log.csv").read_text().splitlines()) == EPOCHS + 1


def test_early_stopping_stops_and_restores_the_best_weights(tmp_path):
    model = everything_model()
    never = keras.callbacks.EarlyStopping(
        "val_loss", patience=2, min_delta=1e9, restore_best_weights=True
    )
    result = fit(tmp_path / "run", never, model, max_epochs=9)
    assert result.status == "stopped"
    assert "EarlyStopping" in result.reason
    assert result.summary["epochs"] == 3
    for a, b in zip(never.best_weights, model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def rates(result):
    return [r["lr"] for r in result.history if r["event"] == "train"]


def test_a_scheduler_sets_the_learning_rate_of_its_epoch(tmp_path):
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, lr: 0.1 / (epoch + 1))
    result = fit(tmp_path / "run", scheduler)
    assert rates(result) == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025])


def test_a_plateau_reduces_the_learning_rate(tmp_path):
    plateau = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=1e9)
    result = fit(tmp_path / "run", plateau)
    assert rates(result) == pytest.approx([0.01, 0.01, 0.005, 0.0025])


@pytest.mark.parametrize("name", ["LearningRateScheduler", "ReduceLROnPlateau"])
def test_two_masters_of_the_learning_rate_are_refused(tmp_path, name):
    arguments = [lambda epoch: 0.1] if name == "LearningRateScheduler" else []
    with pytest.raises(UserError, match=f"{name} and the Trainer's schedule"):
        fit(tmp_path / "run", getattr(keras.callbacks, name)(*arguments), schedule="cosine")
    model = built_model(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)))
    made = Trainer(
        1, run_dir=tmp_path / "own", callbacks=getattr(keras.callbacks, name)(*arguments)
    )
    with pytest.raises(UserError, match=f"{name} and the optimizer's schedule"):
        made.fit(model, data())


def test_a_model_checkpoint_of_keras_saves_each_epoch(tmp_path):
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(tmp_path / "run", saver, max_epochs=2)
    assert {p.name for p in tmp_path.glob("*.keras")} == {"1.keras", "2.keras"}


def test_a_lambda_callback_may_have_hooks_of_epochs(tmp_path):
    seen = []
    fit(tmp_path / "run", keras.callbacks.LambdaCallback(on_epoch_end=lambda e, _: seen.append(e)))
    assert seen == list(range(EPOCHS))
    with pytest.raises(UserError, match="on_train_batch_end"):
        Trainer(callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, _: None)])


def test_averaged_weights_are_swapped_in_for_the_validation(tmp_path):
    result = fit(tmp_path / "run", keras.callbacks.SwapEMAWeights())
    plain = fit(tmp_path / "plain", keras.callbacks.History())
    values = [[r["loss"] for r in f.history if r["event"] == "validation"] for f in (result, plain)]
    losses = [[r["loss"] for r in f.history if r["event"] == "train"] for f in (result, plain)]
    # The training does not see it, but for the rounding with which Keras swaps on TensorFlow.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(abs(a / b - 1) > 1e-3 for a, b in zip(*values, strict=True))


def test_tensorboard_writes_its_events(tmp_path):
    pytest.importorskip("tensorboard")
    fit(tmp_path / "run", keras.callbacks.TensorBoard(tmp_path / "board"))
    assert list((tmp_path / "board").rglob("events*"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: keras.callbacks.BackupAndRestore("x"), "ckpt_path='last'"),
        (lambda: keras.callbacks.ProgbarLogger(), "enable_progress_bar"),
        (lambda: keras.callbacks.TerminateOnNaN(), "on_nonfinite"),
        (lambda: keras.callbacks.ModelCheckpoint("x.keras", save_freq=5), "on_train_batch_end"),
        (lambda: keras.callbacks.TensorBoard("x", update_freq=5), "on_train_batch_end"),
    ],
)
def test_those_that_cannot_work_are_refused_with_the_reason(make, words):
    with pytest.raises(UserError, match=words):
        Trainer(callbacks=[make()])


def test_a_resume_says_that_keras_callbacks_begin_anew(tmp_path):
    fit(tmp_path / "run", keras.callbacks.EarlyStopping(patience=9), max_epochs=1)
    made = trainer(tmp_path / "run", schedule=None)
    made.callbacks += Trainer(callbacks=[keras.callbacks.EarlyStopping(patience=9)]).callbacks
    with pytest.warns(UserWarning, match="EarlyStopping begins anew"):
        made.fit(everything_model(), data(), ckpt_path="last")


def test_every_keras_callback_is_told_of_here():
    base = keras.callbacks.Callback
    found = {
        name
        for name, made in vars(keras.callbacks).items()
        if isinstance(made, type) and issubclass(made, base) and made is not base
    }
    # RemoteMonitor sends to a server; CallbackList holds others.
    untested = {"RemoteMonitor", "CallbackList", "OrbaxCheckpoint"}
    text = Path(__file__).read_text()
    assert all(f"{name}" in text for name in found | untested)
