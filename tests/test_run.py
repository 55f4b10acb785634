"""What a run keeps of how it was made, that it can be repeated, and its checkpoints' models."""

import inspect
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from fmnist_keras3 import (
    Callback,
    EarlyStopping,
    FashionMNIST,
    ModelCheckpoint,
    Trainer,
    UserError,
    load_run,
)
from fmnist_keras3.cli import main
from fmnist_keras3.runs import checkpoint, checkpoints, rundir
from fmnist_keras3.training.hparams import PLACES

sys.path.insert(0, str(Path(__file__).parent / "training"))
from everything import STEPS, built_model, data, everything_model, last, trainer

pytestmark = pytest.mark.usefixtures("compiled_once")
HPARAMS = {"width": 16, "blocks": [1, 2], "note": "a text", "deep": {"rate": 0.5, "none": None}}


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir.time, "strftime", lambda form: "20261127-120000")
    with ThreadPoolExecutor(30) as pool:
        made = list(pool.map(lambda _: rundir.new_run_path(tmp_path / "runs", "m", "b"), range(30)))
    assert len(set(made)) == 30
    assert {path.name for path in made} == {path.name for path in (tmp_path / "runs").iterdir()}
    assert "20261127-120000-m-b-30" in {path.name for path in made}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written"):
        rundir.new_run_path(tmp_path / "file", "m", "b")


@pytest.fixture(scope="module")
def python_run(tmp_path_factory):
    """A finished run of the Trainer, with every validation's checkpoint kept."""
    path = tmp_path_factory.mktemp("python") / "run"
    keep = ModelCheckpoint(save_top_k=9, train_time_interval=timedelta(minutes=9))
    made = trainer(path, keep, keras.callbacks.EarlyStopping("val_loss", patience=99))
    made.callbacks.insert(0, Odd(signal.SIGTERM, np.float32(0.5), path, object()))
    made.fit(everything_model(), data(), hparams=HPARAMS)
    return path


class Odd(Callback):
    """Has arguments that YAML knows nothing of."""

    def __init__(self, number, rate, where, thing):
        self.number, self.rate, self.where, self.thing = number, rate, where, thing


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    return tmp_path


def test_a_run_of_python_keeps_all_that_decides_it(python_run):
    run = load_run(python_run)
    config = run.config
    assert config["trainer"].keys() == inspect.signature(Trainer).parameters.keys() - set(PLACES)
    assert (config["trainer"]["max_epochs"], config["trainer"]["schedule"]) == (4, "cosine")
    assert config["trainer"]["logger"] == ["CSVLogger"]
    by_class = {c["class"]: [] for c in config["trainer"]["callbacks"]}
    for described in config["trainer"]["callbacks"]:
        by_class[described["class"]].append(described)
    assert {c["patience"] for c in by_class["EarlyStopping"]} == {99, 100}  # Keras' and ours
    odd = {"number": 15, "rate": 0.5, "where": str(python_run), "thing": "object"}
    assert by_class["Odd"] == [{"class": "Odd", **odd}]
    (keep,) = by_class["ModelCheckpoint"]
    assert (keep["save_top_k"], keep["train_time_interval"]) == (9, 540)
    optimizer = config["optimizer"]
    assert optimizer["class"] == "AdamW"
    assert optimizer["learning_rate"] == pytest.approx(0.01)
    assert optimizer["gradient_accumulation_steps"] == 2
    assert config["loss"] == "SparseCategoricalCrossentropy"
    module = config["data_module"]
    assert (module["class"], module["batch_size"], module["validation"]) == ("ArrayData", 32, 0.2)
    assert len(module["augment"]) == 3
    assert config["hparams"] == HPARAMS
    assert last(python_run).manifest["config"] == config


def test_other_arguments_are_another_configuration(tmp_path):
    made = Trainer(
        max_epochs=1,
        max_time="00:10:00",
        gradient_clip_val=0.5,
        callbacks=[EarlyStopping(patience=7)],
        enable_progress_bar=False,
        run_dir=tmp_path / "run",
    )
    model = built_model(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)))
    made.fit(model, data(augment=None, seed=4))
    config = load_run(tmp_path / "run").config
    assert config["trainer"]["max_time"] == 600
    assert config["trainer"]["callbacks"][0]["patience"] == 7
    assert config["optimizer"]["learning_rate"]["class_name"] == "CosineDecay"
    assert config["optimizer"]["global_clipnorm"] == 0.5
    assert config["data_module"]["seed"] == 4


@pytest.mark.parametrize("value", [object(), {1: 2}, (1, 2), float("nan"), np.ones(2)])
def test_hparams_are_plain_values(tmp_path, value):
    with pytest.raises(UserError, match="hparams holds 'mine'"):
        trainer(tmp_path / "run").fit(everything_model(), data(), hparams={"mine": value})
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_that_a_run_is_of_python(python_run, inside, capsys):
    for words in (["--config", str(python_run / "config.yaml")], ["--resume", str(python_run)]):
        assert main(["train", *words]) == 2
        assert "Trainer(" in capsys.readouterr().err


