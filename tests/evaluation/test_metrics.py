import io
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fmnist_keras3.evaluation.metrics import as_logits, evaluate_logits, per_class_table
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError

NAMES = ("cat", "dog", "frog")


def random_case(n=500, k=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return y, rng.normal(size=(n, k)) + 2 * np.eye(k)[y]


def test_probabilities_are_scored_as_their_logits_are():
    y, logits = random_case()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for outputs in (probabilities, probabilities.astype(np.float16)):  # sums are about 1
        scored = evaluate_logits(y, as_logits(outputs), NAMES)
        assert scored.loss == pytest.approx(evaluate_logits(y, logits, NAMES).loss, rel=1e-2)
    assert np.array_equal(as_logits(logits), logits)
    assert np.isfinite(as_logits(np.eye(3))).all()


def test_values_computed_by_hand():
    # Probabilities 3/4 and 1/4: right, right, wrong.
    logits = np.log([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]])
    evaluation = evaluate_logits(np.array([0, 1, 1]), logits, ["a", "b"])
    assert evaluation.accuracy == pytest.approx(2 / 3)
    assert evaluation.loss == pytest.approx(-(2 * np.log(3 / 4) + np.log(1 / 4)) / 3)
    assert evaluation.confusion.tolist() == [[1, 0], [1, 1]]
    assert evaluation.calibration_error == pytest.approx(3 / 4 - 2 / 3)
    np.testing.assert_allclose(evaluation.probabilities[0], [0.75, 0.25])
    first, second = evaluation.per_class
    assert (first.precision, first.recall, first.support) == (0.5, 1.0, 1)
    assert (second.precision, second.recall, second.support) == (1.0, 0.5, 2)
    assert second.f1 == pytest.approx(2 / 3)


def test_agrees_with_scikit_learn():
    from sklearn.metrics import classification_report, confusion_matrix, log_loss

    y, logits = random_case()
    evaluation = evaluate_logits(y, logits.astype(np.float32), NAMES)
    predicted = logits.argmax(axis=1)
    report = classification_report(y, predicted, target_names=NAMES, output_dict=True)
    for score in (*evaluation.per_class, evaluation.macro):
        expected = report[score.name.replace("average", "avg")]
        assert score.precision == pytest.approx(expected["precision"])
        assert score.recall == pytest.approx(expected["recall"])
        assert score.f1 == pytest.approx(expected["f1-score"])
        assert score.support == expected["support"]
    assert (evaluation.confusion == confusion_matrix(y, predicted)).all()
    assert evaluation.accuracy == report["accuracy"]
    assert evaluation.loss == pytest.approx(log_loss(y, evaluation.probabilities), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float32, (9, 3), elements=st.floats(-1e4, 1e4, width=32)),
    arrays.arrays(np.int32, 9, elements=st.integers(0, 2)),
)
def test_laws(logits, y):
    evaluation = evaluate_logits(y, logits, NAMES)
    assert evaluation.confusion.sum() == evaluation.calibration.count.sum() == 9
    assert np.trace(evaluation.confusion) == round(9 * evaluation.accuracy)
    assert 0 <= evaluation.calibration_error <= 1
    assert np.isfinite(evaluation.loss)
    assert evaluation.loss >= 0
    np.testing.assert_allclose(evaluation.probabilities.sum(axis=1), 1)


def test_huge_logits_neither_overflow_nor_lose_the_loss():
    evaluation = evaluate_logits(np.array([1]), np.array([[1e4, 0.0]]), ["a", "b"])
    assert evaluation.loss == 1e4


def test_calibrated_and_overconfident_models():
    y = np.array([0, 0, 0, 1])  # right in three of four
    calibrated = evaluate_logits(y, np.log([[0.75, 0.25]] * 4), ["a", "b"])
    overconfident = evaluate_logits(y, np.array([[50.0, 0.0]] * 4), ["a", "b"])
    assert calibrated.calibration_error == pytest.approx(0)
    assert overconfident.calibration_error == pytest.approx(0.25)
    assert overconfident.calibration.count.tolist() == [0] * 14 + [4]


def test_class_missing_from_labels_and_predictions():
    logits = np.array([[9.0, 0, 0], [0, 9, 0]])
    evaluation = evaluate_logits(np.array([0, 1]), logits, NAMES)
    frog = evaluation.per_class[2]
    assert (frog.precision, frog.recall, frog.f1, frog.support) == (0, 0, 0, 0)
    assert evaluation.macro.f1 == pytest.approx(2 / 3)
    assert evaluation.confusion.shape == (3, 3)


def test_to_dict_is_plain_json_and_keeps_the_figures():
    evaluation = evaluate_logits(*random_case(), NAMES)
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["accuracy"] == evaluation.accuracy
    assert loaded["confusion"] == evaluation.confusion.tolist()
    assert loaded["per_class"][1]["name"] == "dog"
    assert loaded["macro"]["support"] == loaded["examples"] == 500
    assert len(loaded["calibration"]["count"]) == 15


@pytest.mark.parametrize(
    ("y", "logits"),
    [
        (np.zeros(0, int), np.zeros((0, 3))),
        (np.zeros(2, int), np.zeros((3, 3))),
        (np.zeros(2, int), np.zeros((2, 4))),
        (np.zeros((2, 1), int), np.zeros((2, 3))),
        (np.array([0, 3]), np.zeros((2, 3))),
        (np.array([0, -1]), np.zeros((2, 3))),
        (np.array([0.0, 1.0]), np.zeros((2, 3))),
    ],
)
def test_inputs_that_do_not_fit(y, logits):
    with pytest.raises(ValueError, match="expected"):
        evaluate_logits(y, logits, NAMES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_model_is_named(value):
    logits = np.zeros((4, 3))
    logits[2, 1] = value
    with pytest.raises(UserError, match=r"1 of 4 images \(the first is number 2\).*diverged"):
        evaluate_logits(np.zeros(4, int), logits, NAMES)


def test_table_names_the_commonest_mistake_and_takes_no_markup():
    logits = 9 * np.eye(3)[[0, 0, 1, 1, 2]]
    evaluation = evaluate_logits(np.array([0, 0, 1, 2, 2]), logits, ["cat", "[red]dog", "frog"])
    output = io.StringIO()
    screen.console(file=output, width=100).print(per_class_table(evaluation))
    lines = output.getvalue().splitlines()
    assert any("frog" in line and "[red]dog (50.0 %)" in line for line in lines)
    assert any("macro average" in line for line in lines)
    assert "accuracy 80.00 %" in output.getvalue()


def test_import_is_light():
    code = (
        "import sys, fmnist_keras3.evaluation.metrics, fmnist_keras3.evaluation.report;"
        "heavy = {'sklearn', 'matplotlib', 'rich', 'jinja2', 'keras', 'jax', 'tensorflow'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
