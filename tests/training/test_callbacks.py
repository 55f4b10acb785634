"""What early stopping, checkpoints' names and the monitors do."""

import json
import math
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from everything import EPOCHS, STEPS, At, data, everything_model, last, terminate
from everything import trainer as everything_trainer

from fmnist_keras3 import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    SessionView,
    ThroughputMonitor,
    UserError,
    load_run,
)
from fmnist_keras3.runs import checkpoint, checkpoints
from fmnist_keras3.runs.history import read_metrics
from fmnist_keras3.runs.writer import Writer
from fmnist_keras3.training.fit import Position


class Says(Callback):
    """Lets the validation of each epoch, from 1, have the value given for it."""

    def __init__(self, *values):
        self.values = values

    def on_validation_end(self, fit):
        fit.logs["val_loss"] = self.values[fit.position.epoch]


def trainer(path, *callbacks, **options):
    """A Trainer with just these callbacks."""
    made = everything_trainer(path, **options)
    made.callbacks = list(callbacks)
    return made


def fit(path, *callbacks, ckpt_path=None, **options):
    return trainer(path, *callbacks, **options).fit(everything_model(), data(), ckpt_path=ckpt_path)


def records(result, event):
    return [r for r in read_metrics(result.run_dir / "metrics.jsonl") if r["event"] == event]


def test_a_callback_sees_the_training_and_cannot_set_what_it_is_made_of(tmp_path):
    class Look(Callback):
        def on_train_epoch_end(self, fit):
            names = [name for name in dir(SessionView) if name[0] != "_"]
            self.seen = {name: getattr(fit, name) for name in names}
            with pytest.raises(AttributeError, match="can't set max_epochs of the training"):
                fit.max_epochs = 1
            with pytest.raises(AttributeError, match="can't set note of the training"):
                fit.note = "mine"

    look = Look()
    result = fit(tmp_path / "run", look)
    assert look.seen["max_epochs"] == EPOCHS == result.summary["epochs"]
    assert look.seen["position"].step == EPOCHS * STEPS
    assert look.seen["logs"]["val_loss"] == records(result, "validation")[-1]["loss"]
    assert look.seen["validates"]
    assert look.seen["epoch_complete"]


@pytest.mark.parametrize(
    ("options", "values", "epochs", "words"),
    [
        ({"stopping_threshold": 0.5}, (0.9, 0.4, 0.3, 0.2), 2, "better than the stopping_thresh"),
        ({"divergence_threshold": 2}, (0.9, 2.5, 0.3, 0.2), 2, "0 is worse than the divergence"),
        ({}, (0.9, 0.8, math.nan, 0.2), 3, "val_loss is nan, which is not finite"),
        ({"mode": "max"}, (0.9, math.inf, 1, 2), 2, "val_loss is inf"),
        ({"mode": "max", "stopping_threshold": 2}, (1, 2, 3, 4), 3, "3.0000 is better"),
    ],
)
def test_a_value_out_of_bounds_stops_at_once_and_again_after_a_resume(
    tmp_path, options, values, epochs, words
):
    run, stop = tmp_path / "run", EarlyStopping("val_loss", **options)
    result = fit(run, Says(*values), stop)
    assert (result.status, result.summary["epochs"]) == ("stopped", epochs)
    assert words in result.reason
    assert stop.stopped_epoch == epochs
    assert math.isfinite(stop.best_score)
    json.dumps(stop.state_dict(), allow_nan=False)
    again = fit(run, Says(*values), EarlyStopping("val_loss", **options), ckpt_path="last")
    assert (again.summary["epochs"], again.reason) == (epochs, result.reason)
    # With other arguments it goes on.
    other = EarlyStopping("val_loss", mode=options.get("mode"), check_finite=False)
    more = fit(run, Says(*values), other, ckpt_path="last")
    assert (more.status, other.stopped_epoch) == ("completed", 0)


def test_without_check_finite_such_a_value_is_no_improvement(tmp_path):
    stop = EarlyStopping("val_loss", check_finite=False, patience=2)
    result = fit(tmp_path / "run", Says(0.9, math.nan, -math.inf, 0.1), stop)
    assert result.summary["epochs"] == stop.stopped_epoch == 3
    assert (stop.best_score, stop.wait_count) == (0.9, 2)


