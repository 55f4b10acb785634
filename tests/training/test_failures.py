"""What goes wrong in a training is told, stops it cleanly, and leaves what it had saved."""

import json
import os
import signal
import stat
import threading

import keras
import numpy as np
import pytest
from everything import EPOCHS, STEPS, At, arrays, built_model, data, everything_model, last, trainer
from keras import ops

from fmnist_keras3 import (
    ArrayData,
    Callback,
    Diverged,
    EarlyStopping,
    ModelCheckpoint,
    Trainer,
    UserError,
)
from fmnist_keras3.callbacks import RichProgressBar, Summary, Trace
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.ground.errors import Interrupted
from fmnist_keras3.runs import checkpoint, checkpoints
from fmnist_keras3.runs.writer import Writer
from fmnist_keras3.training import check_data, resume
from fmnist_keras3.training.pace import CHUNK_SECONDS, Pace

HOOKS = [name for name in vars(Callback) if name.startswith(("on_", "setup", "state", "load"))]
CALLBACKS = [Callback, EarlyStopping, ModelCheckpoint, RichProgressBar, Summary, Trace]


def summary(run):
    return json.loads((run / "summary.json").read_text())


def strict(path):
    """Parse JSON as the standard has it, without NaN and Infinity."""

    def refuse(name):
        raise ValueError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def assert_sound(run):
    """No lock and no half-written file is left, and what was saved can be loaded."""
    assert not list(run.rglob(".*"))
    for path in checkpoints.saved(run / "checkpoints"):
        assert all(np.isfinite(a).all() for _, a in checkpoint.load(path).state)
        strict(path / "manifest.json")


@pytest.mark.filterwarnings("ignore:Nothing is left to train")
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", CALLBACKS)
def test_an_exception_in_a_hook_is_raised_and_the_run_goes_on_later(tmp_path, kind, hook):
    def broken(self, *arguments):
        if hook == "setup" and not arguments:
            return kind.setup(self)  # of the constructor
        raise RuntimeError("broken hook")

    made = type("Broken", (kind,), {hook: broken})()
    run = tmp_path / "run"
    if hook == "on_exception":  # needs another failure, which it must not hide
        with pytest.raises(RuntimeError, match="first") as raised:
            trainer(run, made, At(7, fail_first)).fit(everything_model(), data())
        assert "broken hook" in "".join(raised.value.__notes__)
    elif hook in ("load_state_dict", "on_load_checkpoint"):
        state = {"state_dict": lambda self: {"some": "state"}} if hook.startswith("load") else {}
        keeps = type("Broken", (kind,), state)()
        trainer(run, keeps, max_steps=7).fit(everything_model(), data())
        with pytest.raises(RuntimeError, match="broken hook"):
            trainer(run, made).fit(everything_model(), data(), ckpt_path="last")
    else:
        with pytest.raises(RuntimeError, match="broken hook"):
            trainer(run, made).fit(everything_model(), data())
    if hook != "setup":  # which comes before there is a run
        assert summary(run)["status"] == "failed"
        assert "RuntimeError" in summary(run)["reason"]
    assert_sound(run)
    result = trainer(run).fit(everything_model(), data(), ckpt_path="auto")
    assert result.summary["steps"] == STEPS * EPOCHS


def fail_first():
    raise RuntimeError("first")


def test_a_model_that_cannot_be_compiled_fails_with_its_own_error(tmp_path):
    class Odd(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                raise ArithmeticError("odd layer")
            return x

    model = keras.Sequential([keras.Input((28, 28, 1)), Odd(), keras.layers.Flatten()])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ArithmeticError, match="odd layer"):
        Trainer(run_dir=tmp_path / "run", enable_progress_bar=False).fit(model, data())
    assert summary(tmp_path / "run")["status"] == "failed"
    assert_sound(tmp_path / "run")


def with_nan_at(step):
    """The data as floats, without augmentation, with NaN in an example of step ``step``."""
    x, y = arrays()
    plain = ArrayData(x, y, batch_size=32, validation=0.2).setup()
    plan = epoch_plan(0, 0, examples=len(plain.train), batch_size=32)
    # Nobody else has this image; find it among all, the validation's included.
    image = plain.train.x[plan.indices[step - 1, 0]]
    (index,) = np.flatnonzero((x == image).all((1, 2, 3)))
    x = x.astype(np.float32)
    x[index] = np.nan
    return ArrayData(x, y, batch_size=32, validation=0.2)


