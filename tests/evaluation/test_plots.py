import errno
import math
import os

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fmnist_keras3.evaluation import figure, plots, sheets
from fmnist_keras3.evaluation.metrics import evaluate_logits
from fmnist_keras3.ground.errors import UserError

NAMES = ("T-shirt/top", "a $tra$nge _name_ that is far too long", "Bag")


def evaluation(n=60, noise=2.0, names=NAMES):
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(names), n)
    logits = 4 * np.eye(len(names))[y] + noise * rng.normal(size=(n, len(names)))
    return y, evaluate_logits(y, logits, names)


def record(event, step, **values):
    return {"event": event, "epoch": step, "step": step, "loss": 0.5, "lr": 1e-3} | values


def history(epochs, events=("train", "validation")):
    return [
        record(event, epoch, accuracy=1 - 0.5 / epoch, loss=1 / epoch)
        for epoch in range(1, epochs + 1)
        for event in events
    ]


def pixels(path):
    """Decode the whole file: a torn PNG raises."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures as they are saved, to ask them what they show."""
    figures = []
    save = plots.Figure.savefig

    def spy(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(plots.Figure, "savefig", spy)
    return figures


def texts(figure):
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in found if text.get_text()]


def lines(figure, label):
    return [
        [float(value) for value in line.get_ydata()]
        for part in figure.subfigs
        for axes in part.axes
        for line in axes.get_lines()
        if line.get_label() == label
    ]


@pytest.mark.parametrize(
    "records",
    [
        [*history(12), record("test", 12, accuracy=0.9)],
        [*history(1), record("test", 1, accuracy=0.9)],
        history(200),
        history(5, events=("train",)),
        history(5, events=("validation",)),
        [record("test", 3, accuracy=0.9)],
        [record("train", 1), record("validation", 1)],  # no accuracy: another kind of model
        [record("train", 1, loss=None, accuracy="n/a"), record("validation", 1, epoch=None)],
        [{"event": "note"}, {}],
        [],
    ],
    ids=[
        "usual", "one epoch", "long", "no validation", "no training", "only a test",
        "no accuracy", "no finite value", "other records", "none",
    ],
)  # fmt: skip
def test_curves_of_every_kind_of_history(tmp_path, records):
    path = plots.curves(records, tmp_path / "plots" / "curves.png", "a run named $x$ and $")
    assert pixels(path).shape[1] == 1500
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_curves_mark_best_epoch_and_test(tmp_path, drawn):
    records = [
        record("train", 1, accuracy=0.5, loss=1.0),
        record("train", 1, accuracy=0.6, loss=0.9),  # the epoch's last counts
        record("validation", 1, accuracy=0.7, loss=0.8),
        record("train", 2, accuracy=math.nan, loss=math.inf),
        record("validation", 2, accuracy=0.9, loss=0.7),
        record("train", 3, accuracy=np.float32(0.75), loss=0.5),
        record("validation", 3, accuracy=0.8, loss=0.6),
        record("test", 3, accuracy=0.85, loss=0.65),
    ]
    plots.curves(records, tmp_path / "curves.png", "run")
    (figure,) = drawn
    shown = texts(figure)
    assert "best epoch 2: 90.00 %" in shown
    assert "best epoch 2: 0.7000" in shown
    assert {"test 85.00 %", "test 0.6500", "3 epochs"} <= set(shown)
    accuracy, loss = lines(figure, "train")
    np.testing.assert_allclose(accuracy, [0.6, math.nan, 0.75])
    np.testing.assert_allclose(loss, [0.9, math.nan, 0.5])


def test_best_epoch_by_loss_where_no_accuracy_is(tmp_path, drawn):
    losses = {1: 0.5, 2: 0.3, 3: 0.4}
    records = [record("validation", epoch, loss=loss) for epoch, loss in losses.items()]
    plots.curves(records, tmp_path / "curves.png", "run")
    assert "best epoch 2: 0.3000" in texts(drawn[0])
    assert "Accuracy" not in texts(drawn[0])


def test_confusion_matrix_shows_counts_and_shares(tmp_path, drawn):
    logits = 9 * np.eye(2)[[0, 0, 0, 1]]
    result = evaluate_logits(np.zeros(4, int), logits, ["a", "b"])  # no example of b
    pixels(plots.confusion_matrix(result, tmp_path / "matrix.png", "Confusion"))
    assert {"3", "75 %", "1", "25 %"} <= set(texts(drawn[0]))


