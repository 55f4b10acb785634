"""A temperature makes probabilities as sure as they are right, wherever they are shown."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fmnist_keras3 import Predictor, build_model, export, load_model
from fmnist_keras3.cli import main
from fmnist_keras3.data.fashion import FashionMNIST
from fmnist_keras3.evaluation import report, temperature
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference import export as exports
from fmnist_keras3.runs import rundir


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data):
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    x, y = tiny_data
    model = build_model("lenet")
    model.fit(x[:64], y[:64], batch_size=32, verbose=0)
    model.save(folder / "model.keras")
    path = folder / "set.npz"
    np.savez(path, x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    (folder / "config.yaml").write_text(f"data: npz:{path}\nvalidation: 0.25\n")
    names = [str(k) for k in range(10)]
    (folder / "summary.json").write_text(json.dumps({"dataset": {"classes": names}}))
    return folder


@pytest.fixture
def stored(run):
    """The run with the temperature 2."""
    told = {"temperature": 2.0, "weights": temperature._fingerprint(load_model(run))}
    (run / rundir.TEMPERATURE).write_text(json.dumps(told))
    yield run
    (run / rundir.TEMPERATURE).unlink()


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_of_known_probabilities_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    shares = softmax(logits, axis=1)
    labels = (rng.random((len(logits), 1)) > shares.cumsum(1)).sum(1).clip(max=4)
    found = temperature.fit(labels, logits * true)
    assert found == pytest.approx(true, rel=0.05)
    rows = np.arange(len(labels))

    def loss(t):
        return -log_softmax(logits * true / t, 1)[rows, labels].mean()

    assert loss(found) <= min(loss(found * 1.001), loss(found / 1.001))


def test_predictions_are_divided_by_it(run, stored, tiny_data):
    image = tiny_data[0][150, ..., 0]
    logits = np.asarray(load_model(run).predict_on_batch(image[None, ..., None] * 1.0))[0]
    predictor = Predictor(run)
    assert predictor.temperature == 2
    (found,) = predictor([image])
    seen = np.asarray(load_model(run).predict_on_batch(found.image[None, ..., None] * 1.0))[0]
    assert found.probability == pytest.approx(softmax(seen / 2).max(), abs=1e-6)
    assert softmax(logits).max() > softmax(logits / 2).max()


@pytest.mark.parametrize("format", exports.FORMATS)
def test_exports_are_divided_by_it(format, run, stored, tmp_path, monkeypatch, tiny_data):
    images = tiny_data[0][:5]
    for package in exports.FORMATS[format][2]:
        pytest.importorskip(package)
    monkeypatch.setattr(exports, "_images", lambda *_: exports.Images(images, "images"))
    logits = np.asarray(load_model(run).predict_on_batch(images.astype(np.float32)))
    suffix = exports.FORMATS[format][1]
    made = export(run, tmp_path / f"m{suffix}", format)
    read = named(exports.FORMATS[format][0]).read
    tolerance = 1e-3 if format == "html" else 1e-6
    assert np.abs(read(made.path)(images) - softmax(logits / 2, axis=1)).max() < tolerance
    if format == "onnx":
        made = export(run, tmp_path / "logits.onnx", format, outputs="logits")
        assert np.abs(read(made.path)(images) - logits).max() < 2e-5


def test_of_other_weights_it_does_not_count(run, stored):
    model = load_model(run)
    bias = model.layers[-1].bias
    bias.assign(np.asarray(bias) + 1)
    assert temperature.read(run, model) == 1
    for content in ("[]", "{", '{"temperature": "hot", "weights": 3}', '{"temperature": -1}'):
        (run / rundir.TEMPERATURE).write_text(content)
        assert temperature.read(run, load_model(run)) == 1


def test_the_command_fits_it_on_the_validation_split(run, capsys):
    data = FashionMNIST(batch_size=1, data=f"npz:{run / 'set.npz'}", validation=0.25).setup()
    images = len(data.validation)
    assert main(["evaluate", str(run), "--temperature"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"fitted on {images} validation images: calibration error" in out
    model = load_model(run)
    expected = temperature.fit(
        data.validation.y, np.asarray(model.predict(data.validation.x * 1.0, verbose=0))
    )
    assert temperature.read(run, model) == pytest.approx(expected, rel=1e-3)
    told = json.loads((run / rundir.TEMPERATURE).read_text())
    logits = np.asarray(model.predict(data.test.x * 1.0, verbose=0)) / told["temperature"]
    loss = -log_softmax(logits, 1)[np.arange(len(logits)), data.test.y].mean()
    assert told["loss_after"] == pytest.approx(loss, rel=1e-4)
    page = report.build(run).read_text()
    assert "Calibration with the temperature" in page
    assert f"fitted on {images} validation images, moves the test" in page
    (run / rundir.TEMPERATURE).write_text("{}")
    assert "temperature.json is damaged." in report.build(run).read_text()
    (run / rundir.TEMPERATURE).unlink()


def test_what_it_cannot_be_stored_with_is_refused(run, capsys):
    assert main(["evaluate", str(run / "model.keras"), "--temperature"]) == 2
    assert "Give a run directory" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--temperature", "--split", "validation"]) == 2
    assert "leave --split out" in capsys.readouterr().err
