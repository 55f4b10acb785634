"""Hugging Face's data sets, where the package is installed; what is said where it is not."""

import sys

import numpy as np
import pytest
from written import encoded, examples, write

from fmnist_keras3.data import source as limits
from fmnist_keras3.data import sources
from fmnist_keras3.data.sources import absolute
from fmnist_keras3.ground.errors import UserError

SET = examples()


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def saved(datasets, folder, names=True, **more):
    x, y, x_test, y_test = SET
    kind = datasets.ClassLabel(names=[str(i) for i in range(10)]) if names else None
    features = {"img": datasets.Image(), "fine_label": kind or datasets.Value("int64")}

    def made(images, labels):
        rows = [{"bytes": encoded(image), "path": None} for image in images]
        columns = {"img": rows, "fine_label": labels.astype(np.int64)}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    splits = {"train": made(x, y), "test": made(x_test, y_test)}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return f"hf:{folder}"


def test_a_saved_set_is_as_any_other(datasets, tmp_path, monkeypatch):
    data = saved(datasets, tmp_path / "set")
    expected = sources.load(write(tmp_path / "npz", "npz", *SET))
    found = sources.load(data)
    assert (found.sha256, found.class_names) == (expected.sha256, expected.class_names)
    assert sources.load(saved(datasets, tmp_path / "plain", names=False)).sha256 == found.sha256
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    read = sources.load(data)
    assert not read.train.in_memory
    assert np.array_equal(read.train.x, expected.train.x)
    assert sources.load(data).sha256 == read.sha256


def test_what_is_not_there_is_told(datasets, tmp_path):
    with pytest.raises(UserError, match=r"hf:nobody/nothing cannot be read.*Download it first"):
        sources.load("hf:nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="save_to_disk"):
        sources.load(f"hf:{tmp_path / 'empty'}")
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(UserError, match=r"text \(Value\), label \(Value\); one of images"):
        sources.load(f"hf:{tmp_path / 'text'}")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'fmnist-keras3\[hf\]'"):
        sources.load("hf:mnist")
    assert absolute("hf:mnist") == "hf:mnist"
