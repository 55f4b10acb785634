"""Recipes: settings below the user's own, and headers whose figures are those of stored runs."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

from fmnist_keras3 import UserError, load_run, recipes
from fmnist_keras3.cli import main
from fmnist_keras3.models import MODELS
from fmnist_keras3.settings import TrainConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    return tmp_path


def shown(capsys, *words):
    """Return the settings that `fmnist train` would take."""
    capsys.readouterr()
    assert main(["train", "--print_config", *words]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def stored(name):
    """Return the summaries of a recipe's stored runs."""
    files = sorted((ROOT / recipes.read(name)[0]["results"]).glob("*/summary.json"))
    assert files
    return [json.loads(file.read_text()) for file in files]


MEASURED = [name for name in recipes.names() if "test_accuracy" in recipes.read(name)[0]]


@pytest.mark.parametrize("name", MEASURED)
def test_the_header_is_what_was_measured(name):
    header, _ = recipes.read(name)
    summaries = stored(name)
    assert {s["backend"] for s in summaries} == set(header["backends"])
    first = min(header["backends"])
    for key in ("test_accuracy", "test_accuracy_tta"):
        accuracies = [s[key] for s in summaries if s["backend"] == first and key in s]
        assert (key in header) == bool(accuracies)
        if accuracies:
            expected = {"mean": round(statistics.mean(accuracies), 4), "n": len(accuracies)}
            if len(accuracies) > 1:
                expected["std"] = round(statistics.stdev(accuracies), 4)
            assert header[key] == expected
    assert header["seconds"] == round(statistics.median(s["total_seconds"] for s in summaries))
    for summary in summaries:
        chip, cores = (summary["hardware"][name] for name in ("processor", "cores"))
        on = (chip, f"{cores} cores") if summary["device"] == "CPU" else (summary["device"], chip)
        assert all(name in header["hardware"] for name in on)
        assert summary["dataset"]["name"] == "fashion_mnist"


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {*MEASURED}))
def test_a_recipe_without_figures_says_how_to_measure_it(name, capsys):
    header, _ = recipes.read(name)
    assert header["to_measure"].startswith(f"python -m bench study {name} ")
    assert main(["recipes"]) == 0
    assert f"not measured yet; to measure it: {header['to_measure']}" in capsys.readouterr().out


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_decides_no_seed_and_no_place(name):
    _, settings = recipes.read(name)
    assert not settings.keys() & {"recipe", "seed", "data_dir", "run_dir", "resume"}


def test_a_recipe_lies_below_all_that_is_given(capsys, inside, monkeypatch):
    _, recipe = recipes.read("baseline")
    assert shown(capsys, "--recipe", "baseline")["dropout"] == recipe["dropout"]
    (inside / "c.yaml").write_text("dropout: 0.3\nlr: 0.3\nepochs: 3\n")
    monkeypatch.setenv("FMNIST_LR", "0.4")
    monkeypatch.setenv("FMNIST_EPOCHS", "4")
    found = shown(capsys, "--recipe", "baseline", "--config", "c.yaml", "--epochs", "5")
    assert (found["dropout"], found["lr"], found["epochs"]) == (0.3, 0.4, 5)
    assert found["l2"] == recipe["l2"]


def test_the_recipe_itself_is_a_setting(capsys, inside, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    for name, lr in (("one", 1), ("two", 2), ("three", 3)):
        (tmp_path / f"{name}.yaml").write_text(f"header: {{}}\nlr: {lr}\n")
    (inside / "c.yaml").write_text("recipe: one\n")
    assert shown(capsys, "--config", "c.yaml")["lr"] == 1
    monkeypatch.setenv("FMNIST_RECIPE", "two")
    assert shown(capsys, "--config", "c.yaml")["lr"] == 2
    assert shown(capsys, "--config", "c.yaml", "--recipe", "three")["lr"] == 3
    assert shown(capsys, "--config", "c.yaml", "--recipe", "none")["lr"] == TrainConfig().lr


def test_an_unknown_recipe_is_named_with_the_nearest(capsys, inside):
    assert main(["train", "--recipe", "baselin"]) == 2
    message = capsys.readouterr().err
    assert "'baselin'. Did you mean 'baseline'?" in message
    assert "fmnist recipes" in message
    with pytest.raises(UserError, match=r"no recipe '\.\./baseline'"):
        recipes.read("../baseline")


def test_a_run_repeats_though_its_recipe_has_changed(capsys, inside, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    small = "header: {}\nmodel: lenet\nepochs: 1\nlimit_train_batches: 1\nlimit_val_batches: 1\n"
    small += "limit_test_batches: 0\n"
    (tmp_path / "small.yaml").write_text(small + "lr: 0.004\n")
    words = ["train", "--recipe", "small", "--data", "synthetic"]
    assert main([*words, "--run_dir", "first"]) == 0
    run = load_run(inside / "first")
    assert run.summary["recipe"] == "small"
    assert run.config["lr"] == 0.004
    assert "recipe" not in run.config
    (tmp_path / "small.yaml").write_text(small + "lr: 0.5\nseed: 3\n")
    assert shown(capsys, "--config", "first/config.yaml") == run.config
    (tmp_path / "small.yaml").unlink()
    assert shown(capsys, "--config", "first/config.yaml") == run.config


def test_recipes_lists_what_was_measured(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for name in recipes.names():
        header, _ = recipes.read(name)
        assert name in text
        if name in MEASURED:
            assert f"{100 * header['test_accuracy']['mean']:.2f} %" in text
        assert header["command"] in text


def test_one_seed_has_no_deviation(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    (tmp_path / "one.yaml").write_text(
        "header: {about: a, command: b, hardware: c, seconds: 9, backends: [jax], results: d,"
        " test_accuracy: {mean: 0.965, n: 1}, test_accuracy_tta: {mean: 0.969, n: 1}}"
    )
    assert main(["recipes"]) == 0
    said = "test accuracy 96.50 %; with test-time augmentation 96.90 % (n=1 on jax)"
    assert said in capsys.readouterr().out


def test_a_file_of_ones_own_is_a_recipe(capsys, inside):
    (inside / "mine.yaml").write_text("header: {about: mine}\nlr: 0.3\nepochs: 4\n")
    found = shown(capsys, "--recipe", "mine.yaml", "--epochs", "5")
    assert (found["lr"], found["epochs"]) == (0.3, 5)
    assert recipes.read("mine.yaml")[0]["about"] == "mine"
    for name, text, message in (
        ("typo.yaml", "leaning_rate: 1\n", "unknown key 'leaning_rate'"),
        ("none.yaml", None, "cannot be read"),
    ):
        if text:
            (inside / name).write_text(text)
        assert main(["train", "--recipe", name]) == 2
        assert message in capsys.readouterr().err


def test_baseline_is_the_default_on_all_training_images_with_a_tuned_rate():
    _, settings = recipes.read("baseline")
    default, baseline = TrainConfig().to_dict(), TrainConfig(**settings).to_dict()
    differ = {name for name in default if default[name] != baseline[name]}
    entry = MODELS["baseline"]
    assert (baseline["dropout"], baseline["l2"]) == (entry.dropout, entry.l2)
    assert differ == {"validation", "lr", "dropout", "l2"}  # None: the model's own
