"""IDX files: genuine, own, and every way in which they can be wrong."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3.data import idx, sources
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES


def small(train=20, test=10, height=6, width=5) -> ImageData:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (train + test, height, width, 1), np.uint8)
    y = (np.arange(train + test) % 10).astype(np.int32)
    return ImageData(
        "small", "a test", Split(x[:train], y[:train]), Split(x[train:], y[train:]), FASHION_CLASSES
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    idx.write_folder(tmp_path / "data", small())
    return tmp_path / "data"


def refusal(folder: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        idx.read_folder(folder)
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    """Replace a compressed file by ``change`` of its uncompressed bytes, compressed."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("dot", [False, True])
def test_files_are_found_as_kaggle_and_torchvision_leave_them(tmp_path, below, dot):
    idx.write_folder(tmp_path / below, small(), compress=not dot)
    for path in list((tmp_path / below).iterdir()):
        if dot:
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    read = idx.read_folder(tmp_path)
    np.testing.assert_array_equal(read.train.x, small().train.x)
    assert Path(read.source) == tmp_path / below


def test_mnist_under_the_same_names_is_told(tmp_path):
    digits, y = small(train=30), list(idx.MNIST_LABELS)
    train = Split(digits.train.x, np.array([*y, *y[:10]], np.int32))
    idx.write_folder(tmp_path, ImageData("", "", train, digits.test, FASHION_CLASSES))
    read = idx.read_folder(tmp_path)
    assert (read.name, read.class_names[3]) == ("mnist", "3")
    assert "handwritten digits of MNIST" in read.note
    assert sources.load("auto", tmp_path).name == "mnist"
    with pytest.raises(UserError, match=r"digits of MNIST.*--data auto to train on the digits"):
        sources.load("fashion_mnist", tmp_path)


@pytest.mark.parametrize("compress", [True, False])
def test_written_data_is_read_back(tmp_path, compress):
    data = small()
    idx.write_folder(tmp_path / "new" / "folder", data, compress)
    assert {path.suffix for path in (tmp_path / "new" / "folder").iterdir()} == {
        ".gz" if compress else ""
    }
    read = idx.read_folder(tmp_path / "new" / "folder")
    for got, expected in ((read.train, data.train), (read.test, data.test)):
        np.testing.assert_array_equal(got.x, expected.x)
        np.testing.assert_array_equal(got.y, expected.y)
        assert (got.x.dtype, got.y.dtype) == (np.uint8, np.int32)
        assert got.x.flags.writeable
    assert read.train.x.shape == (20, 6, 5, 1)
    assert read.source == str(tmp_path / "new" / "folder")
    assert read.sha256 == idx.combine(idx.digests(data.train, data.test))


def test_same_data_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        idx.write_folder(tmp_path / name, small())
    for name in idx.FILES:
        first, second = (tmp_path / folder / f"{name}.gz" for folder in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_own_content_is_named_and_noted(folder):
    data = idx.read_folder(folder)
    assert data.name == "idx"
    assert data.note is not None
    assert all(name in data.note for name in idx.FILES)


def test_known_content_is_fashion_mnist(folder, monkeypatch):
    data = small()
    known = dict(zip(idx.FILES, idx.digests(data.train, data.test), strict=True))
    monkeypatch.setattr(idx, "FILES", known)
    assert idx.read_folder(folder).name == "fashion_mnist"
    assert idx.read_folder(folder).note is None
    rewrite(folder / f"{TEST_LABELS}.gz", lambda content: content[:-1] + b"\0")
    changed = idx.read_folder(folder)
    assert changed.name == "idx"
    assert changed.note is not None
    assert TEST_LABELS in changed.note
    assert TRAIN_LABELS not in changed.note


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("FMNIST_DATA_DIR"), reason="no FMNIST_DATA_DIR")
def test_genuine_files():
    data = idx.read_folder(os.environ["FMNIST_DATA_DIR"])
    assert (data.name, data.note) == ("fashion_mnist", None)
    assert data.train.x.shape == (60000, 28, 28, 1)
    assert data.test.x.shape == (10000, 28, 28, 1)
    assert np.bincount(data.train.y).tolist() == [6000] * 10
    assert idx.digests(data.train, data.test) == list(idx.FILES.values())


def test_plain_file_wins_over_compressed(folder):
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(b"damaged")
    idx.write_folder(folder, small(), compress=False)
    assert len(idx.read_folder(folder).train) == 20


def test_colour_and_many_classes_have_digests():
    data = small()
    colour = Split(np.repeat(data.train.x, 3, axis=-1), data.train.y + 1000)
    assert len(set(idx.digests(colour, data.test))) == 4


@pytest.mark.parametrize("path", ["nowhere", "nowhere/else", "x" * 300])
def test_missing_folder(tmp_path, path):
    message = refusal(tmp_path / path)
    assert str(tmp_path / path) in message


