"""`Predictor` and `fmnist predict`: batches, models of all shapes, outputs, and broken pictures."""

import csv
import io
import json

import keras
import numpy as np
import odd_files
import pytest
from PIL import Image

from fmnist_keras3 import Predictor, UserError, load_run
from fmnist_keras3.cli import main
from fmnist_keras3.data.dataset import FASHION_CLASSES
from fmnist_keras3.ground import screen
from fmnist_keras3.inference import predictor as module
from fmnist_keras3.inference.predictor import Unreadable


def rows(classes=10, shape=(28, 28, 1), scaled=True, activation=None):
    """A classifier by which rows of the image are bright, without training."""
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 255)(inputs) if scaled else inputs
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(classes, activation=activation, kernel_initializer="zeros")(x)
    model = keras.Model(inputs, x)
    kernel = np.zeros((int(np.prod(shape)), classes), np.float32)
    each = len(kernel) // classes
    for k in range(classes):
        kernel[k * each : (k + 1) * each, k] = 30 * classes / len(kernel)
    model.layers[-1].set_weights([kernel, np.zeros(classes, np.float32)])
    return model


def bar(k, classes=10, side=280):
    """A picture of the data set's kind that `rows` takes for class ``k``, uint8 ``[28, 28]``."""
    image = np.zeros((28, 28), np.uint8)
    image[1 + k * 26 // classes : 2 + (k + 1) * 26 // classes, 1:27] = 255
    return image


@pytest.fixture(scope="module")
def model():
    return rows()


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """What a training leaves, as far as predict looks at it."""
    folder = tmp_path_factory.mktemp("runs") / "a[b]"
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "summary.json").write_text(json.dumps({"dataset": {"classes": FASHION_CLASSES}}))
    (folder / "evaluation.json").write_text(json.dumps({"energy_95_percent": -4.0}))
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(5):
        Image.fromarray(bar(2 * k)).save(folder / f"{k}.png")
    return folder


def test_the_top_three_with_probabilities(run):
    (found,) = Predictor(run)(bar(4))
    logits = load_run(run).model.predict(bar(4)[None, ..., None], verbose=0)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-expected)[:3]
    assert [name for name, _ in found.top] == [FASHION_CLASSES[k] for k in order]
    assert [share for _, share in found.top] == pytest.approx(expected[order].tolist(), rel=1e-5)
    assert (found.label, found.probability) == found.top[0]
    assert np.array_equal(found.image, bar(4))


def test_what_is_given_in_python(run, model, photos, tmp_path):
    predictor = Predictor(load_run(run))
    arrays = np.stack([bar(k) for k in range(3)])
    names = list(FASHION_CLASSES[:3])
    for given in (list(arrays), arrays[..., None], map(Image.fromarray, arrays), iter(arrays)):
        assert [p.label for p in predictor(given)] == names
    assert [p.label for p in predictor(photos)] == list(FASHION_CLASSES[::2])
    assert [p.file for p in predictor([f"{photos}/[13].png"])] == [
        f"{photos}/{n}.png" for n in (1, 3)
    ]
    assert [p.label for p in Predictor(run / "model.keras")(arrays[0])] == names[:1]
    assert [p.label for p in Predictor(model)(arrays[1])] == ["1"]
    model.save(tmp_path / "alone.keras")
    assert [p.label for p in Predictor(tmp_path / "alone.keras")(arrays[2])] == ["2"]


def test_batches_keep_the_order_and_need_two_programs(model, monkeypatch):
    sizes = set()
    predict = model.predict_on_batch
    monkeypatch.setattr(module, "BATCH", 4)
    predictor = Predictor(model)
    monkeypatch.setattr(model, "predict_on_batch", lambda x: sizes.add(len(x)) or predict(x))
    order = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    assert [p.label for p in predictor([bar(k) for k in order])] == [str(k) for k in order]
    assert predictor(bar(7))[0].label == "7"
    assert sizes == {1, 4}


def test_pictures_are_read_as_they_are_asked_for(model, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    read = []

    def images():
        for k in range(1000):
            read.append(k)
            yield bar(k % 10)

    results = Predictor(model).stream(images())
    assert next(results).label == "0"
    assert len(read) == 4


def test_broken_pictures_are_named_and_the_others_go_on(model, photos):
    (photos / "2b.png").write_text("no")
    predictor = Predictor(model)
    files = sorted(map(str, photos.iterdir()))
    found = list(predictor.stream(files))
    assert [isinstance(one, Unreadable) for one in found] == [False] * 3 + [True] + [False] * 2
    assert [one.file for one in found] == files
    with pytest.raises(UserError, match=r"2b\.png: it is no picture"):
        predictor(photos)
    with pytest.raises(UserError, match=r"image 1: ndarray of shape \[7\]"):
        predictor([bar(1), np.zeros(7)])


@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ((28, 28), None),
        ((28, 28, 1), "softmax"),
        ((32, 48, 1), None),
        ((64, 64, 3), None),
        ((None, None, 1), None),
    ],
)
def test_models_of_other_sizes_and_channels(shape, activation):
    if None in shape:
        inputs = keras.Input(shape)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
        net = keras.Model(inputs, keras.layers.Dense(5)(x))
    else:
        net = rows(5, shape, activation=activation)
    predictor = Predictor(net)
    found = predictor([np.full((50, 40, 3), 200, np.uint8), odd_files.scene()])
    side = tuple(n or 28 for n in shape[:2])
    assert found[0].image.shape == (*side, 3) if shape[-1] == 3 else side
    assert sum(share for _, share in found[0].top) <= 1 + 1e-6
    assert set(dict(found[1].top)) <= set("01234")


