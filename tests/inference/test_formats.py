"""Trained models of every family in every format, compared on the whole test split."""

import importlib.util
import os

import keras
import numpy as np
import pytest
from scipy.special import softmax

from bench.families import FAMILIES, Convolutions
from fmnist_keras3 import FashionMNIST, Trainer, build_model, export, load_run
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference.export import BATCH, CALIBRATED, FORMATS

REAL = bool(os.environ.get("FMNIST_DATA_DIR"))


def train(name, folder, steps):
    """Train a model of the family in ``folder``; returns it."""
    source = {} if REAL else {"data": "synthetic"}
    data = FashionMNIST(batch_size=64, augment=None, **source)
    model = Convolutions() if name == "module" else build_model(name, seed=0)
    given = {"limit_val_batches": 0, "enable_progress_bar": False}
    Trainer(max_steps=steps, run_dir=folder, **given).fit(model, data)
    return model


def train_there(name, folder, steps):
    """As `train`, on another backend."""
    train(name, folder, steps)


def split_of_test():
    """The test split."""
    return FashionMNIST(**({} if REAL else {"data": "synthetic"})).setup().test


def logits_of(model, images):
    return np.asarray(Trainer(enable_progress_bar=False).predict(model, images), np.float64)


def compared(logits, run, format, folder, images, **options):
    """The largest difference, which labels the file gives, and how many changed."""
    for package in FORMATS[format][2]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    outputs = "probabilities" if format == "html" else "logits"
    made = export(run, folder / f"m{FORMATS[format][1]}", format, outputs=outputs, **options)
    read = named(FORMATS[format][0]).read(made.path)
    parts = [np.asarray(read(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    found = np.concatenate(parts).astype(np.float64)
    expected = softmax(logits, axis=1) if format == "html" else logits
    labels = found.argmax(1)
    return np.abs(found - expected).max(), labels, int((labels != expected.argmax(1)).sum())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By name, what `export` is given of a trained model, images, and its logits for them."""
    made = {}

    def model(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("runs") / name
            model, images = train(name, folder, 40), split_of_test().x[:2000]
            made[name] = model if name == "module" else folder, images, logits_of(model, images)
        return made[name]

    return model


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_no_label_changes(name, format, models, tmp_path):
    run, images, logits = models(name)
    difference, _, changed = compared(logits, run, format, tmp_path, images)
    if format == "html":  # weights of 16 bits
        assert difference <= 0.02
    else:
        assert (changed, difference <= 2e-5) == (0, True), difference


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "airnet"])
def test_a_model_that_was_trained_on_the_other_backend(name, other_backend, tmp_path):
    other_backend(train_there, name, str(tmp_path / "run"), 20)
    run = load_run(tmp_path / "run")
    assert run.summary["backend"] != keras.backend.backend()
    images = split_of_test().x[:1000]
    logits = logits_of(run.model, images)
    for format in ("keras", "saved_model", "onnx"):
        difference, _, changed = compared(logits, run, format, tmp_path, images)
        assert (changed, difference <= 2e-5) == (0, True), (format, difference)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("format", CALIBRATED)
def test_8_bits_cost_little(format, fashion_dir, tmp_path):
    model, split = train("baseline", tmp_path / "run", 1500), split_of_test()
    before = logits_of(model, split.x)
    options = {"quantize": "int8"}
    _, labels, changed = compared(before, tmp_path / "run", format, tmp_path, split.x, **options)
    lost = np.mean(before.argmax(1) == split.y) - np.mean(labels == split.y)
    assert changed <= 0.012 * len(split)
    assert abs(lost) <= 0.003