def test_a_missing_monitor_is_warned_of_once_unless_strict(tmp_path):
    with pytest.warns(UserWarning, match=r"'val_f1'.*passed over") as told:
        result = fit(tmp_path / "run", EarlyStopping("val_f1", strict=False))
    assert result.status == "completed"
    assert len([warning for warning in told if "passed over" in str(warning.message)]) == 1


@pytest.mark.parametrize(
    ("monitor", "at_epoch_end", "checks"),
    [("val_loss", None, 6), ("val_loss", True, 2), ("loss", None, 4), ("loss", False, 6)],
)
def test_when_it_looks(tmp_path, monitor, at_epoch_end, checks):
    """With validations at each second step and the end of every second epoch."""
    stop = EarlyStopping(monitor, patience=99, min_delta=1e9, check_on_train_epoch_end=at_epoch_end)
    fit(tmp_path / "run", stop, val_check_interval=2, check_val_every_n_epoch=2)
    assert stop.wait_count == checks - 1  # the first is an improvement on nothing


def test_improvements_are_told(tmp_path, capsys):
    fit(tmp_path / "run", Says(0.9, 0.7, 0.8, 0.9), EarlyStopping("val_loss", verbose=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 1: val_loss improved to 0.9000",
        "epoch 2: val_loss improved by 0.2000 to 0.7000",
    ]


NAMES = "{epoch:02d}-{val_loss:.2f}"


def folders(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir())


def test_checkpoints_are_named_by_the_template_and_resume(tmp_path, capsys):
    run, values = tmp_path / "run", Says(0.9, 0.7, 0.8, 0.75)
    options = {"monitor": "val_loss", "save_top_k": 2, "filename": NAMES}
    save = ModelCheckpoint(**options, verbose=True)
    assert (save.best_model_path, save.best_model_score, save.last_model_path) == (None, None, None)
    result = fit(run, values, save, max_epochs=3)
    best = "step-00000010-epoch=02-val_loss=0.70"
    assert folders(run) == [best, "step-00000015-epoch=03-val_loss=0.80"]
    assert result.best_checkpoint == save.best_model_path == run / "checkpoints" / best
    assert (save.best_model_score, save.best_epoch) == (0.7, 2)
    assert save.last_model_path == result.last_checkpoint == run / "checkpoints" / folders(run)[1]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"epoch 2: val_loss 0.7000 is the best so far, kept as {best}"
    )
    more = fit(run, values, ModelCheckpoint(**options), ckpt_path="last")
    assert more.summary["steps"] == EPOCHS * STEPS
    assert folders(run)[-1] == "step-00000020-epoch=04-val_loss=0.75"
    again = fit(run, values, ModelCheckpoint(**options), ckpt_path=run / "checkpoints" / best)
    assert again.summary["steps"] == EPOCHS * STEPS
    assert folders(run) == [  # the old one of step 15 was there when the new one was written
        best,
        "step-00000015-epoch=03-val_loss=0.80-1",
        "step-00000020-epoch=04-val_loss=0.75",
    ]


def test_a_stop_and_resume_with_a_template_equals_a_straight_run(tmp_path):
    def save():
        return ModelCheckpoint(every_n_train_steps=2, save_top_k=9, filename=NAMES)

    straight = fit(tmp_path / "straight", save())
    fit(tmp_path / "run", save(), At(8, terminate))
    assert folders(tmp_path / "run")[-1] == "step-00000008-epoch=02-val_loss=nan"
    fit(tmp_path / "run", save(), ckpt_path="last")
    pairs = zip(last(tmp_path / "run").state, last(straight.run_dir).state, strict=True)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)
    runs = (tmp_path / "run", straight.run_dir)
    ranks = [last(run).manifest["callbacks"]["ModelCheckpoint"]["best"] for run in runs]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == EPOCHS


