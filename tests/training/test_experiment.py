"""A run from Python ends as complete as one of the command line, and what a test writes into it."""

import json

import keras
import numpy as np
import pytest
from everything import EPOCHS, At, arrays, data, everything_model, terminate, trainer

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.cli import main
from fmnist_keras3.runs.rundir import read_metrics

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
    made.test(model, (x[:40], y[:40]))
    logs = made.test(model, (x[:30], y[:30]), tta="mirror")
    (record,) = of_test(tmp_path / "run")
    assert record["loss"] == summary(tmp_path / "run")["test_loss"] == logs["loss"]
    assert summary(tmp_path / "run")["test_accuracy_tta"] == logs["accuracy_tta"]
    # The run goes on from its checkpoints as if there had been no test.
    more = trainer(tmp_path / "run", max_epochs=2).fit(everything_model(), data(), ckpt_path="last")
    assert more.status == "completed"
    assert not of_test(tmp_path / "run")


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


def test_a_plot_that_fails_is_warned_of_and_loses_nothing(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr("fmnist_keras3.evaluation.plots.calibration", fails)
    model, made = everything_model(), trainer(tmp_path / "run", max_epochs=1)
    made.fit(model, data())
    with pytest.warns(UserWarning, match="could not be drawn.*no ink"):
        logs = made.test(model, arrays())
    assert summary(tmp_path / "run")["test_loss"] == logs["loss"]


def test_the_weights_before_averaging_are_tested_too(tmp_path):
    from fmnist_keras3 import EMAWeightAveraging

    model = everything_model()
    made = trainer(tmp_path / "run", EMAWeightAveraging(0.9), max_epochs=1)
    made.fit(model, data())
    held = model.get_weights()
    logs = made.test(model, arrays())
    found = summary(tmp_path / "run")
    assert found["test_loss"] == logs["loss"] != found["test_raw_loss"]
    assert all(np.array_equal(a, b) for a, b in zip(held, model.get_weights(), strict=True))