@pytest.mark.parametrize("classes", [2, 40])
def test_confusion_matrix_of_few_and_many_classes(tmp_path, classes):
    _, result = evaluation(200, names=[f"class {i}" for i in range(classes)])
    pixels(plots.confusion_matrix(result, tmp_path / "matrix.png", "Confusion"))


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mistakes_of_grey_and_colour_images(tmp_path, drawn, shape, dtype):
    y, result = evaluation()
    x = np.random.default_rng(0).integers(0, 256, (len(y), *shape)).astype(dtype)
    pixels(plots.mistakes(x, y, result, tmp_path / "mistakes.png", "Mistakes", n=8))
    wrong = np.flatnonzero(result.probabilities.argmax(axis=1) != y)
    confidence = np.sort(result.probabilities[wrong].max(axis=1))[::-1][:8]
    labels = [text for text in texts(drawn[0]) if text.startswith("→ ")]
    assert [float(text.split()[-2]) for text in labels] == pytest.approx(
        np.minimum(100 * confidence, 99.9), abs=0.06
    )
    images = drawn[0].findobj(matplotlib.image.AxesImage)
    assert len(images) == 8
    assert all(image.get_array().max() <= 1 for image in images)


def test_fewer_mistakes_than_cells_and_none(tmp_path, drawn):
    y = np.array([0, 1, 2, 0])
    x = np.zeros((4, 28, 28, 1), np.uint8)
    one = evaluate_logits(y, 9 * np.eye(3)[[0, 1, 2, 1]], NAMES)
    none = evaluate_logits(y, 9 * np.eye(3)[y], NAMES)
    pixels(plots.mistakes(x, y, one, tmp_path / "one.png", "Mistakes"))
    pixels(plots.mistakes(x, y, none, tmp_path / "none.png", "Mistakes"))
    assert "1 of 4 images are classified wrongly" in texts(drawn[0])
    assert len(drawn[0].findobj(matplotlib.image.AxesImage)) == 1
    assert "No mistake among 4 images." in texts(drawn[1])


def test_mistakes_of_other_examples_are_refused(tmp_path):
    y, result = evaluation()
    with pytest.raises(ValueError, match="59 images, 60 labels, 60 evaluated"):
        plots.mistakes(np.zeros((59, 28, 28)), y, result, tmp_path / "mistakes.png", "Mistakes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_images_lie_below_their_originals(tmp_path, channels):
    images = np.zeros((4, 10, 10, channels), np.uint8)
    marked = np.full((3, 4, 10, 10, channels), 200, np.uint8)
    path = sheets.augmentations(
        images, {"one": marked, "two": marked // 2}, tmp_path / "a.png", "t"
    )
    seen = pixels(path)[..., 0]
    rows = [np.flatnonzero((seen == grey).mean(1) > 0.3) for grey in (0, 200, 100)]
    assert rows[0].max() < rows[1].min() < rows[1].max() < rows[2].min()
    assert len(rows[1]) == len(rows[2]) == pytest.approx(3 * len(rows[0]), rel=0.05)


def test_calibration_states_its_error(tmp_path, drawn):
    _, result = evaluation()
    pixels(plots.calibration(result, tmp_path / "calibration.png", "Calibration"))
    error = f"expected calibration error {100 * result.calibration_error:.2f} %"
    assert any(text.startswith(error) for text in texts(drawn[0]))


def every_plot(folder, synthetic):
    y, result = evaluation()
    x = np.zeros((len(y), 28, 28, 1), np.uint8)
    return [
        plots.curves(history(3), folder / "curves.png", "t", synthetic),
        plots.confusion_matrix(result, folder / "confusion_matrix.png", "t", synthetic),
        plots.mistakes(x, y, result, folder / "mistakes.png", "t", synthetic=synthetic),
        plots.calibration(result, folder / "calibration.png", "t", synthetic),
    ]


def test_generated_data_is_announced_on_every_plot_and_only_there(tmp_path, drawn):
    amber = tuple(bytes.fromhex(figure.AMBER[1:]))
    for path in every_plot(tmp_path / "synthetic", True):
        assert tuple(pixels(path)[10, 10]) == amber
    for path in every_plot(tmp_path / "real", False):
        assert tuple(pixels(path)[10, 10]) == (255, 255, 255)
    assert [figure.SYNTHETIC in texts(made) for made in drawn] == [True] * 4 + [False] * 4


def test_same_input_same_bytes_whatever_the_callers_style(tmp_path):
    first = every_plot(tmp_path / "first", False)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        second = every_plot(tmp_path / "second", False)
        assert matplotlib.rcParams["font.size"] == 30
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = plots.curves(history(2), tmp_path / "curves.png", "old")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space"):
        plots.curves(history(3), path, "new")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
