"""TFDS for real: its download, its checksums, its preparing, served from this machine.

Genuine files are used where FMNIST_DATA_DIR is set, small ones of the same form elsewhere. All of
it happens in one process of its own: TFDS leaves threads, TensorFlow warnings.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3.data import idx, tfds
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.errors import UserError

SCRIPT = """
import contextlib, functools, hashlib, http.server, json, pathlib, sys, threading

import numpy as np

from fmnist_keras3.data import idx, sources, tfds as source
from fmnist_keras3.data.pixels import Pixels

files, small = pathlib.Path(sys.argv[1]), sys.argv[2] == "small"
result = {}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve():
    handler = functools.partial(Handler, directory=str(files))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def refusal(name, **options):
    try:
        found = source.load(name, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing raised", found.name]


def same(a, b):
    return all(
        np.array_equal(getattr(getattr(a, split), part), getattr(getattr(b, split), part))
        for split in ("train", "test") for part in "xy"
    )


source.is_prepared()
result["imported"] = [m for m in ("tensorflow", "tensorflow_datasets") if m in sys.modules]

# Down before TensorFlow is imported: nothing listens at the address that TFDS knows.
result["unprepared"] = refusal("fashion_mnist", download=False)
server = serve()
url = f"http://127.0.0.1:{server.server_port}/"
server.shutdown(), server.server_close()
import tensorflow_datasets as tfds

builder = tfds.image_classification.FashionMNIST
registered = dict(builder.url_infos)


def point_to(url):
    builder.URL = url
    builder.url_infos.clear()
    for known, info in registered.items():
        name = known.rsplit("/", 1)[1]
        if small:
            path = files / name
            info = type(info)(
                size=path.stat().st_size,
                checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
                filename=name,
            )
        builder.url_infos[url + name] = info


point_to(url)
result["down"] = refusal("fashion_mnist")
result["imported when down"] = "tensorflow" in sys.modules
server = serve()
builder.URL = url = f"http://127.0.0.1:{server.server_port}/"
builder.url_infos.clear()
result["no checksum"] = refusal("fashion_mnist")
point_to(url)
info = builder.url_infos[url + "t10k-labels-idx1-ubyte.gz"]
if small:
    from tensorflow_datasets.image_classification import mnist

    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 60, 20
    idx.FILES = dict(zip(idx.FILES, json.loads(sys.argv[3])))

genuine, info.checksum = info.checksum, "0" * 64
result["wrong checksum"] = refusal("fashion_mnist")
result["prepared after wrong checksum"] = source.is_prepared()
info.checksum = genuine

downloaded = sources.load("fashion_mnist")
server.shutdown(), server.server_close()
prepared = sources.load("auto", pathlib.Path(downloaded.source.removeprefix("TFDS, ")).parents[1])
expected = idx.read_folder(files)
for key, data in (("downloaded", downloaded), ("prepared", prepared), ("expected", expected)):
    result[key] = [data.name, data.sha256, data.note, data.source, list(data.class_names)]
    result[key] += [[str(s.x.dtype), str(s.y.dtype), s.x.shape] for s in (data.train, data.test)]
result["same"] = [same(downloaded, expected), same(prepared, expected)]


class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SHAPE, LABEL, SPLITS = (4, 5, 3), tfds.features.ClassLabel(names=["cat", "dog"]), {}

    def _info(self):
        features = {"image": tfds.features.Image(shape=self.SHAPE), "label": self.LABEL}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate(labels) for split, labels in self.SPLITS.items()}

    def _generate_examples(self):
        pass

    def _generate(self, labels):
        for i, label in enumerate(labels):
            shape = tuple(size or 6 for size in self.SHAPE)
            yield i, {"image": np.full(shape, label + 7, np.uint8), "label": label}


class Colour(Base):
    SPLITS = {"train": [0, 1, 1], "test": [1, 0]}


class Validated(Base):
    SPLITS = {"train": [0, 1, 1], "validation": [1, 0]}


class OnlyTrain(Base):
    SPLITS = {"train": [0, 1] * 10}


class Unlabelled(Base):
    SPLITS = {"train": [0, 1, 1], "test": [-1, -1]}


class Ragged(Colour):
    SHAPE = (None, None, 3)


class Sizes(Base):
    SHAPE, SPLITS = (None, 5, 3), {"train": [0, 1, 1], "test": [1, 0]}

    def _generate(self, labels):
        for i, label in enumerate(labels):
            yield i, {"image": np.full((4 + label, 5, 3), 9, np.uint8), "label": label}


class Regression(Colour):
    LABEL = np.float32


for name in ("colour", "validated", "only_train", "ragged"):
    data = source.load(name)
    result[name] = [data.name, data.note, list(data.class_names), data.train.x.shape]
    result[name] += [(data.train.x[:, 0, 0, 0] - 7 == data.train.y).all().item(), len(data.test)]
for name in ("unlabelled", "sizes", "regression", "colur", "emnist/leters"):
    result[name] = refusal(name)