@pytest.mark.parametrize("step", [1, 4])
def test_a_loss_that_is_not_finite_is_found_and_its_step_named(tmp_path, step, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"inputs hold .*NaN.* in 1 of 160 examples \(row \d+\)"):
        trainer(run).fit(everything_model(), with_nan_at(step))
    assert not run.exists()
    monkeypatch.setattr(check_data, "not_finite", lambda *_: None)  # as if it came up later
    with pytest.raises(Diverged, match=rf"loss of step {step} \(epoch 1\)") as raised:
        trainer(run).fit(everything_model(), with_nan_at(step))
    assert raised.value.step == step
    assert summary(run)["status"] == "diverged"
    assert f"step {step}" in summary(run)["reason"]
    assert_sound(run)
    names = [p.name for p in checkpoints.saved(run / "checkpoints")]
    assert names == ["step-00000002"][: step // 2]
    assert not (run / "model.keras").exists()


def overflowing_gradient(y_true, y_pred):
    """Cross-entropy plus zero, whose gradient is infinite for an example of class 9."""
    loss = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
    steep = 10.0 * ops.sum(y_pred, -1)
    factor = ops.where(ops.squeeze(y_true) == 9, 3e38, 0.0)
    return loss + factor * (steep - ops.stop_gradient(steep))


@pytest.mark.parametrize("step", [1, 4])
def test_a_gradient_that_is_not_finite_is_found_after_its_step(tmp_path, step):
    x, y = arrays()
    plain = ArrayData(x, y, batch_size=32, validation=0).setup()
    plan = epoch_plan(0, 0, examples=200, batch_size=32)
    y = np.where(y == 9, 0, y)
    y[plan.indices[step - 1, 0]] = 9
    model = built_model()
    model.compile(keras.optimizers.SGD(0.01), overflowing_gradient)
    every = ModelCheckpoint(every_n_train_steps=1)  # so a boundary after each step
    made = trainer(tmp_path / "run", every, label_smoothing=0.0, schedule=None)
    made.callbacks = [every]  # there is no validation that early stopping could watch
    with pytest.raises(Diverged, match=rf"update of step {step} "):
        made.fit(model, ArrayData(plain.train.x, y, batch_size=32, validation=0))
    assert_sound(tmp_path / "run")
    assert last_step(tmp_path / "run") == step - 1


def last_step(run):
    found = checkpoints.pointed(run / "checkpoints", "last")
    return checkpoint.load(found).manifest["step"] if found else 0


def test_a_first_metric_that_is_nan_neither_stops_nor_is_the_best(tmp_path):
    class Nan(Callback):
        def on_validation_end(self, fit):
            if fit.position.epoch == 0:
                fit.logs["val_loss"] = fit.logs["val_accuracy"] = float("nan")

    run = tmp_path / "run"
    made = trainer(run)
    made.callbacks = [Nan(), EarlyStopping(check_finite=False), ModelCheckpoint()]
    result = made.fit(everything_model(), data())
    assert result.status == "completed"
    assert result.summary["best_epoch"] > 1
    strict(run / "summary.json")
    assert last(run).manifest["callbacks"]["EarlyStopping"]["best_score"] is not None
    assert_sound(run)


def nothing_by_nothing(y_true, y_pred):
    """A metric that is NaN."""
    return ops.sum(y_pred, -1) * 0.0 / 0.0


def test_a_metric_that_is_nan_is_logged_as_null_and_resumes(tmp_path):
    model = built_model(keras.optimizers.SGD(0.01))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=[nothing_by_nothing])
    run = tmp_path / "run"
    trainer(run, max_steps=7).fit(model, data())
    result = trainer(run).fit(model, data(), ckpt_path="last")
    assert result.status == "completed"
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        if record["event"] == "train":
            assert record["nothing_by_nothing"] is None


def left_out(told):
    messages = [str(warning.message) for warning in told]
    return [message for message in messages if "is left out" in message]