def test_folder_is_a_file(folder):
    message = refusal(folder / f"{TRAIN_IMAGES}.gz")
    assert "is a file" in message
    assert all(name in message for name in idx.FILES)


@pytest.mark.parametrize("name", idx.FILES)
def test_missing_file(folder, name):
    (folder / f"{name}.gz").unlink()
    message = refusal(folder)
    assert f"has no {name}." in message
    assert all(other in message for other in idx.FILES)


def test_empty_folder(tmp_path):
    assert all(name in refusal(tmp_path) for name in idx.FILES)


def test_unreadable_file(folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read whatever its mode is
    assert "cannot be read: Permission denied" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(folder):
    folder.chmod(0)
    try:
        assert "cannot be read: Permission denied" in refusal(folder)
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_directory_in_place_of_a_file(folder, suffix):
    (folder / f"{TEST_IMAGES}.gz").unlink()
    (folder / f"{TEST_IMAGES}{suffix}").mkdir()
    message = refusal(folder)
    assert f"{folder / TEST_IMAGES}{suffix}" in message
    assert "is not a file" in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_empty_file(folder, suffix):
    (folder / f"{TEST_LABELS}{suffix}").write_bytes(b"")
    message = refusal(folder)
    assert f"{TEST_LABELS}{suffix} is empty" in message


def damage(content: bytes) -> bytes:
    return content[:40] + bytes(byte ^ 255 for byte in content[40:60]) + content[60:]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:5],
        lambda content: content[:-9],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-6] + b"\0\0" + content[-4:],  # its checksum
        lambda content: content + b"more",
        damage,
    ],
)
def test_damaged_gzip(folder, change):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(change(path.read_bytes()))
    message = refusal(folder)
    assert f"{path} is a damaged gzip file" in message
    assert "again" in message


def test_unpacked_file_named_gz(folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert "remove .gz from its name" in refusal(folder)


def test_compressed_file_named_plain(folder):
    (folder / f"{TRAIN_IMAGES}.gz").rename(folder / TRAIN_IMAGES)
    assert "add .gz to its name" in refusal(folder)


@pytest.mark.parametrize("kept", [4, 10, 16, 17, -1])
def test_truncated_file(folder, kept):
    rewrite(folder / f"{TRAIN_IMAGES}.gz", lambda content: content[:kept])
    message = refusal(folder)
    assert f"{TRAIN_IMAGES}.gz is truncated" in message


def test_header_that_promises_more_than_any_memory(folder):
    rewrite(
        folder / f"{TRAIN_IMAGES}.gz", lambda content: content[:4] + b"\xff" * 12 + content[16:]
    )
    assert "is truncated" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [(TRAIN_IMAGES, TRAIN_LABELS, 2051), (TEST_LABELS, TEST_IMAGES, 2049)],
)
def test_swapped_files(folder, name, other, expected):
    (folder / f"{name}.gz").write_bytes((folder / f"{other}.gz").read_bytes())
    message = refusal(folder)
    assert f"{name}.gz" in message
    assert f"expected {expected}" in message
    assert "it holds" in message


def test_file_of_another_kind(folder):
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    (folder / TRAIN_LABELS).write_bytes(b"<html>Not found</html>")
    assert "expected 2049 (labels)" in refusal(folder)


def test_trailing_bytes(folder):
    rewrite(folder / f"{TEST_LABELS}.gz", lambda content: content + b"abc")
    message = refusal(folder)
    assert TEST_LABELS in message
    assert "3 bytes after its last example" in message


def test_more_images_than_labels(folder, tmp_path):
    idx.write_folder(tmp_path / "other", small(train=21))
    (tmp_path / "other" / f"{TRAIN_IMAGES}.gz").replace(folder / f"{TRAIN_IMAGES}.gz")
    message = refusal(folder)
    assert "has 21 images" in message
    assert "has 20 labels" in message


def test_label_out_of_range(folder):
    rewrite(folder / f"{TEST_LABELS}.gz", lambda content: content[:-1] + b"\x0a")
    message = refusal(folder)
    assert TEST_LABELS in message
    assert "label 10 at example 9" in message


def test_no_examples(tmp_path):
    idx.write_folder(tmp_path, small(test=0))
    message = refusal(tmp_path)
    assert TEST_IMAGES in message
    assert "no examples" in message


def test_different_sizes(folder, tmp_path):
    idx.write_folder(tmp_path / "other", small(height=7))
    (tmp_path / "other" / f"{TEST_IMAGES}.gz").replace(folder / f"{TEST_IMAGES}.gz")
    message = refusal(folder)
    assert "6x5" in message
    assert "7x5" in message


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert idx.read_folder("~/data").source == str(folder)