result["sizes brought to one"] = source.load("sizes", pixels=Pixels("4,4")).train.x.shape
result["regression was prepared"] = source.is_prepared("regression")
result["emnist/letters"] = refusal("emnist/letters", download=False)
result["colour:1.0.0"] = [source.is_prepared("colour:1.0.0"), source.is_prepared("colour:1.0.1")]
record, = (source._prepared("colour", source._root(None))).glob("*test*tfrecord*")
record.write_bytes(record.read_bytes()[:-3])
result["damaged"] = refusal("colour")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("tfds")
    files, size = os.environ.get("FMNIST_DATA_DIR"), "genuine"
    arguments = []
    if not files:
        rng = np.random.default_rng(0)
        files, size = root / "files", "small"
        train, test = (
            Split(rng.integers(0, 256, (n, 28, 28, 1), np.uint8), rng.integers(0, 10, n, np.int32))
            for n in (60, 20)
        )
        idx.write_folder(files, ImageData("t", "t", train, test, FASHION_CLASSES))
        arguments = [json.dumps(idx.digests(train, test))]
    (root / "script.py").write_text(SCRIPT)
    removed = ("FMNIST_DATA_DIR", "FMNIST_OFFLINE", "XDG_CACHE_HOME")
    done = subprocess.run(
        [sys.executable, str(root / "script.py"), str(files), size, *arguments],
        env={key: value for key, value in os.environ.items() if key not in removed}
        | {
            "TFDS_DATA_DIR": str(root / "prepared"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(root),
            "CUDA_VISIBLE_DEVICES": "",
            "no_proxy": "*",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    result = json.loads(done.stdout)  # nothing but this: TFDS' prints go to stderr
    result["stderr"] = done.stderr
    result["root"] = str(root / "prepared")
    return result


def test_asking_imports_nothing(result):
    assert result["imported"] == []


def test_site_that_is_down_costs_no_import_of_tensorflow(result):
    kind, message = result["down"]
    assert kind == "Unreachable"
    assert "http://127.0.0.1:" in message
    assert result["imported when down"] is False
    kind, message = result["unprepared"]
    assert kind == "Unreachable"
    assert "downloads are off" in message


def test_checksums_are_enforced(result):
    kind, message = result["wrong checksum"]
    assert kind == "Unreachable"
    assert "NonMatchingChecksumError" in message
    assert result["prepared after wrong checksum"] is False
    kind, message = result["no checksum"]
    assert kind == "Unreachable"
    assert "Missing checksums" in message


def test_download_prepare_and_read(result):
    folder = f"{result['root']}/fashion_mnist/3.0.1"
    name, sha256, note, _, classes, train, test = result["expected"]
    assert result["downloaded"] == [name, sha256, note, f"TFDS, {folder}", classes, train, test]
    assert result["prepared"] == result["downloaded"]
    assert (name, note, classes) == ("fashion_mnist", None, list(FASHION_CLASSES))
    assert result["same"] == [True, True], "TFDS' order was not undone"


def test_no_progress_bars_in_a_log(result):
    assert "\r" not in result["stderr"]
    assert "WARNING:absl" not in result["stderr"]


def test_other_sets(result):
    shape = [3, 4, 5, 3]
    assert result["colour"] == ["tfds:colour", None, ["cat", "dog"], shape, True, 2]
    name, note, *rest = result["validated"]
    assert (name, rest) == ("tfds:validated", [["cat", "dog"], shape, True, 2])
    assert "validation" in note
    _, note, _, shape, right, test = result["only_train"]
    assert (shape, right, test) == ([18, 4, 5, 3], True, 2)
    assert "2 examples are held out" in note
    assert result["ragged"][3:] == [[3, 6, 6, 3], True, 2]
    assert result["sizes brought to one"] == [3, 4, 4, 3]
    assert result["colour:1.0.0"] == [True, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unlabelled", ["'test'", "no labels"]),
        ("sizes", ["5x5 (3), 4x5 (2)", "--image_size"]),
        ("regression", ["not for image classification", "label"]),
        ("colur", ["no set 'colur'", "Did you mean 'colour'?"]),
        ("emnist/leters", ["leters"]),
        ("damaged", ["colour/1.0.0", "cannot be read", "Delete that folder"]),
    ],
)
def test_sets_that_cannot_be_used(result, name, words):
    kind, message = result[name]
    assert kind == "UserError"
    assert all(word in message for word in words), message


def test_a_set_of_another_kind_is_not_downloaded(result):
    assert result["regression was prepared"] is False
    assert result["emnist/letters"][0] == "Unreachable"


@pytest.mark.parametrize("name", ["", "..", "../x", "a b", "Mnist", "mnist/..", "mnist:1", "a:b/c"])
def test_invalid_name(name, tmp_path):
    assert not tfds.is_prepared(name, tmp_path)
    with pytest.raises(UserError, match="is not the name of a TFDS set"):
        tfds.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow_datasets"])
def test_missing_package(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}, .* pip install tensorflow"):
        tfds.load("fashion_mnist", data_dir=tmp_path)


def test_newest_finished_version_is_taken(tmp_path, monkeypatch):
    for version in ("3.0.1", "10.0.0", "incomplete.ABC_11.0.0", "9.0.0"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").write_text("{}")
    (tmp_path / "x" / "12.0.0").mkdir()
    assert tfds._prepared("x", tmp_path) == tmp_path / "x" / "10.0.0"
    assert tfds._prepared("x:9.0.0", tmp_path) == tmp_path / "x" / "9.0.0"
    assert not tfds.is_prepared("x:9.0.1", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds.is_prepared("x")
    assert not tfds.is_prepared("y")
