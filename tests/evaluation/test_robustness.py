"""Spoiled images: each way does what it says, the same each time, and more with its strength."""

import json

import numpy as np
import pytest
from test_report import Page, make_run
from test_temperature import run  # noqa: F401 - a fixture

from fmnist_keras3 import load_model
from fmnist_keras3.cli import main
from fmnist_keras3.evaluation import report
from fmnist_keras3.evaluation.robustness import CORRUPTIONS, STRENGTHS, corrupted, measure

IMAGES = np.zeros((40, 28, 28, 1), np.uint8)
IMAGES[:, 6:20, 9:19] = 100


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_strength_spoils_more(name):
    made = [corrupted(IMAGES, name, strength) for strength in STRENGTHS]
    far = [np.abs(one.astype(int) - IMAGES).mean() for one in made]
    assert far[0] > 0
    assert far == sorted(set(far))
    assert made[2].dtype == np.uint8
    assert made[2].shape == IMAGES.shape
    assert np.array_equal(corrupted(IMAGES, name, 3), made[2])


def test_values_by_hand():
    image = np.array([[0, 40], [80, 200]], np.uint8).reshape(1, 2, 2, 1)
    assert corrupted(image, "contrast", 2).ravel().tolist() == [40, 60, 80, 140]  # mean 80
    assert corrupted(image, "brightness", 4).ravel().tolist() == [102, 142, 182, 255]
    moved = corrupted(IMAGES, "shift", 3)[..., 0]
    places = {tuple(np.argwhere(one == 100).min(axis=0)) for one in moved}
    assert places == {(3, 9), (9, 9), (6, 6), (6, 12)}
    noise = corrupted(np.full((50, 28, 28, 1), 128, np.uint8), "noise", 3) - 128.0
    assert noise.std() == pytest.approx(0.12 * 255, rel=0.02)
    blurred = corrupted(IMAGES, "blur", 5)[0, ..., 0].astype(int)
    assert blurred.sum() == pytest.approx(IMAGES[0].sum(), rel=0.01)
    assert blurred[13, 9] == pytest.approx(60, abs=2)  # half, and half of a pixel more
    turned = corrupted(IMAGES, "rotation", 5)
    one, other = {image.tobytes(): image for image in turned}.values()
    assert np.array_equal(one, other[:, ::-1])  # of a shape that is its own mirror image


def test_each_cell_is_an_accuracy():
    labels = np.arange(40) % 2

    def predict(images):  # right where nothing was brightened
        right = images.mean() < 50
        return np.eye(2)[labels if right else 1 - labels]

    found = measure(predict, IMAGES, labels)
    assert set(found) == set(CORRUPTIONS)
    assert found["brightness"] == [1.0 if 18 + 25.5 * s < 50 else 0.0 for s in STRENGTHS]
    assert found["shift"] == [1.0] * 5


def test_the_command_stores_it_with_the_run(run, tiny_data, capsys):  # noqa: F811
    assert main(["evaluate", str(run), "--robustness"]) == 0
    out = capsys.readouterr().out
    assert "accuracy on spoiled images, by strength" in out
    found = json.loads((run / "robustness.json").read_text())
    x, y = (array[120:] for array in tiny_data)
    model = load_model(run)
    logits = model.predict(corrupted(x, "noise", 4).astype(np.float32), verbose=0)
    assert found["noise"][3] == pytest.approx(np.mean(logits.argmax(1) == y))
    assert f"{100 * found['noise'][3]:.2f} %" in out


def test_the_report_shows_it(tmp_path):
    folder = make_run(tmp_path / "a")
    found = {name: [0.9, 0.8, 0.7, 0.6, 0.5] for name in CORRUPTIONS}
    (folder / "robustness.json").write_text(json.dumps(found))
    page = Page(report.build(folder))
    assert "Accuracy on spoiled images" in page.text
    assert "rotation, strength 5: 50 %" in page.html
    for broken in ("{}", '{"noise": 3}', '{"noise": ["a"]}', "[]"):
        (folder / "robustness.json").write_text(broken)
        assert "robustness.json is damaged" in Page(report.build(folder)).text