@pytest.mark.filterwarnings("ignore:The training inputs hold values")
def test_a_rollback_leaves_the_failing_steps_out(tmp_path):
    """Whatever the chunks, and also after a kill, the same steps are left out."""
    states = []
    for name, every in (("one", 1), ("all", None)):
        run = tmp_path / name
        made = trainer(
            run, ModelCheckpoint(every_n_train_steps=every), on_nonfinite="rollback", schedule=None
        )
        with pytest.warns(UserWarning, match=r"is not finite.*is left out") as told:
            result = made.fit(everything_model(), with_nan_at(4))
        messages = left_out(told)
        assert messages[0].startswith("The loss of step 4 (epoch 1) is not finite. Back to step ")
        assert len(messages) == EPOCHS
        assert result.status == "completed"
        assert_sound(run)
        position = last(run).manifest["position"]
        assert len(position["skipped"]) == EPOCHS  # the example comes once an epoch
        assert position["lr_scale"] == 1
        events = [r["step"] for r in result.history if r["event"] == "rollback"]
        assert events == position["skipped"]
        steps = [r["step"] for r in result.history if r["event"] == "step"]
        assert steps == [s for s in range(1, 21) if s not in events]
        states.append(last(run).state)
    for (name, a), (_, b) in zip(*states, strict=True):
        assert a.tobytes() == b.tobytes(), name


def test_a_rollback_halves_the_learning_rate_where_leaving_out_does_not_help(tmp_path):
    class Poison(Callback):
        every_n_train_steps = 1

        def on_chunk_end(self, fit):
            if fit.position.step >= 7 and fit.position.lr_scale == 1:
                state = fit.engine.export_state()
                fit.engine.import_state([(n, a * np.nan if "hidden" in n else a) for n, a in state])

    run = tmp_path / "run"
    made = trainer(run, Poison(), ModelCheckpoint(), on_nonfinite="rollback")
    with pytest.warns(UserWarning, match="is left out") as told:
        result = made.fit(everything_model(), data())
    assert "learning rate is 0.5 of what it was" in left_out(told)[1]
    assert result.status == "completed"
    position = last(run).manifest["position"]
    assert position["lr_scale"] == 0.5
    assert position["skipped"] == [8, 9]


@pytest.mark.filterwarnings("ignore:The loss of step", "ignore:The training inputs hold values")
def test_a_rollback_that_does_not_help_gives_up(tmp_path):
    x, y = arrays()
    everywhere = ArrayData(np.full(x.shape, np.nan, np.float32), y, batch_size=32, validation=0)
    made = trainer(tmp_path / "run", on_nonfinite="rollback")
    with pytest.raises(Diverged, match="step 6") as raised:
        made.fit(everything_model(), everywhere)
    assert f"{resume.ROLLBACKS} times" in "".join(raised.value.__notes__)
    assert summary(tmp_path / "run")["status"] == "diverged"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_at_once_and_leaves_the_last_checkpoint(tmp_path, name):
    def twice():
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), getattr(signal, name))

    run = tmp_path / "run"
    with pytest.raises(Interrupted) as raised:
        trainer(run, At(7, twice)).fit(everything_model(), data())
    assert raised.value.signal == name
    assert isinstance(raised.value, KeyboardInterrupt)
    assert summary(run)["status"] == "interrupted"
    assert last(run).manifest["step"] == 6
    assert "step-00000006" in raised.value.__notes__[-1]


class Saves(ModelCheckpoint):
    """A checkpointer that remembers the steps that were saved."""

    def on_save_checkpoint(self, fit, manifest):
        self.steps = [*getattr(self, "steps", []), fit.position.step]


def usr1():
    os.kill(os.getpid(), signal.SIGUSR1)


def test_sigusr1_writes_a_checkpoint_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    saves = Saves()
    made = trainer(tmp_path / "run", At(7, usr1), saves)
    assert made.fit(everything_model(), data()).status == "completed"
    assert saves.steps == [5, 7, 10, 15, 20]


@pytest.mark.parametrize("works", [True, False])
def test_in_a_slurm_job_sigusr1_stops_and_requeues(tmp_path, monkeypatch, works):
    told = tmp_path / "told"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    fails = "" if works else "echo 'Requested operation is presently disabled' >&2; exit 1"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {told}\n{fails}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    made = trainer(tmp_path / "run", At(7, usr1))
    if works:
        result = made.fit(everything_model(), data())
    else:
        with pytest.warns(UserWarning, match="4711 was not requeued.*presently disabled"):
            result = made.fit(everything_model(), data())
    assert told.read_text() == "requeue 4711\n"
    assert (result.status, result.reason) == ("interrupted", "SIGUSR1")
    assert last(tmp_path / "run").manifest["step"] == 7


