"""The Tuner: what it suggests, that it leaves everything as it was, and `fmnist find`."""

import shlex
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

from fmnist_keras3 import Trainer, Tuner, UserError, engines
from fmnist_keras3 import cli as cli_module
from fmnist_keras3.cli import main
from fmnist_keras3.tuning.finders import BatchSizeFinder, LRFinder

sys.path.insert(0, str(Path(__file__).parent / "training"))
from everything import built_model, data, everything_model, shared, trainer


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty working folder, which no search may write into."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture
def tuner(inside):
    """A Tuner of the shared small model's trainer; nothing it does may leave a bit or a file."""
    model = everything_model()
    before = shared["engine"].export_state()
    yield Tuner(trainer(inside / "run"))
    for (name, then), (_, now) in zip(before, shared["engine"].export_state(), strict=True):
        assert then.tobytes() == now.tobytes(), name
    shared["engine"].read_model()
    for (name, then), (_, now) in zip(before, shared["engine"].export_state(), strict=True):
        assert then.tobytes() == now.tobytes(), f"{name} in the Keras model"
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert not [p for p in inside.rglob("*") if p.suffix != ".png"]


def test_the_rates_rise_and_the_loss_falls(tuner):
    found = tuner.lr_find(everything_model(), data(), max_lr=0.1, num_training=60)
    rates, losses = found.results["lr"], found.results["loss"]
    assert len(rates) == len(losses) == len(found.results["batch_loss"]) == 60
    assert np.allclose(rates, np.geomspace(1e-8, 0.1, 60), rtol=1e-5)
    assert found.stopped is None
    assert 1e-5 < found.suggestion() < 0.1  # where it learns at all
    assert losses[-1] < max(losses[10:])
    assert "suggestion" in repr(found)
    linear = tuner.lr_find(everything_model(), data(), 0.01, 0.1, 5, mode="linear")
    assert np.allclose(linear.results["lr"], np.linspace(0.01, 0.1, 5))


def test_a_search_takes_the_batches_of_a_fit(tuner, inside):
    # Ten steps are two epochs here. A rate that stays nearly the same is the schedule of this fit.
    found = tuner.lr_find(everything_model(), data(), 0.00999999, 0.01, 10)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(Path(folder) / "run", max_epochs=2, schedule=None)
        steps = made.fit(everything_model(), data()).history
    losses = [record["loss"] for record in steps if record["event"] == "step"]
    assert np.allclose(found.results["batch_loss"], losses, rtol=1e-4)
    everything_model()


def test_a_divergence_ends_the_search_cleanly(tuner):
    found = tuner.lr_find(everything_model(), data(), 1e-3, 1e30, 100)
    assert len(found.results["lr"]) < 100
    assert np.isfinite(found.results["loss"]).all()
    assert found.stopped
    assert "learning rate" in found.stopped
    never = tuner.lr_find(everything_model(), data(), 1e-3, 1e38, 60, early_stop_threshold=None)
    assert "not finite" in never.stopped


def test_an_exception_in_the_middle_changes_nothing(tuner, monkeypatch):
    engine, train, calls = shared["engine"], shared["engine"].train, []

    def failing(chunk, rates):
        calls.append(train(chunk, rates))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train", lambda chunk, rates: failing(chunk, rates) or calls[-1])
    with pytest.raises(KeyboardInterrupt):
        tuner.lr_find(everything_model(), data(), num_training=20)
    assert len(calls) == 2


def finder(losses):
    rates = np.geomspace(1e-6, 1, len(losses)).tolist()
    return LRFinder("exponential", {"lr": rates, "loss": losses, "batch_loss": losses}, None, "t")


def test_the_suggestion_is_where_the_curve_is_steepest():
    steps = np.arange(60)
    found = finder((1 / (1 + np.exp(steps - 35.0))).tolist())
    assert found.suggestion() == found.results["lr"][35]
    assert found.suggestion(skip_begin=40) == found.results["lr"][40]
    assert found.suggestion(skip_end=30) == found.results["lr"][29]
    assert found.suggestion(skip_begin=10, skip_end=0) == found.results["lr"][35]
    assert finder([1.0] * 11).suggestion() is None  # too few are left
    assert finder(np.arange(30.0).tolist()).suggestion() is None  # it only rises
    assert finder([]).suggestion() is None


