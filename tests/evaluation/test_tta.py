"""Test-time augmentation: its views, their mean, and what a run and the command line say of it."""

import json

import keras
import numpy as np
import pytest

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.cli import main
from fmnist_keras3.training.tta import TTA, parse_tta

N = 50


def make_model(loss=None):
    """A linear classifier with a penalty; mirrored images mean something else to it."""
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
    model = keras.Model(inputs, dense(x))
    dense.kernel.assign(np.random.default_rng(0).normal(size=(36, 3)))
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (N, 6, 6, 1), dtype=np.uint8), rng.integers(0, 3, N)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(enable_progress_bar=False)


def slow_views(x, mirror, shift):
    """Written out with padding; in airbench's weights."""
    padded = np.pad(x, [(0, 0), (shift, shift), (shift, shift), (0, 0)])
    size, p = x.shape[1], shift
    moved = [(0.5, x), (0.25, padded[:, 2 * p :, 2 * p :]), (0.25, padded[:, :size, :size])]
    found = []
    for share, view in moved if shift else [(1, x)]:
        found += [(share / 2, view), (share / 2, view[:, :, ::-1])] if mirror else [(share, view)]
    return found


@pytest.mark.parametrize(
    ("text", "mirror", "shift"),
    [("mirror", True, 0), ("shift", False, 1), ("shift:2,mirror", True, 2), ("shift:6", False, 6)],
)
def test_the_mean_of_the_logits_over_the_views(trainer, examples, text, mirror, shift):
    model, x = make_model(), examples[0]
    expected = slow_views(x, mirror, shift)
    found = list(parse_tta(text).views(x))
    assert sum(share for share, _ in found) == 1
    np.testing.assert_array_equal(found[0][1], x)
    for (share, view), (share2, view2) in zip(found, expected, strict=True):
        assert share == share2
        np.testing.assert_array_equal(view, view2)
    mean = sum(share * np.asarray(model(view.astype(np.float32))) for share, view in expected)
    plain = trainer.predict(model, x)
    np.testing.assert_allclose(trainer.predict(model, x, tta=text), mean, atol=1e-5)
    assert np.abs(mean - plain).max() > 0.1


def test_the_scores_come_beside_the_plain_ones(trainer, examples):
    model, (x, y) = make_model(), examples
    data = ArrayData(x, y, test=(x, y), batch_size=16)
    plain, outputs = trainer.test_outputs(model, data)
    logs, same = trainer.test_outputs(model, data, tta="mirror,shift:1")
    assert logs == {**logs, **plain}
    assert set(logs) - set(plain) == {"loss_tta", "accuracy_tta"}
    np.testing.assert_array_equal(outputs, same)
    mean = trainer.predict(model, x, tta="mirror,shift:1")
    p = np.exp(mean - mean.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert logs["loss_tta"] == pytest.approx(-np.log(p[np.arange(N), y]).mean(), rel=1e-5)
    assert logs["accuracy_tta"] == pytest.approx((mean.argmax(1) == y).mean())
    assert logs["loss_tta"] != pytest.approx(logs["loss"], rel=1e-3)
    held_out = ArrayData(x, y, validation=(x, y), batch_size=16)
    assert trainer.validate(model, held_out, tta="mirror,shift:1") == logs


def test_none():
    assert parse_tta(None) is None
    assert parse_tta("none") is None
    assert parse_tta("shift:3") == TTA(shift=3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("miror", ["'miror'", "Did you mean 'mirror'?", "--tta mirror,shift:1"]),
        (",", ["none, or a list"]),
        ("mirror,mirror", ["'mirror' twice"]),
        ("mirror:1", ["mirror takes no value"]),
        ("shift:0", ["'shift:0'", "1 to 8"]),
        ("shift:-1", ["'shift:-1'", "1 to 8"]),
        ("shift:9", ["'shift:9'", "1 to 8"]),
    ],
)
def test_refused(text, parts):
    with pytest.raises(UserError) as refusal:
        parse_tta(text)
    for part in parts:
        assert part in str(refusal.value)


def test_what_has_no_views_is_told(trainer, examples):
    x, y = examples
    flat = keras.Sequential([keras.Input((36,)), keras.layers.Dense(3)])
    flat.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(UserError, match=r"tta is for images \[N, H, W, C\]"):
        trainer.predict(flat, x.reshape(N, 36), tta="mirror")
    summed = make_model(keras.losses.SparseCategoricalCrossentropy(True, reduction="sum"))
    with pytest.raises(UserError, match="a loss that is the mean"):
        trainer.test(summed, (x, y), tta="mirror")


def test_a_run_and_evaluate_say_the_same(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--model", "lenet", "--data", "synthetic", "--epochs", "1", "--tta", "mirror"]
    words += ["--augment", "altflip,mixup", "--limit_train_batches", "3", "--run_dir", str(run)]
    assert main(words) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_accuracy_tta"] != summary["test_accuracy"]
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    names = ("accuracy", "loss", "accuracy_tta", "loss_tta")
    assert [record[name] for name in names] == [summary[f"test_{name}"] for name in names]
    text = capsys.readouterr().out
    assert f"{summary['test_accuracy_tta']:.4f}" in text
    assert f"{summary['test_loss_tta']:.4f}" in text
    assert main(["evaluate", str(run), "--tta", "mirror"]) == 0
    plain, mean = capsys.readouterr().out.strip().splitlines()[-2:]
    for line, kind in ((plain, ""), (mean, "_tta")):
        assert f"accuracy {summary[f'test_accuracy{kind}']:.4f}" in line
        assert f"loss {summary[f'test_loss{kind}']:.4f}" in line
    assert "test-time augmentation mirror" in mean


def test_a_run_without_a_test_is_measured_on_the_validation_split(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--model", "lenet", "--data", "synthetic", "--epochs", "1", "--tta", "mirror"]
    words += ["--limit_train_batches", "3", "--limit_test_batches", "0"]
    assert main([*words, "--run_dir", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert not [name for name in summary if name.startswith("test")]
    assert not (run / "evaluation.json").exists()
    assert (run / "report.html").exists()
    capsys.readouterr()
    assert main(["evaluate", str(run), "--split", "validation", "--tta", "mirror"]) == 0
    found = f"accuracy {summary['validation_accuracy_tta']:.4f}"
    assert found in capsys.readouterr().out.strip().splitlines()[-1]
    assert main([*words, "--validation", "0", "--run_dir", str(tmp_path / "b")]) == 2
    assert "tta does nothing without test and validation" in capsys.readouterr().err
    message = "limit_test_batches is 0, which means no test"
    x, y = np.zeros((4, 6, 6, 1), np.uint8), np.zeros(4, int)
    with pytest.raises(UserError, match=message):
        Trainer(limit_test_batches=0, enable_progress_bar=False).test(make_model(), (x, y))
