"""Which source is taken, in which order, and what is said when none can be had."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fmnist_keras3.data import idx, mirrors, sources, synthetic, tfds
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError

SPLIT = Split(np.zeros((10, 4, 4, 1), np.uint8), np.arange(10, dtype=np.int32))
DATA = ImageData("small", "a test", SPLIT, SPLIT, FASHION_CLASSES)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> list[str]:
    """A machine with no data, no network, few garments; returns what was tried on the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("FMNIST_DATA_DIR", "FMNIST_OFFLINE", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    generate, tried = synthetic.generate, []

    def unreachable(name, *_, **options):
        tried.append(str(name))
        if options.get("download", True):
            raise mirrors.Unreachable(f"{len(tried)} is down")
        raise UserError("The TFDS copy is damaged")

    monkeypatch.setattr(synthetic, "generate", lambda seed: generate(seed, train=10, test=10))
    monkeypatch.setattr(tfds, "load", unreachable)
    monkeypatch.setattr(mirrors, "download", unreachable)
    return tried


def write_genuine(folder: Path, monkeypatch) -> None:
    """Write files that are taken for the genuine ones."""
    idx.write_folder(folder, DATA)
    known = dict(zip(idx.FILES, idx.digests(SPLIT, SPLIT), strict=True))
    monkeypatch.setattr(idx, "FILES", known)


def write_prepared(folder: Path, version: str = "3.0.1") -> None:
    """Write what makes a TFDS copy look prepared."""
    (folder / "fashion_mnist" / version).mkdir(parents=True)
    (folder / "fashion_mnist" / version / "dataset_info.json").write_text("{}")


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        sources.load(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("data", ["auto", "fashion_mnist"])
def test_folder_is_read(data, tmp_path, monkeypatch, machine):
    idx.write_folder(tmp_path / "a", DATA)
    idx.write_folder(tmp_path / "b", DATA)
    assert sources.load(data, tmp_path / "a").source == str(tmp_path / "a")
    monkeypatch.setenv("FMNIST_DATA_DIR", str(tmp_path / "b"))
    assert sources.load(data).source == str(tmp_path / "b")
    assert sources.load(data, tmp_path / "a").source == str(tmp_path / "a")
    assert machine == []


def test_folder_that_is_given_must_work(tmp_path, monkeypatch, machine):
    assert "does not exist" in refusal("auto", tmp_path / "nowhere")
    monkeypatch.setenv("FMNIST_DATA_DIR", str(tmp_path / "nowhere"))
    message = refusal("auto")
    assert "does not exist" in message
    assert "FMNIST_DATA_DIR" in message
    assert machine == []


def test_folder_may_be_a_prepared_tfds_copy(tmp_path, machine):
    write_prepared(tmp_path)
    assert "TFDS copy is damaged" in refusal("auto", tmp_path)
    assert machine == ["fashion_mnist"]


def test_prepared_copy_comes_before_the_cache(monkeypatch):
    write_genuine(sources.cache_folder(), monkeypatch)
    write_prepared(Path("~/tensorflow_datasets").expanduser())
    monkeypatch.setattr(tfds, "load", lambda name, download: (name, download))
    assert sources.load() == ("fashion_mnist", False)


def test_damaged_copy_is_passed_over_and_named(machine):
    write_prepared(Path("~/tensorflow_datasets").expanduser())
    data = sources.load()
    assert data.name == "synthetic"
    assert "The TFDS copy is damaged" in data.note
    assert machine == ["fashion_mnist", str(sources.cache_folder())]


def test_cached_files_need_no_network(monkeypatch, machine):
    write_genuine(sources.cache_folder(), monkeypatch)
    data = sources.load()
    assert (data.name, data.source) == ("fashion_mnist", str(sources.cache_folder()))
    assert machine == []


def test_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache_folder() == tmp_path / "fmnist-keras3" / "fashion-mnist"


def test_damaged_cache_is_downloaded_again(monkeypatch):
    idx.write_folder(sources.cache_folder(), DATA)  # not genuine yet
    monkeypatch.setattr(mirrors, "download", lambda folder: write_genuine(folder, monkeypatch))
    assert sources.load().name == "fashion_mnist"
    (sources.cache_folder() / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    assert sources.load().name == "fashion_mnist"


def test_mirrors_come_after_tfds(monkeypatch, machine):
    monkeypatch.setattr(mirrors, "download", lambda folder: write_genuine(folder, monkeypatch))
    data = sources.load("fashion_mnist")
    assert (data.name, data.source) == ("fashion_mnist", str(sources.cache_folder()))
    assert machine == ["fashion_mnist"]


def test_cache_that_cannot_be_written_is_not_hidden(monkeypatch):
    def refuse(folder):
        raise UserError(f"{folder} cannot be written")

    monkeypatch.setattr(mirrors, "download", refuse)
    assert "cannot be written" in refusal("auto")


def test_auto_falls_back_to_generated_garments_and_says_why(machine):
    data = sources.load(seed=3)
    assert data.name == "synthetic"
    assert "not Fashion-MNIST" in data.note
    assert "1 is down; 2 is down" in data.note
    assert len(machine) == 2
    np.testing.assert_array_equal(data.train.x, sources.load("synthetic", seed=3).train.x)
    assert not np.array_equal(data.train.x, sources.load("synthetic", seed=4).train.x)


def test_fashion_mnist_never_falls_back():
    message = refusal("fashion_mnist")
    for part in (*idx.FILES, "1 is down", "2 is down", "--data_dir", "FMNIST_DATA_DIR"):
        assert part in message
    assert "fmnist train --data synthetic" in message


def test_offline_tries_nothing(monkeypatch, machine):
    monkeypatch.setenv("FMNIST_OFFLINE", "1")
    assert "FMNIST_OFFLINE" in sources.load().note
    assert "FMNIST_OFFLINE" in refusal("fashion_mnist")
    assert machine == []
    monkeypatch.setenv("FMNIST_OFFLINE", "0")
    sources.load()
    assert len(machine) == 2


def test_without_tensorflow_the_mirrors_are_used(monkeypatch):
    monkeypatch.undo()  # the real tfds.load
    monkeypatch.setenv("HOME", os.devnull)
    for name in ("FMNIST_DATA_DIR", "FMNIST_OFFLINE", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(mirrors, "download", lambda folder: None)
    monkeypatch.setattr(idx, "read_folder", lambda folder: DATA)
    assert sources.load() is DATA
    assert "pip install tensorflow" in refusal("tfds:mnist")


def test_tfds_names(tmp_path, monkeypatch):
    calls = []

    def load(name, **options):
        calls.append((name, options))
        return SimpleNamespace(name=f"tfds:{name}")

    monkeypatch.setattr(tfds, "load", load)
    sources.load("tfds:kmnist", tmp_path)
    monkeypatch.setenv("FMNIST_OFFLINE", "1")
    monkeypatch.setenv("FMNIST_DATA_DIR", "is not for these")
    sources.load("tfds:emnist/letters")
    assert calls == [
        ("kmnist", {"data_dir": tmp_path, "download": True, "pixels": Pixels()}),
        ("emnist/letters", {"data_dir": None, "download": False, "pixels": Pixels()}),
    ]


def test_synthetic_takes_no_folder(tmp_path):
    assert "--data_dir" in refusal("synthetic", tmp_path)
    assert "--data_dir" in refusal(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fashion-mnist", "Type --data fashion_mnist"),
        ("FashionMNIST", "Type --data fashion_mnist"),
        ("syntetic", "Did you mean 'synthetic'?"),
        ("cifar10", "type --data tfds:cifar10"),
        ("mnist", "type --data tfds:mnist"),
        (
            "./images",
            "type --data folder:./images; if it holds Fashion-MNIST's four files, "
            "--data_dir ./images",
        ),
        ("my train.csv", "Type --data csv:'my train.csv'"),
        ("train.mat", "load train.mat in Python, and give ArrayData(x, y)"),
        ("foldr:images", "Did you mean 'folder'?"),
        ("npz:", "Give a path: --data npz:PATH"),
        ("", ""),
    ],
)
def test_unknown_data(given, meant):
    message = refusal(given)
    assert repr(given) in message
    assert all(name in message for name in (*sources.NAMES, "tfds:NAME"))
    assert message.endswith(meant or "are allowed.") or meant in message.replace("\n", " ")