def test_the_best_of_one_and_the_epochs_of_another_are_kept_side_by_side(tmp_path):
    """Lightning's commonest pair; each keeps its own, and none removes the other's."""
    run, says = tmp_path / "run", Says(0.9, 0.5, 0.8, 0.7)

    def pair():
        return ModelCheckpoint(every_n_epochs=2, save_top_k=-1), ModelCheckpoint("val_loss")

    periodic, best = pair()
    result = fit(run, says, periodic, best, max_epochs=3)
    assert folders(run) == ["step-00000010", "step-00000015"]
    assert best.best_model_path == result.best_checkpoint == run / "checkpoints/step-00000010"
    assert checkpoints.pointed(run / "checkpoints", "best") == best.best_model_path
    assert result.summary["best_epoch"] == 2
    periodic, best = pair()
    fit(run, Says(0.9, 0.5, 0.8, 0.3, 0.7, 0.6, 0.6, 0.6), periodic, best, ckpt_path="last",
        max_epochs=8)  # fmt: skip
    assert folders(run) == [f"step-{step:08d}" for step in (10, 15, 20, 30, 35, 40)]
    assert best.best_model_path == run / "checkpoints/step-00000020"
    assert all(path.exists() for path in (best.best_model_path, periodic.best_model_path))
    state = last(run).manifest["callbacks"]
    assert state["ModelCheckpoint-2"]["best"] == best.best
    assert state["ModelCheckpoint"]["best"][0][1] in folders(run)


def test_two_monitors_have_a_best_each_and_the_first_is_that_of_the_run(tmp_path):
    run = tmp_path / "run"
    unnamed, loss = ModelCheckpoint(), ModelCheckpoint("val_loss", filename="loss-{val_loss:.1f}")
    worst = ModelCheckpoint("val_loss", mode="max", filename="worst-{val_loss:.1f}")
    result = fit(run, Says(0.9, 0.5, 0.8, 0.7), unnamed, loss, worst)
    assert loss.best_model_path.name.startswith("step-00000010-loss-val_loss=0.5")
    assert worst.best_model_path.name.startswith("step-00000005-worst-val_loss=0.9")
    assert result.best_checkpoint == loss.best_model_path
    assert all(s.best_model_path.is_dir() for s in (unnamed, loss, worst))
    assert all(s.last_model_path == result.last_checkpoint for s in (unnamed, loss, worst))
    (worst_state,) = (
        c.manifest["callbacks"]["ModelCheckpoint-3"]
        for c in [checkpoint.load(worst.best_model_path)]
    )
    assert worst_state["best"][0][1] == worst.best_model_path.name


def test_a_checkpoint_holds_the_callbacks_that_come_after_the_saver(tmp_path):
    class Counts(Callback):
        epochs = 0

        def on_train_epoch_end(self, fit):
            self.epochs += 1

        def state_dict(self):
            return {"epochs": self.epochs}

    fit(tmp_path / "run", ModelCheckpoint(), Counts(), max_epochs=3)
    assert last(tmp_path / "run").manifest["callbacks"]["Counts"] == {"epochs": 3}


def test_what_a_resumed_run_finds_stays_where_all_is_kept(tmp_path):
    run = tmp_path / "run"
    fit(run, ModelCheckpoint(save_top_k=-1), max_epochs=3)
    fit(run, ModelCheckpoint(save_top_k=-1), ckpt_path=run / "checkpoints/step-00000005")
    assert folders(run) == [f"step-{n}" for n in
        ("00000005", "00000010", "00000010-1", "00000015", "00000015-1", "00000020")]  # fmt: skip


def test_the_last_of_a_step_has_the_highest_number_whatever_its_label(tmp_path):
    paths = []
    for label in ("val_loss=nan", "val_loss=0.3", "", "run-7", "a"):
        paths.append(checkpoints.new_path(tmp_path, 5, label))
        paths[-1].mkdir()
    assert [p.name[14:] for p in paths] == ["val_loss=nan", "val_loss=0.3-1", "2", "run-7-3", "a-4"]
    assert checkpoints.saved(tmp_path) == paths[::-1]