def test_a_softmax_is_taken_for_probabilities(model):
    one = Predictor(rows(activation="softmax"))(bar(6))[0]
    assert one.label == "6"
    assert one.probability == pytest.approx(Predictor(model)(bar(6))[0].probability, rel=1e-4)


def test_a_model_that_was_trained_on_pixels_divided_by_255():
    plain = rows(scaled=False)
    assert Predictor(plain).scale_unknown
    assert not Predictor(rows()).scale_unknown
    found = Predictor(plain, scale=1)(bar(3))[0]
    assert found.probability == pytest.approx(Predictor(rows())(bar(3))[0].probability, rel=1e-5)


def test_a_colour_model_of_garments_gets_grey_garments(tmp_path):
    net = rows(10, (28, 28, 3))
    net.save(tmp_path / "model.keras")
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "summary.json").write_text(json.dumps({"dataset": {"classes": FASHION_CLASSES}}))
    assert np.array_equal(Predictor(tmp_path)(bar(3))[0].image, bar(3))
    assert Predictor(tmp_path)(bar(3))[0].label == FASHION_CLASSES[3]


def test_models_that_predict_nothing_here_are_refused(tmp_path):
    two = keras.Model([a := keras.Input((4,)), b := keras.Input((4,))], keras.layers.add([a, b]))
    for net, said in (
        (two, "input of shape"),
        (keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)]), "784"),
        (keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)]), "row of logits"),
        (rows(1), "or more"),
        (42, "takes input"),
    ):
        with pytest.raises(UserError, match=said):
            Predictor(net)
    with pytest.raises(UserError, match="does not exist"):
        Predictor(tmp_path / "none")
    with pytest.raises(UserError, match="no run directory"):
        Predictor(tmp_path)
    with pytest.raises(UserError, match=r"invert is 'yess'.*auto, yes, no"):
        Predictor(rows(), invert="yess")
    with pytest.raises(UserError, match="scale is '2'"):
        Predictor(rows(), scale=2)


def test_a_model_that_has_diverged_says_so():
    net = rows()
    net.layers[-1].set_weights([w * np.nan for w in net.layers[-1].get_weights()])
    with pytest.raises(UserError, match="diverged"):
        Predictor(net)(bar(1))


def test_an_unusual_picture_gets_a_note(run):
    usual, odd = Predictor(run)([bar(4), np.zeros((28, 28), np.uint8)])
    assert (usual.unusual, odd.unusual) == (False, True)
    assert "note" not in usual.to_dict()
    assert odd.to_dict()["note"] == "unusual picture"


def test_json(run, photos, capsys):
    assert main(["predict", str(run), str(photos), "--output", "json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == ""
    assert [one["file"] for one in found] == [f"{photos}/{k}.png" for k in range(5)]
    for k, one in enumerate(found):
        assert set(one) == {"file", "class", "probability", "top"}
        assert one["class"] == FASHION_CLASSES[2 * k]
        assert one["top"][0] == {key: one[key] for key in ("class", "probability")}
        assert len(one["top"]) == 3


def test_csv_and_table(run, photos, capsys):
    assert main(["predict", str(run), str(photos), "--output", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["class_1"] for line in lines] == list(FASHION_CLASSES[::2])
    assert 0.5 < float(lines[0]["probability_1"]) <= 1
    assert main(["predict", str(run), str(photos)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FASHION_CLASSES[::2])


def test_a_bar_on_the_terminal_takes_no_row_from_a_file(run, photos, capsys, monkeypatch):
    plain = screen.console
    monkeypatch.setattr(screen, "console", lambda **how: plain(**how, force_terminal=True))
    assert main(["predict", str(run), *[str(photos)] * 3, "--output", "csv"]) == 0
    printed = capsys.readouterr()
    assert len(list(csv.DictReader(io.StringIO(printed.out)))) == 15
    assert "15/15" in printed.err


def test_the_sheet(run, photos, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), str(photos), "--show"]) == 0
    with Image.open("predictions.png") as sheet:
        assert sheet.width > 1000
        assert len(set(sheet.convert("L").tobytes())) > 50
    assert "sheet in predictions.png" in capsys.readouterr().err
    for wrong in ("no/such/sheet.png", "sheet.jpg"):
        assert main(["predict", str(run), str(photos), "--show", wrong]) == 2
        assert "--show" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "jsn"], "'jsn'; it must be table, json or csv. Did you mean 'json'?"),
        (["--invert", "maybe"], "auto, yes or no"),
        (["--scale", "2"], "255 or 1"),
    ],
)
def test_options_are_checked(words, said, capsys):
    assert main(["predict", "run", "picture.png", *words]) == 2
    assert said in capsys.readouterr().err


def test_odd_files_get_a_result_or_a_line_each(run, capsys, tmp_path):
    expected = odd_files.write(tmp_path)
    assert main(["predict", str(run), "--output", "json", "--", *expected]) == 2
    printed = capsys.readouterr()
    results = {one["file"] for one in json.loads(printed.out)}
    *lines, last = printed.err.splitlines()
    assert last == f"fmnist: {len(lines)} of {len(expected)} pictures could not be read."
    assert len(results) + len(lines) == len(expected)
    for path, reason in expected.items():
        name = module.pictures.shown(path)
        told = [line for line in lines if line.startswith(f"fmnist: {name}: ")]
        assert (name in results, len(told)) == ((True, 0) if reason is None else (False, 1))


def test_nothing_but_broken_pictures(run, capsys, tmp_path):
    assert main(["predict", str(run), str(tmp_path), str(tmp_path / "*.png")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no picture in this folder" in printed.err
    assert "2 of 2" in printed.err
