"""What cannot be searched is refused with one message, before anything is trained."""

import pytest

from fmnist_keras3.cli import main
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.tuning.plan import new_plan
from fmnist_keras3.tuning.space import SETTINGS, read_space

LR = "lr=log(1e-4,1e-1)"
# What is typed after `fmnist tune --data synthetic --model lenet`, and what the message says.
REFUSED = {
    "log from zero": (
        ["--param", "lr=log(0,1)"],
        "lr is 0.0; it must be a number, more than 0. Type --param",
    ),
    "log from below zero": (["--param", "swa=log(-1,1)"], "swa is"),
    "log of a range from zero": (["--param", "dropout=log(0,0.5)"], "must begin above 0"),
    "unknown parameter": (["--param", "droput=0.1..0.6"], "Did you mean 'dropout'"),
    "Lightning's name": (["--param", "max_epochs=1..3"], "epochs"),
    "no values": (["--param", "lr"], "has no values"),
    "a single value": (["--param", "lr=0.1"], "must be log"),
    "an unclosed list": (["--param", "model=[baseline,cnn"], "must be log"),
    "an empty list": (["--param", "model=[]"], "has no values"),
    "a list of one": (["--param", "model=[cnn]"], "Give it as --model cnn"),
    "a value twice": (["--param", "model=[cnn,cnn]"], "'cnn' twice"),
    "an unknown model": (["--param", "model=[baseline,cmn]"], "Did you mean 'cnn'"),
    "a wrong type": (["--param", "epochs=[1,many]"], "a whole number"),
    "a broken number": (["--param", "lr=log(1e-4,fast)"], "lr is 'fast'"),
    "half an epoch": (["--param", "epochs=1.5..3"], "a whole number"),
    "reversed bounds": (["--param", "lr=log(1e-1,1e-4)"], "it must rise"),
    "equal bounds": (["--param", "dropout=0.1..0.1"], "it must rise"),
    "outside the setting's range": (["--param", "dropout=0..1"], "less than 1"),
    "a range of texts": (["--param", "model=1..3"], "Give a list"),
    "a range of choices": (["--param", "precision=16..32"], "Give a list"),
    "a parameter twice": (["--param", LR, "--param", LR], "given twice"),
    "parameter and option": (["--param", LR, "--lr", "0.1"], "an option, too"),
    "nothing without another": (["--param", "swa_lr=log(1e-4,1e-2)"], "does nothing without swa"),
    "what goes into files": (["--param", "logger=[csv,tensorboard]"], "cannot be tuned"),
    "the seed": (["--param", "seed=0..9"], "--seeds 3"),
    "the measure": (["--param", "validation=0.1..0.2"], "cannot be tuned"),
    "no validation split": (["--validation", "0"], "--validation 0.1"),
    "no validation batches": (["--limit_val_batches", "0"], "no validation split"),
    "no trials": (["--trials", "0"], "at least 1"),
    "an unknown time": (["--timeout", "soon"], "soon"),
    "an unknown objective": (["--objective", "acuracy"], "Did you mean 'accuracy'"),
    "three objectives": (["--objective", "accuracy,loss,seconds"], "one, or two"),
    "the test set": (["--objective", "test_accuracy"], "There is no objective"),
    "an unknown sampler": (["--sampler", "tpee"], "Did you mean 'tpe'"),
    "a grid of ranges": (["--sampler", "grid"], "takes lists"),
    "CMA-ES of choices": (
        ["--sampler", "cmaes", "--param", "optimizer=[adamw,sgd]"],
        "two or more",
    ),
    "pruning of two": (["--pruner", "median", "--objective", "accuracy,macs"], "goes by accuracy"),
    "pruning of one epoch": (["--pruner", "median", "--epochs", "1"], "a trial has one"),
    "Wilcoxon of one seed": (["--pruner", "wilcoxon"], "--seeds 5"),
    "a run directory": (["--run_dir", "x"], "--run_dir out"),
    "a resume": (["--resume", "last"], "--study"),
    "a trial run": (["--fast_dev_run"], "--fast_dev_run out"),
    "an unknown storage": (["--storage", "sqllite"], "it must be journal"),
    "an unknown database": (["--storage", "oracles://x/y"], "cannot be opened"),
    "a proxy without a port": (["--storage", "grpc://host"], "grpc://HOST:13000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_one_message(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, said = REFUSED[name]
    assert main(["tune", "--data", "synthetic", "--model", "lenet", "--study", "s", *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("fmnist: ")
    assert said in text.replace("\n", " ")
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("trial-*"))


def test_a_python_space_is_read_like_a_typed_one():
    typed = ["lr=log(1e-4,0.1)", "dropout=0..0.5", "batch_size=[32, 64]", "epochs=2..9"]
    given = {
        "lr": (1e-4, 0.1, "log"),
        "dropout": (0, 0.5),
        "batch_size": [32, 64],
        "epochs": "2..9",
    }
    assert read_space(given) == read_space(typed)
    stored = {name: str(param) for name, param in read_space(given).items()}
    assert read_space(stored) == read_space(given)


def test_values_with_commas_stand_in_quotes():
    augment = read_space(["augment=['flip,crop:1', none]"])["augment"]
    assert augment.choices == ("flip,crop:1", "none")


def test_a_value_may_be_none_where_the_setting_may():
    assert read_space(["ema=[none, 0.99]"])["ema"].choices == (None, 0.99)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_a_parameter_or_says_why_not(name):
    value = SETTINGS[name].default
    with pytest.raises(UserError, match=r"cannot be tuned: it|twice\. Leave"):
        read_space({name: [value, value]})


def test_a_recipe_that_trains_on_everything_holds_out_a_tenth_in_trials():
    plan = new_plan({}, (), {"validation": 0.0}, {})
    assert plan.config().validation == 0.1
    assert plan.best({"lr": 0.01}).validation == 0


def test_the_default_space_leaves_out_what_is_given():
    assert list(new_plan({}, (), {"lr": 0.01}, {"lr": 0.01}).space) == ["dropout", "l2"]


@pytest.mark.parametrize(("sampler", "package"), [("gp", "torch"), ("cmaes", "cmaes")])
def test_a_sampler_says_which_package_it_needs(sampler, package, monkeypatch):
    monkeypatch.setattr("fmnist_keras3.tuning.plan.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install {package} "):
        new_plan({"sampler": sampler}, (), {}, {})


def test_without_optuna_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("fmnist_keras3.tuning.plan.importlib.util.find_spec", lambda name: None)
    assert main(["tune"]) == 2
    assert "pip install 'fmnist-keras3[tune]'" in capsys.readouterr().err
