"""The Trainer end to end on tiny data: runs, resumes to the same bits, stops, refuses."""

import json
import os
import signal

import keras
import numpy as np
import pytest
from kept import kept

from fmnist_keras3 import (
    ArrayData,
    Callback,
    Diverged,
    EarlyStopping,
    ModelCheckpoint,
    Trainer,
    UserError,
    build_model,
    load_run,
)
from fmnist_keras3.runs import checkpoint
from fmnist_keras3.runs.history import read_metrics


def tiny_model():
    """One model in its first state, compiled once."""
    return kept.model(built)


def built():
    """Everything that has state: dropout, batch normalisation, an optimizer with slots."""
    keras.utils.clear_session()
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.AveragePooling2D(4)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, kernel_initializer=keras.initializers.Zeros(), name="hidden")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.2, seed=1)(x)
    outputs = keras.layers.Dense(10, name="logits")(x)
    model = keras.Model(inputs, outputs, name="tiny")
    rng = np.random.default_rng(0)
    model.get_layer("hidden").kernel.assign(rng.normal(0, 0.1, (49, 16)).astype("float32"))
    model.get_layer("logits").kernel.assign(rng.normal(0, 0.1, (16, 10)).astype("float32"))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.fixture
def data(tiny_data):
    x, y = tiny_data
    return ArrayData(
        x, y, test=(x[:50], y[:50]), batch_size=32, augment="flip,crop", validation=0.2
    )


def trainer(path, **options):
    options = {"max_epochs": 3, "enable_progress_bar": False, "schedule": "cosine", **options}
    return Trainer(run_dir=path, **options)


def final_state(result):
    found, problems = checkpoint.find(result.run_dir / "checkpoints", "last", checkpoint.load)
    assert not problems
    return found.state


def assert_same_bits(state, other):
    assert [name for name, _ in state] == [name for name, _ in other]
    for (name, a), (_, b) in zip(state, other, strict=True):
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name


@pytest.fixture(scope="module")
def straight(tiny_data, tmp_path_factory):
    x, y = tiny_data
    data = ArrayData(x, y, batch_size=32, augment="flip,crop", validation=0.2)
    return trainer(tmp_path_factory.mktemp("run") / "straight").fit(tiny_model(), data)


def test_a_fit_learns_and_leaves_a_complete_run(straight):
    run = load_run(straight.run_dir)
    assert straight.status == run.summary["status"] == "completed"
    names = {p.name for p in straight.run_dir.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "model.keras", "checkpoints"}
    train = [r for r in run.history if r["event"] == "train"]
    validation = [r for r in run.history if r["event"] == "validation"]
    assert [r["epoch"] for r in train] == [r["epoch"] for r in validation] == [1, 2, 3]
    assert [r["step"] for r in train] == [5, 10, 15]
    assert train[-1]["loss"] < train[0]["loss"]
    summary = run.summary
    assert summary["epochs"] == 3
    assert summary["steps"] == 15
    assert summary["dataset"]["train"] == 160
    assert summary["dataset"]["validation"] == 40
    assert len(summary["epoch_seconds"]) == 3
    assert summary["images_per_second"] > 0
    assert summary["compile_seconds"] > 0
    assert summary["best_epoch"] in (1, 2, 3)
    assert straight.best_checkpoint is not None
    assert summary["validation_accuracy"] == validation[-1]["accuracy"]


def test_the_written_model_is_the_trained_one(straight, tiny_data):
    model = load_run(straight.run_dir).model
    state = dict(final_state(straight))
    for variable in model.trainable_variables:
        assert np.array_equal(np.array(variable), state[f"model/{variable.path}"])
    assert model.predict(tiny_data[0][:4], verbose=0).shape == (4, 10)


def test_an_epoch_that_a_fit_before_cut_short_counts_no_more(data):
    made, model = Trainer(barebones=True), tiny_model()
    state = [(v, np.array(v.value)) for v in [*model.variables, *model.optimizer.variables]]
    accuracies = []
    for made.max_steps in (4, 3, 4):
        for variable, value in state:
            variable.assign(value)
        made.fit(model, data)
        accuracies.append(made.programs.engine.metric_results()["accuracy"])
    assert accuracies[0] == accuracies[2] != accuracies[1]


@pytest.fixture(scope="module")
def straight_constant(tiny_data, tmp_path_factory):
    """As `straight`, with a learning rate that does not depend on where the training ends."""
    x, y = tiny_data
    data = ArrayData(x, y, batch_size=32, augment="flip,crop", validation=0.2)
    path = tmp_path_factory.mktemp("run") / "straight"
    return trainer(path, schedule=None).fit(tiny_model(), data)


@pytest.mark.parametrize("steps", [4, 5, 7])
def test_a_resumed_fit_ends_with_the_same_bits(straight_constant, data, tmp_path, steps):
    first = trainer(tmp_path / "run", max_steps=steps, schedule=None)
    assert first.fit(tiny_model(), data).summary["steps"] == steps
    result = trainer(tmp_path / "run", schedule=None).fit(tiny_model(), data, ckpt_path="last")
    assert result.summary["steps"] == 15
    assert_same_bits(final_state(result), final_state(straight_constant))
    both = (result, straight_constant)
    last = [[r for r in f.history if r["event"] == "train"][-1] for f in both]
    assert last[0]["loss"] == last[1]["loss"]
    assert last[0]["accuracy"] == last[1]["accuracy"]


class SendSignal(Callback):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_chunk_end(self, fit):
        if fit.position.step == self.step:
            os.kill(os.getpid(), self.number)


