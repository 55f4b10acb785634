"""A run from Python ends as complete as one of the command line, and what a test writes into it."""

import json
import shutil

import keras
import numpy as np
import pytest
from everything import EPOCHS, At, arrays, data, everything_model, terminate, trainer

from fmnist_keras3 import ArrayData, EMAWeightAveraging, Logger, Trainer, UserError
from fmnist_keras3.cli import main
from fmnist_keras3.runs.history import read_metrics

TINY = ["--data", "synthetic", "--model", "lenet", "--max_steps", "2", "--limit_val_batches", "1"]
PLOTS = {"curves.png", "confusion_matrix.png", "mistakes.png", "calibration.png"}


def with_test(**options):
    x, y = arrays()
    return data(test=(x[:50], y[:50]), **options)


def files(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("checkpoints/step", "metrics.csv"))}


def summary(run):
    return json.loads((run / "summary.json").read_text())


def of_test(run):
    return [r for r in read_metrics(run / "metrics.jsonl") if r["event"] == "test"]


def test_python_leaves_the_files_and_figures_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--limit_test_batches", "1", "--run_dir", "typed"]) == 0
    model, examples, made = everything_model(), with_test(), trainer(tmp_path / "run")
    result = made.fit(model, examples)
    logs = made.test(model, examples)
    assert result.report() == tmp_path / "run/report.html"
    assert files(tmp_path / "run") == files(tmp_path / "typed")
    assert files(tmp_path / "run") >= {f"plots/{name}" for name in PLOTS} | {"evaluation.json"}
    found = summary(tmp_path / "run")
    assert set(summary(tmp_path / "typed")) == set(found)
    assert (found["test_loss"], found["test_accuracy"]) == (logs["loss"], logs["accuracy"])
    (record,) = of_test(tmp_path / "run")
    assert record["loss"] == logs["loss"]
    assert (record["epoch"], record["step"]) == (EPOCHS, result.summary["steps"])
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["examples"] == 50
    assert evaluation["accuracy"] == pytest.approx(logs["accuracy"])
    assert evaluation["class_names"] == [str(n) for n in range(10)]
    assert f"{100 * logs['accuracy']:.2f}" in (tmp_path / "run/report.html").read_text()


def test_a_second_test_takes_the_place_of_the_first(tmp_path):
    model, made = everything_model(), trainer(tmp_path / "run", max_epochs=1)
    made.fit(model, data())
    x, y = arrays()
    logs = made.test(model, (x[:40], y[:40]), tta="mirror")
    assert summary(tmp_path / "run")["test_accuracy_tta"] == logs["accuracy_tta"]
    logs = made.test(model, (x[:30], y[:30]))
    (record,) = of_test(tmp_path / "run")
    assert record["loss"] == summary(tmp_path / "run")["test_loss"] == logs["loss"]
    assert "test_accuracy_tta" not in summary(tmp_path / "run")
    # The run goes on from its checkpoints as if there had been no test.
    more = trainer(tmp_path / "run", max_epochs=2).fit(everything_model(), data(), ckpt_path="last")
    assert more.status == "completed"
    assert not of_test(tmp_path / "run")
    assert "evaluation.json" not in files(tmp_path / "run")
    assert files(tmp_path / "run") & {f"plots/{name}" for name in PLOTS} <= {"plots/curves.png"}
    assert not any(name.startswith("test_") for name in summary(tmp_path / "run"))


def test_the_loggers_get_the_test_after_the_fit_has_closed_them(tmp_path):
    class Spy(Logger):
        def __init__(self):
            self.calls = []

        def begin(self, run_dir):
            self.calls.append("begin")

        def replay(self, records):
            self.calls.append([record["event"] for record in records])

        def log(self, record):
            self.calls.append(record)

        def finalize(self, status):
            self.calls.append(status)

    spy = Spy()
    model, made = everything_model(), trainer(tmp_path / "run", max_epochs=1, logger=[spy, "csv"])
    made.fit(model, data())
    table = (tmp_path / "run/metrics.csv").read_text()
    for count in (40, 30):
        spy.calls.clear()
        made.test(model, tuple(part[:count] for part in arrays()))
        earlier = [r["event"] for r in read_metrics(tmp_path / "run/metrics.jsonl")][:-1]
        assert spy.calls == ["begin", earlier, *of_test(tmp_path / "run"), "completed"]
    assert (tmp_path / "run/metrics.csv").read_text() == table
    with made.loggers.held():  # as the command does
        spy.calls.clear()
        with pytest.warns(UserWarning, match="Nothing is left to train"):
            made.fit(model, data(), ckpt_path="last")
        made.test(model, arrays())
        assert spy.calls[-1] == of_test(tmp_path / "run")[0]