def test_a_best_in_the_step_of_a_checkpoint_in_flight_is_the_one_of_its_validation(
    tmp_path, monkeypatch
):
    """Nothing is written before somebody waits for it."""
    awaited, save_now, wait_now = threading.Event(), checkpoint.save, Writer.wait

    def save(*arguments):
        awaited.wait()
        save_now(*arguments)

    def wait(writer):
        awaited.set()
        wait_now(writer)
        awaited.clear()

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(Writer, "wait", wait)
    made = ModelCheckpoint("val_loss", every_n_train_steps=2, save_top_k=9)
    fit(tmp_path / "run", made, max_steps=2)
    assert folders(tmp_path / "run") == ["step-00000002", "step-00000002-1"]
    assert [name for _, name, _ in made.best] == ["step-00000002-1"]


@pytest.mark.parametrize(
    ("filename", "words"),
    [
        ("{epoch", "is no template"),
        ("{val_loss:d}", "is no template"),
        ("{epoch}/{val_loss}", "may hold letters"),
        ("../{epoch}", "may hold letters"),
        ("epoch {epoch}", "may hold letters"),
        ("x" * 151, "150 characters"),
        ("{val_lsos:.2f}", "Did you mean 'val_loss'"),
        ("{}", "nothing named ''"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_before_training(tmp_path, filename, words):
    with pytest.raises(UserError, match=words):
        fit(tmp_path / "run", ModelCheckpoint(filename=filename))


def test_a_template_without_the_names_of_its_values(tmp_path):
    made = ModelCheckpoint(filename="e{epoch:03d}_{lr:.0e}", auto_insert_metric_name=False)
    fit(tmp_path / "run", made, max_epochs=1)
    assert folders(tmp_path / "run")[0].startswith("step-00000005-e001_")


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_mode_that_does_not_exist_is_named(kind):
    with pytest.raises(UserError, match="mode is 'lowest'"):
        kind("val_loss", mode="lowest")


@pytest.mark.parametrize("interval", ["step", "epoch", None])
def test_the_learning_rate_of_every_step_or_epoch(tmp_path, interval):
    # Chunks of other lengths, and steps that the loop logs: the rates are the same.
    made = trainer(tmp_path / "run", LearningRateMonitor(interval), At(7, terminate))
    made.fit(everything_model(), data())
    more = [LearningRateMonitor(interval)]
    result = trainer(tmp_path / "run", *more).fit(everything_model(), data(), ckpt_path="last")
    found = [(r["epoch"], r["step"], r["lr"]) for r in records(result, "lr")]
    steps = [(r["epoch"], r["step"], r["lr"]) for r in records(result, "step")]
    assert found == (steps[::STEPS] if interval == "epoch" else steps)
    assert len(steps) == STEPS * EPOCHS


def test_a_rate_that_no_schedule_changes_is_logged_an_epoch(tmp_path):
    result = fit(tmp_path / "run", LearningRateMonitor(), schedule=None, log_every_n_steps=0)
    assert [r["step"] for r in records(result, "lr")] == [1, 6, 11, 16]


@pytest.mark.parametrize(
    ("optimizer", "momentum", "weight_decay"),
    [
        (lambda: keras.optimizers.AdamW(0.01, beta_1=0.8, weight_decay=0.004), 0.8, 0.004),
        (lambda: keras.optimizers.SGD(0.01, momentum=0.7), 0.7, 0.0),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
            0.9,
            0.0,
        ),
    ],
)
def test_what_rules_the_rate_besides(optimizer, momentum, weight_decay):
    watch = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    fit = FitOfOneStep(optimizer())
    for hook in (watch.setup, watch.on_train_epoch_start, fit.step, watch.on_chunk_end):
        hook(fit)
    assert fit.logged == [
        ("lr", 1, 1, {"lr": 0.5, "momentum": momentum, "weight_decay": weight_decay})
    ]


class FitOfOneStep:
    """Stands for a Fit: compiling a model for each optimizer would take long."""

    def __init__(self, optimizer):
        self.model = self.engine = SimpleNamespace(optimizer=optimizer)
        self.position, self.schedule, self.logged = Position(), None, []

    def step(self, fit):
        self.position.step = self.position.step_in_epoch = 1

    def learning_rates(self, steps):
        return np.full(len(steps), 0.5)

    def log(self, *record):
        self.logged.append(record)


def test_no_momentum_is_said():
    with pytest.warns(UserWarning, match="Adagrad has no momentum"):
        LearningRateMonitor(log_momentum=True).setup(FitOfOneStep(keras.optimizers.Adagrad(0.01)))


def test_an_interval_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="logging_interval is 'batch'"):
        LearningRateMonitor("batch")


class Every(Callback):
    every_n_train_steps = 1


def test_throughput_counts_training_alone(tmp_path):
    watch = ThroughputMonitor(window_size=4, available_flops=1e9)
    result = fit(tmp_path / "run", watch, Every(), log_every_n_steps=2)
    found = records(result, "throughput")
    # Each second step, and each epoch's end, from which the next are counted.
    assert [r["step"] for r in found] == [2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20]
    for record in found:
        images, batches = record["images_per_second"], record["batches_per_second"]
        assert images == pytest.approx(32 * batches)
        macs = 49 * 16 + 16 * 10
        assert record["flops_per_second"] == pytest.approx(images * 6 * macs)
        assert record["mfu"] == pytest.approx(record["flops_per_second"] / 1e9)
    # The window forgets the first steps.
    assert sum(batches for batches, *_ in watch._chunks) == 4


def test_throughput_is_that_of_the_epochs(tmp_path):
    result = fit(tmp_path / "run", ThroughputMonitor(window_size=1), log_every_n_steps=0)
    epochs = records(result, "train")
    assert [r["step"] for r in records(result, "throughput")] == [r["step"] for r in epochs]
    whole = fit(tmp_path / "whole", ThroughputMonitor(window_size=STEPS), log_every_n_steps=0)
    (*_, found), (*_, epoch) = records(whole, "throughput"), records(whole, "train")
    assert found["images_per_second"] == pytest.approx(epoch["images_per_second"])
    assert "mfu" not in found


@pytest.mark.parametrize("options", [{"window_size": 0}, {"available_flops": -1}])
def test_a_throughput_of_nothing_is_refused(options):
    with pytest.raises(UserError, match="it must be more than 0"):
        ThroughputMonitor(**options)


def test_device_statistics(tmp_path):
    held = np.ones(10_000_000)  # 80 MB
    result = fit(tmp_path / "run", DeviceStatsMonitor(), Every(), log_every_n_steps=3)
    found = records(result, "device_stats")
    assert [r["step"] for r in found] == [3, 5, 8, 10, 13, 15, 18, 20]
    for record in found:
        assert held.nbytes / 1e6 < record["memory_mb"] <= record["peak_memory_mb"]
        assert record["cpu_percent"] >= 0
        assert 0 < record["memory_percent"] < 100
    assert any(record["cpu_percent"] > 0 for record in found)


@pytest.mark.parametrize(("cpu_stats", "with_load"), [(None, False), (True, True)])
def test_device_statistics_of_a_device_with_memory_of_its_own(cpu_stats, with_load):
    logged = []
    fit = SimpleNamespace(
        engine=SimpleNamespace(device=SimpleNamespace(is_host=False), peak_memory_mb=lambda: 123.0),
        position=Position(step=5, step_in_epoch=5),
        steps_in_epoch=5,
        log_every_n_steps=0,
        log=lambda *record: logged.append(record),
    )
    watch = DeviceStatsMonitor(cpu_stats)
    for hook in (watch.setup, watch.on_fit_start, watch.on_chunk_end):
        hook(fit)
    ((event, epoch, step, values),) = logged
    assert (event, epoch, step) == ("device_stats", 1, 5)
    assert values["device_peak_memory_mb"] == 123.0
    assert ("cpu_percent" in values) == with_load


def test_the_records_of_monitors_do_not_disturb_the_history(tmp_path):
    watches = [LearningRateMonitor(), ThroughputMonitor(), DeviceStatsMonitor()]
    result = fit(tmp_path / "run", *watches)
    plain = fit(tmp_path / "plain")
    assert load_run(result.run_dir).history.column("loss") == plain.history.column("loss")