def test_outside_the_main_thread_no_handler_is_touched(tmp_path):
    results = []

    def fit():
        results.append(trainer(tmp_path / "run").fit(everything_model(), data()))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert results[0].status == "completed"


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [5, 10, 15, 20]),
        ({"every_n_epochs": 2}, [10, 20]),
        ({"every_n_epochs": 3}, [15, 20]),  # the last is always saved
        ({"every_n_train_steps": 4}, [4, 5, 8, 10, 12, 15, 16, 20]),
    ],
)
def test_checkpoints_come_at_their_intervals(tmp_path, options, steps):
    saves = Saves(**options)
    trainer(tmp_path / "run", saves).fit(everything_model(), data())
    assert saves.steps == steps


def test_a_time_interval_counts_from_the_last_checkpoint(tmp_path):
    often, never = Saves(train_time_interval=0), Saves(train_time_interval=3600)
    trainer(tmp_path / "often", At(99, None), often).fit(everything_model(), data())
    trainer(tmp_path / "never", At(99, None), never).fit(everything_model(), data())
    assert often.steps == list(range(1, 21))
    assert never.steps == [5, 10, 15, 20]


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run = tmp_path / "run"
    trainer(run, ModelCheckpoint(save_top_k=2, every_n_train_steps=2)).fit(
        everything_model(), data()
    )
    manifest = last(run).manifest
    best = {name for _, name, _ in manifest["callbacks"]["ModelCheckpoint"]["best"]}
    assert len(best) == 2
    names = {p.name for p in checkpoints.saved(run / "checkpoints")}
    assert names == best | {"step-00000020", "step-00000018"}


def test_the_loop_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    later, save = threading.Event(), checkpoint.save
    seen = []

    def slow(path, *arguments):
        if path.name == "step-00000002":
            assert later.wait(60)  # until a step after it was taken
            seen.append(path.name)
        save(path, *arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    made = trainer(tmp_path / "run", At(3, later.set))
    assert made.fit(everything_model(), data()).status == "completed"
    assert seen == ["step-00000002"]


def test_what_fails_in_the_background_is_raised_at_the_next_boundary(tmp_path, monkeypatch):
    save, run = checkpoint.save, tmp_path / "run"

    def fails_once(path, *arguments):
        if path.name == "step-00000004":
            raise UserError("the disk is full")
        save(path, *arguments)

    monkeypatch.setattr(checkpoint, "save", fails_once)
    with pytest.raises(UserError, match="disk is full") as raised:
        trainer(run, At(99, None)).fit(everything_model(), data())
    # When it was raised the disk had room again, so nothing is lost.
    assert last(run).manifest["step"] in (4, 5, 6)
    assert str(last(run).path) in raised.value.__notes__[-1]
    assert summary(run)["status"] == "failed"
    assert_sound(run)


def test_a_writer_has_one_job_in_flight_and_hands_errors_back_once():
    writer, running, most = Writer(), [], []

    def job():
        running.append(1)
        most.append(len(running))
        running.pop()

    for _ in range(20):
        writer.submit(job)
    writer.wait()
    assert most == [1] * 20
    writer.submit(fail_first)
    with pytest.raises(RuntimeError, match="first"):
        writer.submit(job)
    writer.check()
    writer.wait()
    assert most == [1] * 20  # the job after the failure was not taken


def test_chunks_come_to_take_a_second_and_never_grow_fast():
    pace = Pace(1000)
    assert pace.steps(50) == 1
    pace.measured(1, 1.0)  # the first step was slow, as first steps are
    taken = []
    for _ in range(6):
        taken.append(pace.steps(10_000))
        pace.measured(taken[-1], taken[-1] * 0.01)
    assert taken == [1, 4, 16, 64, 100, 100]
    assert taken[-1] * 0.01 == pytest.approx(CHUNK_SECONDS)
    pace.measured(100, 50.0)  # the machine became slow
    assert pace.steps(10_000) == 2
    assert pace.steps(1) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "rolback"}, "on_nonfinite is 'rolback'"),
        ({"callbacks": [Callback()], "on_nonfinite": None}, "on_nonfinite is None"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Trainer(**options)


@pytest.mark.parametrize(
    "options", [{"save_top_k": -2}, {"every_n_epochs": 0}, {"train_time_interval": -1}]
)
def test_bad_arguments_of_a_checkpointer_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name} is"):
        ModelCheckpoint(**options)