def test_only_the_model_that_the_run_ended_with_writes_into_it(tmp_path):
    class Tests(At):
        def on_train_epoch_end(self, fit):
            made.test(fit.model, (x, y))

    x, y = arrays()
    model, made = everything_model(), trainer(tmp_path / "run", Tests(99, None), max_epochs=1)
    made.fit(model, data())
    before = files(tmp_path / "run"), summary(tmp_path / "run")
    assert not of_test(tmp_path / "run")
    made.validate(model, (x, y))
    made.test(model, (x, y), ckpt_path="best")
    model.set_weights([w * 0.5 for w in model.get_weights()])
    made.test(model, (x, y))
    assert (files(tmp_path / "run"), summary(tmp_path / "run")) == before


def test_an_interrupted_run_and_none_at_all_are_not_tested_into(tmp_path):
    x, y = arrays()
    model, made = everything_model(), trainer(tmp_path / "run", At(3, terminate))
    assert made.fit(model, data()).status == "interrupted"
    made.test(model, (x, y))
    assert not of_test(tmp_path / "run")
    quick = Trainer(fast_dev_run=True, enable_progress_bar=False)
    result = quick.fit(model, data())
    quick.test(model, (x, y))
    with pytest.raises(UserError, match="no run to report on"):
        result.report()


def test_what_is_no_classification_keeps_its_figures(tmp_path):
    x = np.random.default_rng(0).random((40, 4), np.float32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    made = Trainer(1, run_dir=tmp_path / "run", enable_progress_bar=False)
    result = made.fit(model, ArrayData(x, x[:, :1], batch_size=20))
    logs = made.test(model, (x, x[:, :1]))
    assert summary(tmp_path / "run")["test_loss"] == logs["loss"]
    assert "evaluation.json" not in files(tmp_path / "run")
    assert result.report().exists()


def test_outputs_that_are_not_finite_keep_their_figures(tmp_path):
    class RulesOut(keras.layers.Layer):
        def call(self, logits):
            return keras.ops.where(keras.ops.arange(3) == 2, -np.inf, logits)

    x, y = np.random.default_rng(0).random((40, 4), np.float32), np.arange(40) % 2
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), RulesOut()])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    made = Trainer(1, run_dir=tmp_path / "run", enable_progress_bar=False)
    made.fit(model, ArrayData(x, y, batch_size=20))
    with pytest.warns(UserWarning, match=r"no scores of the classes in .* not finite"):
        logs = made.test(model, (x, y))
    assert summary(tmp_path / "run")["test_loss"] == logs["loss"]
    shutil.rmtree(tmp_path / "run")
    assert made.test(model, (x, y)) == logs
    assert not (tmp_path / "run").exists()


def test_a_plot_that_fails_is_warned_of_and_loses_nothing(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr("fmnist_keras3.evaluation.plots.calibration", fails)
    model, made = everything_model(), trainer(tmp_path / "run", max_epochs=1)
    made.fit(model, data())
    with pytest.warns(UserWarning, match="could not be drawn.*no ink"):
        logs = made.test(model, arrays())
    assert summary(tmp_path / "run")["test_loss"] == logs["loss"]


def test_of_a_model_and_data_of_ones_own_the_scores_are_right(tmp_path):
    """Average, a layer that no file can name, probabilities, and a dataset that shuffles."""
    import tensorflow as tf

    class Mine(keras.layers.Layer):
        def call(self, x):
            return keras.ops.cast(x, "float32") / 255

    x, y = arrays()
    layers = [Mine(), keras.layers.AveragePooling2D(4), keras.layers.Flatten()]
    last = keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers, last])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
    callbacks = [EMAWeightAveraging(0.9)]
    made = Trainer(8, run_dir=tmp_path / "run", callbacks=callbacks, enable_progress_bar=False)
    made.fit(model, ArrayData(x, y, batch_size=32))
    held = model.get_weights()
    logs = made.test(model, tf.data.Dataset.from_tensor_slices((x, y)).shuffle(200).batch(50))
    found = summary(tmp_path / "run")
    assert found["test_loss"] == logs["loss"] != found["test_raw_loss"]
    assert all(np.array_equal(a, b) for a, b in zip(held, model.get_weights(), strict=True))
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert logs["accuracy"] > 0.3
    assert evaluation["accuracy"] == pytest.approx(logs["accuracy"])
    assert evaluation["loss"] == pytest.approx(logs["loss"], rel=1e-4)
    raw = keras.Sequential([keras.Input((28, 28, 1)), *layers, last])
    raw.load_weights(tmp_path / "run/model_raw.keras")
    raw.compile(loss=loss)
    assert raw.evaluate(x, y, verbose=0) == pytest.approx(found["test_raw_loss"], rel=1e-5)
