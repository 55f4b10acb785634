"""Examples that count by their class: the same as sample weights, given in several ways."""

import numpy as np
import pytest
from kept import kept
from written import examples, write

from fmnist_keras3 import ArrayData, Trainer, UserError, build_model, load_run
from fmnist_keras3.cli import main
from fmnist_keras3.data.weights import weighted
from fmnist_keras3.training.feeds import ResidentFeed

pytestmark = pytest.mark.usefixtures("compiled_once")
X, Y, *_ = examples(120, 20, 10)
Y = np.where(Y < 7, 0, Y - 6)  # four classes, the first of which is common


def trained(data, **options):
    model = kept.model(build_model, "lenet")
    trainer = Trainer(max_epochs=1, enable_progress_bar=False, barebones=True)
    history = trainer.fit(model, data, **options).history
    return [r.get("loss") for r in history], [w.tobytes() for w in model.get_weights()]


def test_balanced_classes_count_alike():
    data = weighted(ArrayData(X, Y, batch_size=8), "balanced")
    y, weight = data.train.y, data.train.weight
    totals = [weight[y == k].sum() for k in range(4)]
    assert totals == pytest.approx([len(y) / 4] * 4)
    assert data.validation.weight is None
    assert weight.dtype == np.float32


def test_it_is_what_sample_weights_are():
    factors = np.array([0.5, 2, 1, 3], np.float32)
    plain = ArrayData(X, Y, factors[Y], validation=0.0, batch_size=24)
    by_sample = trained(plain)
    options = {"validation": 0.0, "batch_size": 24}
    by_class = trained(ArrayData(X, Y, **options), class_weight={0: 0.5, 1: 2, "3": 3})
    assert by_class == by_sample
    assert by_class != trained(ArrayData(X, Y, **options))
    both = weighted(ArrayData(X, Y, factors[Y], validation=0.0, batch_size=24), {0: 4})
    assert np.array_equal(both.train.weight, np.where(Y == 0, 2, factors[Y]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("balancd", "is no file. Type --class_weight balanced|which is no file"),
        ({9: 1.0}, r"has no class 9.* It has 0, 1, 2, 3\."),
        ({"cat": 1.0}, "has no class 'cat'"),
        ({0: -1}, "0: -1; it must be a number, at least 0"),
        ({0: float("nan")}, "must be a number"),
        ({0: "two"}, "must be a number"),
        ([1, 2, 3, 4], "class_weight is a list; give 'balanced', a dict"),
    ],
)
def test_what_is_no_weight_of_classes(given, words):
    with pytest.raises(UserError, match=words):
        weighted(ArrayData(X, Y, batch_size=8), given)


def test_it_needs_classes():
    with pytest.raises(UserError, match="labels that are classes"):
        weighted(ArrayData(X, np.eye(4)[Y], batch_size=8), "balanced")


def test_on_the_command_line_it_is_a_setting_that_a_run_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "set", "npz", X, Y, X[:20], Y[:20])
    (tmp_path / "factors.yaml").write_text("0: 0.5\n3: 4\n")
    words = ["train", "--data", data, "--model", "lenet", "--batch_size", "16", "--epochs", "1"]
    words += ["--class_weight", "factors.yaml"]
    assert main([*words, "--run_dir", "run"]) == 0
    config = load_run("run").config
    assert config["class_weight"] == str(tmp_path / "factors.yaml")
    more = ["train", "--resume", "last", "--run_dir", "run", "--epochs", "2"]
    assert main([*more, "--class_weight", "balanced"]) == 2
    assert "class_weight was" in capsys.readouterr().err
    (tmp_path / "factors.yaml").write_text("0: 0.5\n3: 5\n")
    assert main(more) == 2
    assert (
        "class_weight [0.5, 1.0, 1.0, 4.0]; it is [0.5, 1.0, 1.0, 5.0]" in capsys.readouterr().err
    )
    (tmp_path / "factors.yaml").write_text("cat: 2\n")
    assert main(words) == 2
    assert "factors.yaml has no class 'cat'" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"sampling": "balanced"}, {"class_weight": "balanced"}])
def test_a_resume_without_it_is_refused(tmp_path, options):
    weight = options.pop("class_weight", None)
    made = Trainer(max_epochs=1, run_dir=tmp_path / "run", enable_progress_bar=False)
    model = build_model("lenet", classes=4)
    made.fit(model, ArrayData(X, Y, batch_size=16, **options), class_weight=weight)
    more = Trainer(max_epochs=2, run_dir=tmp_path / "run", enable_progress_bar=False)
    with pytest.raises(UserError, match=r"(sampling balanced|class_weight \[.*\]); it is None now"):
        more.fit(model, ArrayData(X, Y, batch_size=16), ckpt_path="last")


def test_balanced_sampling_trains_on_each_class_equally_often(monkeypatch):
    seen, take = [], ResidentFeed.take

    def watched(self, count):
        chunk = take(self, count)
        seen.append(np.asarray(chunk.y)[:count].reshape(-1))
        return chunk

    assert np.bincount(Y).max() > np.bincount(Y).min() + 1
    monkeypatch.setattr(ResidentFeed, "take", watched)
    options = {"validation": 0.0, "batch_size": 24}
    balanced = trained(ArrayData(X, Y, sampling="balanced", **options))
    epoch = np.concatenate(seen)[-len(Y) :]  # behind what was compiled with
    assert np.bincount(epoch).tolist() == [30] * 4
    assert balanced != trained(ArrayData(X, Y, **options))


def test_what_cannot_be_balanced_is_told():
    with pytest.raises(UserError, match="sampling is 'balanced', for labels that are classes"):
        ArrayData(X, np.eye(4)[Y], batch_size=8, sampling="balanced").setup()
    with pytest.raises(UserError, match=r"sampling is 'some'.*all, balanced"):
        ArrayData(X, Y, sampling="some")
    with pytest.raises(UserError, match="would both balance the classes"):
        weighted(ArrayData(X, Y, batch_size=8, sampling="balanced"), "balanced")
