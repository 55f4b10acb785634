"""The command line: one clear message and exit 2 for bad input; whole runs for good input."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fmnist_keras3 import build_model, load_run
from fmnist_keras3.cli import COMMANDS, main
from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.settings import PROCESSES, SETTINGS, TrainConfig

pytestmark = pytest.mark.usefixtures("compiled_once")
ROOT = Path(__file__).parents[2]
HEAVY = {"keras", "jax", "tensorflow", "matplotlib", "sklearn", "numpy", "rich", "yaml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_data):
    """A folder with four small IDX files."""
    path = tmp_path_factory.mktemp("idx")
    x, y = tiny_data
    idx.write_folder(
        path, ImageData("idx", "", Split(x, y), Split(x[:60], y[:60]), FASHION_CLASSES)
    )
    return path


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty working folder, so that runs/ is not the checkout's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    return tmp_path


def refused(capsys, *words):
    """Run the command, check that it was refused in the agreed way, and return its message."""
    capsys.readouterr()
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("fmnist: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["'trian'", "'train'"]),
        (["train", "--modle", "lenet"], ["--modle", "'--model'"]),
        (["train", "--model", "lenett"], ["'lenett'", "'lenet'", "baseline"]),
        (["train", "--epochs", "0"], ["epochs is 0", "at least 1"]),
        (["train", "--epochs", "-3"], ["epochs is -3"]),
        (["train", "--epochs", "1.5"], ["'1.5'", "whole number"]),
        (["train", "--epochs"], ["--epochs"]),
        (["train", "--batch_size", "0"], ["batch_size is 0"]),
        (["train", "--batch-size", "-1"], ["batch_size is -1"]),
        (["train", "--lr", "fast"], ["'fast'", "a number"]),
        (["train", "--lr", "nan"], ["lr is nan"]),
        (["train", "--lr", "0"], ["more than 0"]),
        (["train", "--dropout", "1"], ["dropout is 1.0", "less than 1"]),
        (["train", "--checkpoint_every", "soon"], ["'soon'", "500", "10m"]),
        (["train", "--checkpoint_every", "0"], ["checkpoint_every is '0'", "at least 1"]),
        (["train", "--on_nonfinite", "rolback"], ["'rollback'"]),
        (["train", "--precision", "16"], ["'16'", "16-mixed"]),
        (["train", "--max_time", "soon"], ["'soon'", "00:10:00"]),
        (["train", "--limit_val_batches", "1.5"], ["limit_val_batches is 1.5", "fraction"]),
        (["train", "--limit_train_batches", "some"], ["'some'", "fraction"]),
        (["train", "--val_every", "0"], ["val_every is 0"]),
        (["train", "--min_epochs", "99"], ["min_epochs is 99", "epochs 25"]),
        (["train", "--accumulate", "0"], ["accumulate is 0"]),
        (["train", "--validation", "1.5"], ["validation is 1.5"]),
        (["train", "--augment", "flip,corp"], ["'corp'", "'crop'"]),
        (["train", "--augment", "crop:99"], ["crop:99", "1 to 8"]),
        (["train", "--optimizer", "adm"], ["'adm'", "'adam'"]),
        (["train", "--schedule", "cosin"], ["'cosine'"]),
        (["train", "--pipeline", "streem"], ["'stream'"]),
        (["train", "--early_stopping", "2", "--validation", "0"], ["early_stopping"]),
        (["train", "surplus"], ["'surplus'. Type"]),
        (["train", "lenet"], ["Unexpected 'lenet'. Perhaps --model lenet."]),
        (["train", "baseline"], ["Perhaps --model baseline or --recipe baseline."]),
        (["train", "--learning_rate", "1"], ["--learning_rate. Here it is --lr."]),
        (["train", "--learning-rate=1"], ["Here it is --lr."]),
        (["train", "-e", "3"], ["There is no option -e. Here it is --epochs."]),
        (["train", "--output", "x"], ["--output. Here it is --run_dir."]),
        (["train", "--name", "x"], ["Here it is --run_dir."]),
        (["train", "--backend", "jax"], ["KERAS_BACKEND=jax fmnist train"]),
        (["train", "--device", "cpu"], ["JAX_PLATFORMS=cpu"]),
        (["train", "--quiet"], ["--quiet. Here it is `> log.txt`"]),
        (["train", "--fp16"], ["Here it is --precision bf16-mixed."]),
        (["evaluate", ".", "--output", "x"], ["There is no option --output. Type"]),
        (["train", "--quite_another"], ["There is no option --quite_another. Type"]),
        (["fit"], ["no command 'fit'. Did you mean 'train'?"]),
        (["train", "--data", "cifar10"], ["--data tfds:cifar10"]),
        (["train", "--data", "fashon_mnist"], ["'fashon_mnist'", "'fashion_mnist'"]),
        (["train", "--data_dir", "/no/such/folder"], ["/no/such/folder", "t10k-labels-idx1-ubyte"]),
        (["train", "--data", "fashion_mnist"], ["train-images-idx3-ubyte", "--data synthetic"]),
        (["train", "--config", "/no/such.yaml"], ["/no/such.yaml"]),
        (["train", "--resume", "last"], ["no run in runs"]),
        (["train", "--resume", "/no/such/run"], ["/no/such/run"]),
        (["find"], ["lr|batch_size"]),
        (["find", "lrr"], ["'lrr'", "'lr'", "fmnist find lr or batch_size"]),
        (["find", "lr", "--resume", "last"], ["--resume"]),
        (["find", "lr", "--print_config"], ["--print_config"]),
        (["evaluate"], ["RUN_OR_MODEL"]),
        (["evaluate", "/no/such/run"], ["/no/such/run"]),
        (["evaluate", ".", "--split", "tset"], ["'tset'", "test or validation"]),
        (["evaluate", ".", "--tta", "flip"], ["'flip'", "--tta mirror,shift:1"]),
        (["train", "--tta", "shift:0"], ["'shift:0'", "1 to 8"]),
        (["report", "/no/such/run"], ["/no/such/run"]),
        (["data", "--data", "synthetic", "--augment", "flip"], ["--preview"]),
        (["--versoin"], ["--versoin", "'--version'"]),
    ],
)
def test_bad_input_is_named_with_what_to_type(capsys, inside, words, parts):
    message = refused(capsys, *words)
    assert all(part in message for part in parts), message
    assert not list(inside.iterdir())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs: [3", ["not YAML", "line"]),
        ("epoch: 3", ["'epoch'", "'epochs'"]),
        ("learning_rate: 3", ["'learning_rate'. Here it is --lr."]),
        ("- epochs", ["list"]),
        ("epochs: many", ["epochs", "'many'"]),
        ("epochs:", ["epochs has no value"]),
        ("epochs: true", ["epochs is True"]),
        ("lr: [1, 2]", ["lr is [1, 2]"]),
    ],
)
def test_a_bad_configuration_is_named(capsys, inside, text, parts):
    (inside / "c.yaml").write_text(text)
    message = refused(capsys, "train", "--config", "c.yaml")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "harm", ["truncated", "not gzip", "magic", "counts", "label", "empty", "dir"]
)
def test_damaged_data_is_named(capsys, inside, tiny_data, harm):
    x, y = tiny_data
    split = Split(x, y)
    folder = inside / "data"
    folder.mkdir()
    idx.write_folder(folder, ImageData("idx", "", split, split, FASHION_CLASSES))
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    broken = labels
    if harm == "truncated":
        broken = images
        images.write_bytes(images.read_bytes()[:-100])
    elif harm == "not gzip":
        labels.write_bytes(content)
    elif harm == "magic":
        labels.write_bytes(gzip.compress(b"\0\0\x08\x03" + content[4:]))
    elif harm == "counts":
        labels.write_bytes(gzip.compress(content[:4] + (199).to_bytes(4) + content[8:-1]))
    elif harm == "label":
        labels.write_bytes(gzip.compress(content[:-1] + b"\x0a"))
    elif harm == "empty":
        labels.write_bytes(b"")
    else:
        labels.unlink()
        labels.mkdir()
    message = refused(capsys, "train", "--data_dir", str(folder))
    assert broken.name.removesuffix(".gz") in message


def test_a_batch_larger_than_the_set_is_named(capsys, inside, folder):
    message = refused(capsys, "train", "--data_dir", str(folder), "--batch_size", "999")
    assert "999" in message
    assert "180 training" in message


@pytest.mark.parametrize("name", ["torch", "tensorflw"])
def test_a_backend_that_cannot_train_is_named(inside, name):
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_keras3", "train", "--data", "synthetic"],
        env={**os.environ, "KERAS_BACKEND": name, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"KERAS_BACKEND is '{name}'" in done.stderr
    assert "jax, tensorflow" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_checks_import_nothing_heavy():
    code = (
        "import sys\nfrom fmnist_keras3.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['find', '--help'], ['recipes', '-h']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stdout


def test_help_names_every_command_and_setting(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in SETTINGS)
    assert "--batch-size" in text


def test_print_config_is_what_config_reads(capsys, inside):
    assert main(["train", "--lr", "0.5", "--batch-size", "64", "--print_config"]) == 0
    text = capsys.readouterr().out
    (inside / "c.yaml").write_text(text)
    assert main(["train", "--config", "c.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == text
    assert yaml.safe_load(text)["batch_size"] == 64
    # the command line rules over the file
    assert main(["train", "--config", "c.yaml", "--lr", "0.1", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["lr"] == 0.1


def test_the_environment_lies_between_the_file_and_the_command_line(capsys, inside, monkeypatch):
    (inside / "c.yaml").write_text("epochs: 3\nlr: 0.3\nseed: 3\n")
    monkeypatch.setenv("FMNIST_EPOCHS", "4")
    monkeypatch.setenv("FMNIST_LR", "0.4")
    monkeypatch.setenv("FMNIST_OFFLINE", "1")  # not a setting, but ours
    assert main(["train", "--config", "c.yaml", "--lr", "0.5", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["epochs"], shown["lr"]) == (3, 4, 0.5)
    monkeypatch.setenv("FMNIST_EPOCHS", "many")
    assert "epochs is 'many'" in refused(capsys, "train", "--print_config")
    monkeypatch.delenv("FMNIST_EPOCHS")
    monkeypatch.setenv("FMNIST_EPOCH", "4")
    message = refused(capsys, "train", "--print_config")
    assert "FMNIST_EPOCH names no setting. Did you mean 'EPOCHS'?" in message


def test_amounts_are_whole_numbers_or_fractions(capsys, inside):
    words = ["train", "--print_config", "--limit_train_batches", "0.1", "--limit_val_batches", "5"]
    assert main([*words, "--val_every", "1.0", "--max_time", "00:01:00"]) == 0
    (inside / "c.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "c.yaml", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    values = [shown[k] for k in ("limit_train_batches", "limit_val_batches", "val_every")]
    assert [(v, type(v)) for v in values] == [(0.1, float), (5, int), (1.0, float)]


def test_warmup_is_that_of_the_schedule_unless_given(capsys, inside):
    for words, expected in (([], 5), (["--schedule", "one_cycle"], 0), (["--warmup", "2"], 2)):
        assert main(["train", "--print_config", *words]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["warmup"] == expected


def test_a_fast_dev_run_leaves_nothing(folder, inside, capsys):
    for words in (["--fast_dev_run"], ["--fast_dev_run", "2", "--run_dir", "r"]):
        assert main(["train", "--data_dir", str(folder), *SMALL, *words]) == 0
        assert "Nothing was kept" in capsys.readouterr().out
        assert not list(inside.iterdir())


def test_every_default_passes_its_own_checks():
    of_one_start = {"recipe", "run_dir", "resume", *PROCESSES}
    assert TrainConfig().to_dict().keys() == SETTINGS.keys() - of_one_start
    with pytest.raises(UserError, match="keep_top is -2"):
        TrainConfig(keep_top=-2)


SMALL = ["--model", "lenet", "--batch_size", "32", "--augment", "none", "--warmup", "0"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "--data_dir", str(folder), "--epochs", "2", *SMALL]
    assert main([*words, "--run_dir", str(path)]) == 0
    return path


def test_a_name_with_brackets_is_printed_as_it_is(folder, inside, capsys):
    name = "sweep[lr=0.01] [/a] :fire: $x$"
    words = ["train", "--data_dir", str(folder), "--epochs", "1", *SMALL, "--run_dir", name]
    assert main([*words, "--limit_train_batches", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count(name) == 3  # at the start, and of model and report
    assert main(["evaluate", name, "--data_dir", str(folder)]) == 0
    assert main([*words]) == 2
    assert f"{name} already holds a run" in capsys.readouterr().err


def test_train_leaves_the_run_directory_of_the_contract(run, backend):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "model.keras",
        "report.html",
        "evaluation.json",
        "plots/curves.png",
        "plots/confusion_matrix.png",
        "plots/mistakes.png",
        "plots/calibration.png",
        "checkpoints/last.json",
        "checkpoints/best.json",
    } <= names
    summary = json.loads((run / "summary.json").read_text())
    assert {
        "status", "reason", "command", "backend", "device", "precision", "pipeline", "dataset",
        "model", "parameters", "macs", "seed", "epochs", "steps", "batch_size", "test_loss",
        "test_accuracy", "validation_loss", "validation_accuracy", "best_epoch",
        "images_per_second", "epoch_seconds", "compile_seconds", "time_to_first_step",
        "total_seconds", "peak_memory_mb", "versions", "hardware",
    } <= summary.keys()  # fmt: skip
    assert summary["status"] == "completed"
    assert summary["backend"] == backend
    assert summary["dataset"]["name"] == "idx"
    assert summary["dataset"]["note"]
    events = [
        json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert events == ["train", "validation", "train", "validation", "test"]


def test_evaluate_gives_the_figures_of_the_run(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    for target in (run, run / "model.keras"):
        extra = ["--data_dir", load_run(run).config["data_dir"]] if target != run else []
        assert main(["evaluate", str(target), *extra]) == 0
        text = capsys.readouterr().out
        assert f"accuracy {summary['test_accuracy']:.4f}" in text
        assert f"loss {summary['test_loss']:.4f}" in text
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    assert f"accuracy {summary['validation_accuracy']:.4f}" in capsys.readouterr().out


def test_the_saved_configuration_repeats_the_run(run, inside):
    assert main(["train", "--config", str(run / "config.yaml"), "--run_dir", "again"]) == 0
    first, again = load_run(run), load_run(inside / "again")
    assert first.summary["test_loss"] == again.summary["test_loss"]
    for a, b in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_a_finished_run_goes_on_with_more_epochs(run, folder, inside, capsys):
    words = ["train", "--data_dir", str(folder), "--epochs", "1", *SMALL, "--run_dir", "r"]
    assert main([*words, "--schedule", "constant"]) == 0
    assert main(["train", "--resume", "last", "--run_dir", "r", "--epochs", "2"]) == 0
    assert load_run(inside / "r").summary["epochs"] == 2
    assert [r["epoch"] for r in load_run("r").history if r["event"] == "test"] == [2]
    for name, value in (("model", "cnn"), ("seed", "3"), ("batch_size", "16"), ("augment", "flip")):
        message = refused(capsys, "train", "--resume", "r", f"--{name}", value)
        assert name in message
        assert value in message


def test_a_run_directory_that_is_taken_or_cannot_be_is_refused(run, inside, capsys):
    message = refused(capsys, "train", "--data", "synthetic", "--run_dir", str(run))
    assert "already holds a run" in message
    (inside / "file").write_text("")
    assert "is a file" in refused(capsys, "train", "--data", "synthetic", "--run_dir", "file")
    assert "written" in refused(capsys, "train", "--data", "synthetic", "--run_dir", "/proc/x/y")


def test_generated_garments_are_said_loudly(inside, capsys):
    words = ["train", "--epochs", "1", "--limit_train_batches", "2", *SMALL]
    assert main([*words, "--data", "synthetic"]) == 0
    text = capsys.readouterr().out
    assert text.count("SYNTHETIC DATA") == 2
    (run,) = (inside / "runs").iterdir()
    assert run.name.endswith("-synthetic")
    assert load_run(run).summary["dataset"]["name"] == "synthetic"
    assert "generated garments" in (run / "report.html").read_text()


def test_data_describes_and_previews(folder, inside, capsys):
    assert main(["data", "--data_dir", str(folder), "--preview", "p.png", "--augment", "flip"]) == 0
    assert "Ankle boot" in capsys.readouterr().out
    assert (inside / "p.png").read_bytes()[:4] == b"\x89PNG"
    several = ["data", "--data_dir", str(folder), "--preview", "q.png", "--augment"]
    assert main([*several, "altflip,rotate:20,mixup"]) == 0
    with Image.open(inside / "p.png") as one, Image.open(inside / "q.png") as all_of_them:
        assert all_of_them.height > 2 * one.height  # a block for each, and one for all together
    message = refused(capsys, "data", "--data_dir", str(folder), "--preview", "no/p.png")
    assert "no/p.png" in message


def test_models_lists_the_registry(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert f"{build_model('lenet').count_params():,}" in text
    assert "baseline" in text
    assert "bn_momentum" in text


def test_models_measures_one_with_options(capsys):
    assert main(["models", "airnet:widths=4-4"]) == 0
    text = capsys.readouterr().out
    assert f"{build_model('airnet', widths=(4, 4)).count_params():,}" in text
    assert "baseline" not in text
    assert "no model 'airnt'" in refused(capsys, "models", "airnt")


def test_look_ahead_groups_and_options_reach_the_training(inside):
    words = ["train", "--model", "lenet", "--data", "synthetic", "--epochs", "1", "--run_dir", "r"]
    words += ["--limit_train_batches", "3", "--limit_test_batches", "2", "--lr_groups", "logits=0"]
    words += ["--optimizer", "sgd:momentum=0.5", "--lookahead", "0.5", "--lookahead_steps", "2"]
    assert main(words) == 0
    run = load_run("r")
    assert (run.path / "model_raw.keras").exists()
    assert run.model.optimizer.momentum == 0.5
    for name, moves in (("logits", False), ("dense1", True)):
        began = np.asarray(build_model("lenet").get_layer(name).kernel.value)
        ended = np.asarray(run.model.get_layer(name).kernel.value)
        assert np.array_equal(began, ended) != moves


def test_a_model_with_options_is_trained_and_loaded(inside, capsys):
    words = ["train", "--model", "airnet:widths=4-4,whiten=3", "--data", "synthetic"]
    words += ["--epochs", "1", "--limit_train_batches", "2", "--limit_test_batches", "2"]
    assert main(words) == 0
    (path,) = (inside / "runs").iterdir()
    assert "airnet_widths-4-4_whiten-3" in path.name
    run = load_run(path)
    assert run.config["model"] == "airnet:widths=4-4,whiten=3"
    best = load_run(path, "last").model.get_layer("whiten").kernel.value
    whitened = np.asarray(run.model.get_layer("whiten").kernel.value)
    np.testing.assert_array_equal(whitened, np.asarray(best))
    np.testing.assert_array_equal(whitened[..., :9], -whitened[..., 9:])  # by the training images
    message = refused(capsys, "train", "--model", "airnet:width=4", "--data", "synthetic")
    assert "Did you mean 'widths'" in message


def test_a_broken_model_file_is_refused(folder, inside, capsys):
    for name, content in (("a.keras", b""), ("b.keras", b"PK\x03\x04 no zip"), ("c.txt", b"text")):
        (inside / name).write_bytes(content)
        assert name in refused(capsys, "evaluate", name, "--data_dir", str(folder))


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_averaged_and_raw_weights_are_both_tested(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--model", "lenet", "--data", "synthetic", "--epochs", "1", "--ema", "0.9"]
    words += ["--limit_train_batches", "3", "--limit_test_batches", "2", "--run_dir", str(run)]
    assert main(words) == 0
    summary = json.loads((run / "summary.json").read_text())
    values = [summary[f"test_{name}"] for name in ("loss", "raw_loss")]
    assert values[0] != pytest.approx(values[1], rel=1e-4)
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert [record[name] for name in ("loss", "raw_loss")] == values
    assert "validation averaged loss" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["examples"] == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--swa_lr", "1e-3"], "swa_lr does nothing without swa"),
        (["--lookahead_steps", "3"], "lookahead_steps does nothing without lookahead"),
        (["--lookahead_anneal"], "lookahead_anneal does nothing without lookahead"),
        (["--barebones", "--tta", "mirror"], "tta does nothing with barebones"),
        (["--barebones", "--checkpoint_every", "5"], "checkpoint_every does nothing"),
        (["--barebones", "--ema", "0.9", "--data", "synthetic"], "barebones goes without"),
    ],
)
def test_settings_that_would_do_nothing_are_told(capsys, words, message):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err