def test_evaluate_takes_the_data_of_a_run_of_python(inside, capsys):
    made = Trainer(1, limit_train_batches=1, run_dir="run", enable_progress_bar=False)
    module = FashionMNIST(data="synthetic", validation=0.02, seed=5)
    result = made.fit(built_model(), module)
    assert main(["evaluate", "run", "--split", "validation"]) == 0
    assert f"accuracy {result.summary['validation_accuracy']:.4f}" in capsys.readouterr().out


TINY = "--data synthetic --limit_train_batches 3 --limit_val_batches 1 --limit_test_batches 0 "
TINY += "--epochs 1 --model lenet --optimizer sgd --dropout 0.3 --clip 0.5 --seed 3"


def test_the_saved_configuration_repeats_all_bits(inside, monkeypatch):
    monkeypatch.setenv("FMNIST_LR", "0.004")
    assert main(["train", *TINY.split(), "--run_dir", "first"]) == 0
    monkeypatch.delenv("FMNIST_LR")
    assert main(["train", "--config", "first/config.yaml", "--run_dir", "again"]) == 0
    first, again = last(inside / "first"), last(inside / "again")
    assert first.manifest["config"]["lr"] == 0.004
    assert first.manifest["config"] == load_run("again").config
    for (name, a), (_, b) in zip(first.state, again.state, strict=True):
        assert a.tobytes() == b.tobytes(), name
    outcomes = [
        [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
         for record in load_run(run).history]
        for run in ("first", "again")
    ]  # fmt: skip
    assert outcomes[0] == outcomes[1]


def weights(state):
    return [array for name, array in state if name.startswith("model/")]


def of(model):
    variables = model.trainable_variables + model.non_trainable_variables
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]


def test_a_checkpoint_is_loaded_by_name(python_run):
    folder = python_run / "checkpoints"
    for which in ("best", "last", f"step-{STEPS:08d}"):
        path = folder / which if which.startswith("step") else checkpoints.pointed(folder, which)
        stored = checkpoint.load(path).state
        run = load_run(python_run, which)
        assert run.checkpoint == path
        for mine, its in zip(of(run.model), weights(stored), strict=True):
            assert np.array_equal(mine, its)
        moments = [a for name, a in stored if name.startswith("optimizer/")]
        for mine, its in zip(run.model.optimizer.variables, moments, strict=True):
            assert np.array_equal(np.asarray(keras.ops.convert_to_numpy(mine)), its)
    first = load_run(python_run, f"step-{STEPS:08d}").model
    final = load_run(python_run).model
    pairs = zip(of(first), of(final), strict=True)
    assert not all(np.array_equal(a, b) for a, b in pairs)


def test_the_best_checkpoint_gives_the_best_validation(python_run):
    manifest = last(python_run).manifest
    best = manifest["callbacks"]["ModelCheckpoint"]["best"][0]
    model = load_run(python_run, "best").model
    values = Trainer(enable_progress_bar=False).validate(model, data())
    assert values["accuracy"] == pytest.approx(best[0], abs=1e-6)


def test_checkpoints_that_are_not_there_are_named(python_run, tmp_path):
    with pytest.raises(UserError, match=r"'bset'.*Did you mean 'best'|'bset'.*best, last"):
        load_run(python_run, "bset")
    with pytest.raises(UserError, match=r"'step-00000099'.*step-00000005"):
        load_run(python_run, "step-00000099")
    with pytest.raises(UserError, match="no checkpoint"):
        load_run(python_run, "../checkpoints")
    run = tmp_path / "run"
    shutil.copytree(python_run, run)
    path = checkpoints.pointed(run / "checkpoints", "best")
    (path / checkpoint.STATE).write_bytes(b"\0" * (path / checkpoint.STATE).stat().st_size)
    with pytest.raises(UserError, match="is damaged"):
        _ = load_run(run, "best").model


def test_a_run_that_has_not_ended_has_the_models_of_its_checkpoints(inside, python_run):
    assert main(["train", *TINY.split(), "--lr", "0.004", "--run_dir", "run"]) == 0
    run, expected = load_run("run"), load_run("run").model.get_weights()
    (run.path / "model.keras").unlink()  # as before the end
    model = load_run("run", "last").model
    for mine, its in zip(model.get_weights(), expected, strict=True):
        assert np.array_equal(mine, its)
    shutil.copytree(python_run, "python")
    Path("python/model.keras").unlink()
    with pytest.raises(UserError, match=r"in your program.*ckpt_path='last'"):
        _ = load_run("python", "last").model


def test_the_configuration_is_plain_yaml(python_run):
    assert yaml.safe_load((python_run / "config.yaml").read_text()) == load_run(python_run).config
