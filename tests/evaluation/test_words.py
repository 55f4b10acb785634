"""What is said of curves, and of two models, follows from their numbers."""

import json

import numpy as np
import pytest
from test_report import Page, make_run

from fmnist_keras3.evaluation import report
from fmnist_keras3.evaluation.paired import MINUS, paired, sentence
from fmnist_keras3.evaluation.results import read_predictions, write_predictions
from fmnist_keras3.evaluation.words import findings


def records(**curves):
    """Records of epochs 1, 2, ...: ``val_acc``, ``val_loss``, ``acc``, ``loss``."""
    made = {}
    for name, values in curves.items():
        event = "validation" if name.startswith("val_") else "train"
        key = {"acc": "accuracy", "loss": "loss"}[name.removeprefix("val_")]
        for epoch, value in enumerate(values, 1):
            made.setdefault((event, epoch), {"event": event, "epoch": epoch})[key] = value
    return list(made.values())


def said(**curves):
    return " ".join(findings(records(**curves)))


def test_a_training_that_over_fits():
    text = said(
        val_acc=[0.8, 0.88, 0.9, 0.919, 0.92, 0.92, 0.9195, 0.92],
        val_loss=[0.5, 0.4, 0.3, 0.25, 0.26, 0.27, 0.28, 0.3],
        acc=[0.7, 0.8, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96],
        loss=[0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1],
    )
    assert "best validation accuracy, 92.00 %, came in epoch 5 of 8" in text
    assert "levels off in epoch 4: the 4 epochs after it add 0.10 points" in text
    assert "Over-fitting, clear: the validation loss is lowest in epoch 4 (0.2500)" in text
    assert "20 % higher at the end (0.3000)" in text
    assert "training loss fell from 0.3000 to 0.1000" in text
    assert "training accuracy, 96.00 %, is 4.00 points above" in text


@pytest.mark.parametrize(
    ("end", "degree"), [(0.254, None), (0.26, "mild"), (0.3, "clear"), (0.5, "strong")]
)
def test_how_much_it_over_fits(end, degree):
    text = said(val_loss=[0.4, 0.25, end], loss=[0.5, 0.4, 0.3])
    assert (f"Over-fitting, {degree}" in text) == (degree is not None)
    assert ("No over-fitting" in text) == (degree is None)


def test_a_loss_that_rises_in_training_too_is_no_over_fitting():
    text = said(val_loss=[0.4, 0.25, 0.5], loss=[0.5, 0.2, 0.6])
    assert "ver-fitting" not in text
    assert "training loss has not fallen meanwhile" in text


def test_a_training_that_was_too_short():
    text = said(val_acc=[0.5, 0.6, 0.7, 0.8], acc=[0.4, 0.5, 0.6, 0.7], val_loss=[4, 3, 2, 1])
    assert "has not levelled off: the last epoch still added 10.00 points" in text
    assert "10.00 points below the validation accuracy" in text
    assert "ends at its lowest, 1.0000" in text


def test_uncertainty_goes_by_the_images():
    made = findings(records(val_acc=[0.8, 0.9, 0.9]), 6000)
    assert any("6,000 validation images" in one and "0.76 points" in one for one in made)


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ({}, ""),
        ({"acc": [0.5, 0.6, 0.7]}, ""),
        ({"val_acc": [0.5, 0.6]}, "2 validated epochs are too few to read a curve."),
        ({"val_acc": [None, float("nan"), 0.5]}, "1 validated epochs are too few"),
    ],
)
def test_of_what_is_not_there_nothing_is_said(curves, expected):
    assert said(**curves).startswith(expected)
    assert bool(said(**curves)) == bool(expected)


def two(won, lost, both=60, neither=20):
    labels = np.zeros(won + lost + both + neither, int)
    first, second = np.ones_like(labels), np.ones_like(labels)
    second[:won] = 0
    first[won : won + lost] = 0
    first[won + lost : won + lost + both] = second[won + lost : won + lost + both] = 0
    return labels, first, second


@pytest.mark.parametrize(("won", "lost"), [(12, 3), (10, 10), (0, 7), (5, 4)])
def test_interval_and_p_are_those_of_scipy(won, lost):
    from scipy import stats

    labels, first, second = two(won, lost)
    found = paired(labels, first, second)
    gains = (second == labels).astype(float) - (first == labels)
    assert found.difference == pytest.approx(gains.mean())
    theirs = stats.bootstrap(
        (gains,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # Of a sum of whole numbers the quantiles are steps of 1 / N.
    assert abs(found.low - theirs.low) <= 1.01 / len(labels)
    assert abs(found.high - theirs.high) <= 1.01 / len(labels)
    assert found.p == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert (found.second_only, found.first_only, found.differing) == (won, lost, won + lost)


def test_what_is_said_of_two_models():
    better = sentence("A", "B", paired(*two(30, 3)))
    assert better.startswith("B is better than A by 23.89 points (95 % interval 15.04 to 32.74")
    assert "p < 0.0001" in better
    assert "B alone is right on 30, A alone on 3; 33 get different labels." in better
    worse = sentence("A", "B", paired(*two(3, 30)))
    assert worse.startswith("A is better than B by 23.89 points (95 % interval 15.04 to 32.74")
    assert "B alone is right on 3, A alone on 30" in worse
    assert "B is right more often than A by 1.12 points, which may be chance" in sentence(
        "A", "B", paired(*two(5, 4))
    )
    assert f"are equally often right (95 % interval {MINUS}" in sentence(
        "A", "B", paired(*two(4, 4))
    )
    same = sentence("A", "B", paired(*two(0, 0)))
    assert same == "B and A give each of the 80 test images the same label."


def run_of(folder, labels, predicted, accuracy=None):
    right = float(np.mean(labels == predicted))
    make_run(folder, test_accuracy=right if accuracy is None else accuracy)
    write_predictions(folder, labels, 9.0 * np.eye(3)[predicted])
    return folder


def test_a_comparison_says_which_is_better(tmp_path):
    labels, first, second = two(30, 3)
    runs = [run_of(tmp_path / "a", labels, first), run_of(tmp_path / "b", labels, second)]
    runs.append(run_of(tmp_path / "c", labels[::-1] + 1, second))
    runs.append(run_of(tmp_path / "d", labels, second, accuracy=0.1))
    runs.append(run_of(tmp_path / "e", labels, second))
    (runs[-1] / "predictions.npz").write_bytes(b"PK broken")
    text = Page(report.build(runs)).text
    assert "b is better than a by 23.89 points" in text
    assert "c was tested on other images than a." in text
    assert "d cannot be compared by image: predictions.npz is of another test" in text
    assert "e cannot be compared by image: predictions.npz is damaged" in text
    assert "another seed trains another model" in text


def test_predictions_come_back(tmp_path):
    labels, logits = np.arange(4) % 2, np.arange(8, dtype=np.float32).reshape(4, 2)
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, labels, logits)
    found = read_predictions(tmp_path)
    assert np.array_equal(found[0], labels)
    assert np.array_equal(found[1], logits)


def test_likely_confusions_have_examples_in_both_directions(tmp_path):
    folder = make_run(tmp_path / "a")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert {(one["true"], one["predicted"]) for one in evaluation["confused"]} == {(0, 1), (1, 2)}
    assert [one["probability"] for one in evaluation["mistakes"]] == sorted(
        (one["probability"] for one in evaluation["mistakes"]), reverse=True
    )
