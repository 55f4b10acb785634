"""Labels that may be wrong: by hand, as cleanlab finds them, in the run and in the report."""

import csv
import json

import numpy as np
import pytest
from test_report import Page, make_run

from fmnist_keras3.evaluation import label_errors, report
from fmnist_keras3.evaluation.metrics import evaluate_logits
from fmnist_keras3.evaluation.mistakes import SUREST, pictures


def probabilities(rng, labels, classes, skill=2.0):
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True)


def test_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    zero = np.array([0.9, 0.8, 0.1, 0.3, 0.85, 0.45])  # the probability of class 0
    shares = np.stack([zero, 1 - zero], axis=1)
    # On average 0.6 over those labelled 0; of class 1, (0.7 + 0.15 + 0.55) / 3 = 0.467.
    numbers, likely = label_errors.find(labels, shares)
    assert numbers.tolist() == [2, 4]  # 0.1 of the label, before 0.15
    assert likely.tolist() == [1, 0]


def test_what_the_model_is_sure_of_in_no_class_is_not_reported():
    labels = np.array([0, 0, 1, 1])
    shares = np.array([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9], [0.1, 0.9]])
    assert label_errors.find(labels, shares).numbers.tolist() == []  # 0.55 is less than 0.9


def test_a_class_without_examples_is_never_likely():
    labels = np.array([0, 0, 2, 2])
    shares = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0, 0.1, 0.9], [0.9, 0, 0.1]])
    assert label_errors.find(labels, shares).likely.tolist() == [0]


def test_labels_that_were_turned_are_found():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 2000)
    shares = probabilities(rng, true, 5, 6.0)
    given = true.copy()
    turned = rng.choice(2000, 100, replace=False)
    given[turned] = (given[turned] + rng.integers(1, 5, 100)) % 5
    numbers, likely = label_errors.find(given, shares)
    right = np.isin(numbers, turned)
    assert right.sum() > 85
    assert right[:60].all()
    assert (likely[right] == true[numbers[right]]).mean() > 0.95


@pytest.mark.parametrize("skill", [0.5, 2.0, 4.0])
def test_as_cleanlab(skill):
    filters = pytest.importorskip("cleanlab.filter")
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 3000)
    shares = probabilities(rng, labels, 7, skill)
    expected = filters.find_label_issues(
        labels,
        shares,
        filter_by="confident_learning",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    assert label_errors.find(labels, shares).numbers.tolist() == expected.tolist()


def test_the_table(tmp_path):
    labels, shares = np.array([0, 1]), np.array([[0.25, 0.75], [0.5, 0.5]])
    found = label_errors.LabelErrors(np.array([0]), np.array([1]))
    label_errors.write_csv(tmp_path / "e.csv", found, labels, shares, ("T-shirt, top", "Coat"))
    rows = list(csv.reader((tmp_path / "e.csv").read_text().splitlines()))
    assert rows == [
        list(label_errors.COLUMNS),
        ["0", "T-shirt, top", "Coat", "0.250000", "0.750000"],
    ]


def with_errors(folder, count=40):
    """A run whose report shows doubtful labels, and other mistakes."""
    make_run(folder)
    rng = np.random.default_rng(1)
    y = np.arange(400) % 3
    logits = 6 * np.eye(3)[y]
    wrong = rng.choice(400, count, replace=False)
    logits[wrong] = 6 * np.eye(3)[(y[wrong] + 1) % 3]
    result = evaluate_logits(y, logits, ["Coat", "Bag", "Dress"])
    found = label_errors.find(y, result.probabilities)
    images = rng.integers(0, 256, (400, 28, 28, 1), np.uint8)
    shown = pictures(images, y, result, found)
    (folder / "evaluation.json").write_text(json.dumps(result.to_dict() | shown))
    return folder, found


def test_the_gallery(tmp_path):
    folder, found = with_errors(tmp_path / "run")
    assert len(found.numbers) == 40
    page = Page(report.build(folder))
    assert "Labels that may be wrong 40 of 400 test labels may be wrong" in page.text
    assert "All are listed in label_errors.csv." in page.text
    for number in found.numbers[:SUREST]:
        assert f"no. {number} " in page.text
    assert f"no. {found.numbers[SUREST]} " not in page.text
    # What is shown as a doubtful label is not shown again as a mistake.
    evaluation = json.loads((folder / "evaluation.json").read_text())
    numbers = [{one["number"] for one in evaluation[name]} for name in ("doubtful", "mistakes")]
    assert not numbers[0] & numbers[1]
    assert len(numbers[1]) == 40 - SUREST
    assert "Most confident other mistakes" in page.text


def test_without_doubtful_labels_there_is_no_gallery(tmp_path):
    folder, _ = with_errors(tmp_path / "run", 0)
    text = Page(report.build(folder)).text
    assert "may be wrong" not in text