def test_sigint_stops_and_a_resume_gives_the_same_bits(straight, data, tmp_path):
    every = ModelCheckpoint(every_n_train_steps=1)  # a boundary, so a place to stop, at every step
    callbacks = [SendSignal(signal.SIGINT, 8), every]
    stopped = trainer(tmp_path / "run", callbacks=callbacks).fit(tiny_model(), data)
    assert stopped.status == stopped.summary["status"] == "interrupted"
    assert stopped.reason == "SIGINT"
    assert stopped.summary["steps"] == 8
    result = trainer(tmp_path / "run").fit(tiny_model(), data, ckpt_path="last")
    assert result.status == "completed"
    assert_same_bits(final_state(result), final_state(straight))
    records = read_metrics(result.run_dir / "metrics.jsonl")
    keys = [(r["event"], r["step"]) for r in records]
    assert len(keys) == len(set(keys))


def test_resident_and_stream_give_the_same_bits(straight, data, tmp_path):
    result = trainer(tmp_path / "run", pipeline="stream").fit(tiny_model(), data)
    assert result.summary["pipeline"] == "stream"
    assert straight.summary["pipeline"] == "resident"
    assert_same_bits(final_state(result), final_state(straight))


def test_every_step_is_logged_once(data, tmp_path):
    result = trainer(tmp_path / "run", log_every_n_steps=1).fit(tiny_model(), data)
    steps = [r for r in result.history if r["event"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 16))
    epoch = np.average([r["loss"] for r in steps[:5]])
    assert epoch == pytest.approx(
        next(r["loss"] for r in result.history if r["event"] == "train"), rel=1e-6
    )
    assert steps[0]["lr"] == pytest.approx(0.01)


def test_early_stopping_goes_on_after_a_resume(data, tmp_path):
    def stopping():
        return [EarlyStopping("val_loss", patience=2, min_delta=1e9)]

    trainer(tmp_path / "run", max_epochs=2, callbacks=stopping()).fit(tiny_model(), data)
    again = trainer(tmp_path / "run", max_epochs=9, callbacks=stopping())
    assert again.fit(tiny_model(), data, ckpt_path="last").summary["epochs"] == 3


def test_a_monitor_that_is_not_logged_is_named(data, tmp_path):
    with pytest.raises(UserError, match=r"'val_f1'.*val_accuracy"):
        trainer(tmp_path / "run", callbacks=[EarlyStopping("val_f1")]).fit(tiny_model(), data)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def test_a_loss_that_is_not_finite_ends_in_diverged(data, tmp_path):
    model = tiny_model()
    model.optimizer.learning_rate.assign(1e30)
    with pytest.raises(Diverged, match=r"step \d+"):
        trainer(tmp_path / "run", schedule=None).fit(model, data)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "diverged"
    for path in (tmp_path / "run/checkpoints").glob("step-*"):
        assert all(np.isfinite(a).all() for _, a in checkpoint.load(path).state)


def test_an_exception_in_a_callback_keeps_the_state(data, tmp_path):
    class Broken(Callback):
        def on_chunk_end(self, fit):
            if fit.position.step >= 7:
                raise RuntimeError("broken callback")

    with pytest.raises(RuntimeError, match="broken callback"):
        trainer(tmp_path / "run", callbacks=[Broken()]).fit(tiny_model(), data)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
    found, _ = checkpoint.find(tmp_path / "run/checkpoints", "last", checkpoint.load)
    assert found.manifest["position"]["step"] >= 7


def test_a_failing_on_exception_does_not_hide_the_first_error(data, tmp_path):
    class Broken(Callback):
        def on_chunk_end(self, fit):
            raise RuntimeError("first")

        def on_exception(self, fit, exception):
            raise ValueError("second")

    with pytest.raises(RuntimeError, match="first") as raised:
        trainer(tmp_path / "run", callbacks=[Broken()]).fit(tiny_model(), data)
    assert "second" in raised.value.__notes__[0]
    assert list((tmp_path / "run/checkpoints").glob("step-*"))


def test_validate_test_and_predict_agree_with_keras(data, tmp_path, tiny_data):
    model = tiny_model()
    t = trainer(tmp_path / "run", max_epochs=1)
    t.fit(model, data)
    x, y = tiny_data[0][:50], tiny_data[1][:50]
    loss, accuracy = model.evaluate(x, y, verbose=0)
    mine = t.test(model, data)
    assert mine["loss"] == pytest.approx(loss, rel=1e-5)
    assert mine["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert np.allclose(t.predict(model, x), model.predict(x, verbose=0), atol=1e-5)
    held = data.setup().validation
    assert t.validate(model, data)["loss"] == pytest.approx(
        model.evaluate(held.x, held.y, verbose=0)[0], rel=1e-5
    )


def test_a_run_is_never_overwritten(straight, data):
    with pytest.raises(UserError, match=r"already holds a run.*--resume last"):
        trainer(straight.run_dir).fit(tiny_model(), data)


def test_a_checkpoint_of_another_model_names_the_array(straight, data, tmp_path):
    before = (straight.run_dir / "config.yaml").read_text()
    model = build_model("lenet")
    with pytest.raises(UserError, match="model/hidden/kernel"):
        trainer(straight.run_dir).fit(model, data, ckpt_path=straight.run_dir)
    assert (straight.run_dir / "config.yaml").read_text() == before


def test_another_seed_may_not_resume(straight, data):
    with pytest.raises(UserError, match="seed"):
        trainer(straight.run_dir, seed=5).fit(tiny_model(), data, ckpt_path="last")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"pipeline": "streem"}, "pipeline is 'streem'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"logger": "cvs"}, "Did you mean 'csv'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Trainer(**options)