def test_the_plot_is_a_file_or_a_figure(tmp_path):
    found = finder((2.0 - np.arange(30) / 20).tolist())
    assert found.plot(tmp_path / "a.png") == tmp_path / "a.png"
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    figure = found.plot()
    assert isinstance(figure, Figure)
    (axes,) = figure.subfigs[-1].axes
    assert axes.get_xscale() == "log"
    assert "suggestion" in axes.texts[0].get_text()
    assert not found.plot(suggest=False).subfigs[-1].axes[0].texts
    assert "No step" in finder([]).plot().subfigs[-1].texts[0].get_text()


def test_update_attr_sets_the_rate_and_nothing_else(inside):
    model = everything_model()
    before = dict(shared["engine"].export_state())
    found = Tuner(trainer(inside / "run")).lr_find(
        model, data(), 1e-5, 0.1, num_training=30, update_attr=True
    )
    shared["engine"].read_model()
    after = dict(shared["engine"].export_state())
    changed = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert [name.split("/")[-1] for name in changed] == ["learning_rate"]
    assert float(model.optimizer.learning_rate) == pytest.approx(found.suggestion())
    result = trainer(inside / "fit", max_epochs=1, schedule=None).fit(model, data())
    rates = [r["lr"] for r in result.history if r["event"] == "train"]
    assert rates == [pytest.approx(found.suggestion())]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "exponental"}, "Did you mean 'exponential'"),
        ({"min_lr": 0}, "min_lr 0 and max_lr 1"),
        ({"min_lr": 2}, "min_lr the smaller"),
        ({"num_training": 1}, "num_training is 1"),
        ({"early_stop_threshold": 1}, "early_stop_threshold is 1"),
    ],
)
def test_bad_arguments_of_lr_find_are_named(tuner, options, words):
    with pytest.raises(UserError, match=words):
        tuner.lr_find(everything_model(), data(), **options)


def test_a_schedule_inside_the_optimizer_is_refused(inside):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = built_model(keras.optimizers.SGD(schedule))
    with pytest.raises(UserError, match="schedule of its own"):
        Tuner(Trainer()).lr_find(model, data())


def test_batch_sizes_are_timed_up_to_the_split(tuner):
    module = data()
    found = tuner.scale_batch_size(everything_model(), module, init_val=80, steps_per_trial=1)
    assert module.batch_size == 32
    assert [r["batch_size"] for r in found.results] == [80, 160]
    assert all(r["fits"] and r["images_per_second"] > 0 for r in found.results)
    assert found.largest == 160
    assert "160 examples" in found.limit
    assert found.fastest in (80, 160)
    assert "160" in repr(found)


@pytest.mark.parametrize(
    ("options", "fits", "sizes", "largest", "limit"),
    [
        ({}, 999, [2, 4, 8, 16, 32, 64, 128], 128, "the training split has 160 examples"),
        ({"max_val": 20}, 999, [2, 4, 8, 16], 16, "max_val 20"),
        ({"max_val": 20, "mode": "binsearch"}, 999, [2, 4, 8, 16, 20], 20, "max_val 20"),
        ({"max_trials": 2}, 999, [2, 4], 4, "max_trials 2"),
        ({"init_val": 4}, 21, [4, 8, 16, 32], 16, "32 is out of memory"),
        (
            {"init_val": 4, "mode": "binsearch"},
            21,
            [4, 8, 16, 32, 24, 20, 22, 21],
            21,
            "22 is out of memory",
        ),
        ({"init_val": 9, "mode": "binsearch"}, 2, [9, 4, 2, 3], 2, "3 is out of memory"),
        ({"init_val": 500}, 999, [160], 160, "the training split has 160 examples"),
    ],
)
def test_sizes_are_tried_in_order(tuner, monkeypatch, options, fits, sizes, largest, limit):
    def speed(self, model, data, size, steps):
        return float(size) if size <= fits else None

    monkeypatch.setattr(Tuner, "_speed", speed)
    found = tuner.scale_batch_size(everything_model(), data(), **options)
    assert [r["batch_size"] for r in found.results] == sizes
    assert (found.largest, found.limit) == (largest, limit)


def exhausted():
    """Ask the backend for more memory than there is, and return its error."""
    try:
        total = shared["engine"].jit(lambda x: keras.ops.sum(keras.ops.zeros(2**45) + x))
        np.asarray(total(np.float32(1)))
    except Exception as error:
        return error
    return MemoryError()  # some systems promise any amount


def test_out_of_memory_is_the_limit(tuner, monkeypatch):
    everything_model()
    error, kind = exhausted(), type(shared["engine"])
    assert engines.out_of_memory(error)
    assert not engines.out_of_memory(RuntimeError("another"))
    train = kind.train

    def too_large(engine, chunk, rates):
        logs = train(engine, chunk, rates)  # what was donated is gone
        if chunk.x.shape[1] > 80:
            raise error
        return logs

    monkeypatch.setattr(kind, "train", too_large)
    # Sizes whose programs were compiled for the test before this one, too.
    found = tuner.scale_batch_size(everything_model(), data(), steps_per_trial=1, init_val=80)
    assert [(r["batch_size"], r["fits"]) for r in found.results] == [(80, True), (160, False)]
    assert (found.largest, found.limit) == (80, "160 is out of memory")
    assert "too large" in repr(found)
    none = tuner.scale_batch_size(everything_model(), data(), steps_per_trial=1, init_val=160)
    assert (none.largest, none.fastest, none.suggestion()) == (None, None, None)


def test_another_error_is_raised_and_changes_nothing(tuner, monkeypatch):
    def broken(engine, chunk, rates):
        raise RuntimeError("another")

    monkeypatch.setattr(type(shared["engine"]), "train", broken)
    with pytest.raises(RuntimeError, match="another"):
        tuner.scale_batch_size(everything_model(), data())


def test_the_suggestion_is_the_smallest_that_is_nearly_fastest():
    speeds = {2: 10.0, 4: 96.0, 8: 90.0, 16: 100.0, 32: None}
    rows = [
        {"batch_size": s, "fits": v is not None, "images_per_second": v} for s, v in speeds.items()
    ]
    found = BatchSizeFinder(rows, "32 is out of memory")
    assert (found.largest, found.fastest, found.suggestion()) == (16, 16, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "powr"}, "Did you mean 'power'"),
        ({"init_val": 0}, "init_val is 0"),
        ({"steps_per_trial": 0}, "steps_per_trial is 0"),
        ({"init_val": 64, "max_val": 32}, "max_val is 32; it must be at least 64"),
    ],
)
def test_bad_arguments_of_scale_batch_size_are_named(tuner, options, words):
    with pytest.raises(UserError, match=words):
        tuner.scale_batch_size(everything_model(), data(), **options)


def test_find_lr_ends_with_a_command_that_trains(inside, capsys, backend):
    words = "--model lenet --data synthetic --limit_train_batches 1 --epochs 1 --augment none"
    assert main(["find", "lr", "--batch-size", "32", *words.split()]) == 0
    text = capsys.readouterr().out
    assert "averaged loss" in text
    assert {p.name for p in inside.iterdir()} == {"lr_find.png"}
    command = shlex.split(text.splitlines()[-1])
    assert command[:3] == [f"KERAS_BACKEND={backend}", "fmnist", "train"]
    rate = float(command[command.index("--lr") + 1])
    assert 1e-8 < rate < 1
    assert main([*command[2:], "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert f"lr: {rate}\n" in shown
    assert "batch_size: 32\n" in shown


def test_find_batch_size_prints_the_table(inside, capsys, monkeypatch):
    def small(self, model, data):
        return BatchSizeFinder(
            [{"batch_size": 64, "fits": True, "images_per_second": 1234.0}], "max_val 64"
        )

    monkeypatch.setattr(Tuner, "scale_batch_size", small)
    (inside / "c.yaml").write_text("model: lenet\ndata: synthetic\n")
    assert main(["find", "batch_size", "--config", "c.yaml", "--batch_size", "32"]) == 0
    text = capsys.readouterr().out
    assert "1,234" in text
    assert text.splitlines()[-1].endswith("fmnist train --config c.yaml --batch_size 64")
    assert "find" in cli_module.COMMANDS
