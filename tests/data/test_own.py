"""Somebody's own images: the same from every kind of file, and whatever can be wrong with them."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kept import kept
from PIL import Image
from written import KINDS, encoded, examples, write

from fmnist_keras3 import ArrayData, FashionMNIST, FolderData, TableData, Trainer, build_model
from fmnist_keras3.data import idx, sources, table
from fmnist_keras3.data import source as limits
from fmnist_keras3.data.decoded import Store
from fmnist_keras3.data.pixels import Pixels, colored, resized
from fmnist_keras3.ground.errors import UserError

SET = examples()


def refusal(data, **pixels):
    with pytest.raises(UserError) as caught:
        sources.load(data, pixels=Pixels(**pixels))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    return {kind: write(base / kind, kind, *SET) for kind in KINDS}


def trained(data, pipeline):
    model = kept.model(build_model, "lenet")
    trainer = Trainer(max_epochs=2, pipeline=pipeline, enable_progress_bar=False, barebones=True)
    history = trainer.fit(model, data).history
    return [r.get("loss") for r in history], [w.tobytes() for w in model.get_weights()]


@pytest.fixture(scope="module")
def from_memory(compiled_once):
    x, y, x_test, y_test = SET
    data = ArrayData(x, y, test=(x_test, y_test), batch_size=32, augment="flip,crop")
    return trained(data, "resident")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_every_kind_of_file_gives_the_same_run(folders, from_memory, kind, pipeline):
    data = FashionMNIST(data=folders[kind], batch_size=32, augment="flip,crop")
    assert trained(data, pipeline) == from_memory
    assert data.source.sha256 == sources.load(folders["npz"]).sha256
    assert np.array_equal(data.test.x, SET[2])
    assert data.source.note is None


READ = ("npy", "list", "folder", "parquet")  # whose images need not be in memory


@pytest.fixture
def read_as_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    monkeypatch.setattr(table, "READ_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_as_it_is_needed_gives_the_same_run(
    folders, from_memory, kind, read_as_needed, monkeypatch
):
    data = FashionMNIST(data=folders[kind], batch_size=32, augment="flip,crop")
    assert trained(data, "auto") == from_memory
    assert (data.train.in_memory, data.describe()["read"]) == (False, "as it is needed")
    assert "Images are read as they are needed" in data.source.note
    again = sources.load(folders[kind])
    assert again.sha256 == data.source.sha256
    if kind in ("folder", "list"):
        file = next(Path(folders[kind].partition(":")[2]).rglob("*.png"))
        os.utime(file, ns=(1, 1))
        assert sources.load(folders[kind]).sha256 != again.sha256
        assert trained(data, "resident") == from_memory


def test_the_files_of_a_split_come_one_after_the_other(tmp_path, read_as_needed):
    import pyarrow
    import pyarrow.parquet

    x, y, *_ = SET
    for part, start in enumerate(range(0, 200, 80)):
        rows = slice(start, start + 80)
        columns = {"image": [encoded(image) for image in x[rows]], "label": y[rows]}
        pyarrow.parquet.write_table(
            pyarrow.table(columns), tmp_path / f"train-{part}.parquet", row_group_size=30
        )
        pyarrow.parquet.write_table(
            pyarrow.table({k: v[:9] for k, v in columns.items()}),
            tmp_path / f"test-{part}.parquet",
        )
    found = sources.load(f"parquet:{tmp_path}")
    assert not found.train.in_memory
    assert np.array_equal(found.train.x, x)
    assert np.array_equal(found.train.x[[199, 80, 79]], x[[199, 80, 79]])
    assert np.array_equal(found.train.y, y)
    assert len(found.test) == 27
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 6


@pytest.mark.parametrize("kind", ["list", "folder", "parquet"])
def test_decoded_images_are_kept_on_disk(folders, from_memory, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def data():
        return FashionMNIST(data=folders[kind], batch_size=32, augment="flip,crop", cache="disk")

    small = data()
    assert small.train.in_memory  # so it is read into memory, from the copy
    assert small.source.sha256 == sources.load(folders["npz"]).sha256
    assert "Decoded images are in" in small.source.note
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    monkeypatch.setattr("fmnist_keras3.data.found.decode", None)  # nothing is decoded again
    kept = data()
    assert not kept.train.in_memory
    assert kept.source.sha256 != small.source.sha256
    assert trained(kept, "auto") == from_memory
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = next(tmp_path.rglob("decoded/*/train.npy"))
    content = file.read_bytes()
    file.write_bytes(content)  # touched: its checksum is looked at
    assert Store(file.parent.name).open() is not None
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        assert Store(file.parent.name).open() is None
    assert np.array_equal(data().train.x, small.train.x)  # made again
    assert file.read_bytes() == content


def test_a_copy_leaves_out_what_cannot_be_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = encoded(grey(9))
    data = images(tmp_path / "set", many(20) | {"cat/0.png": whole[: len(whole) // 2]})
    for _ in range(2):  # made, and found there
        found = sources.load(data, pixels=Pixels(cache="disk"))
        assert "1 images that cannot be read are left out" in found.note
        assert (len(found.train) + len(found.test), found.class_names) == (19, ("cat", "dog"))
        values = np.concatenate([found.train.x, found.test.x])[:, 0, 0, 0]
        assert sorted(values.tolist()) == list(range(1, 20))
    assert [p.name for p in (tmp_path / "cache").rglob("*.tmp*")] == []
    with pytest.raises(UserError, match=r"1 images .*0\.png.* --on_bad_file skip"):
        sources.load(data, pixels=Pixels(cache="disk", on_bad_file="stop"))


def test_memory_is_asked_for(folders, read_as_needed):
    found = sources.load(folders["folder"], pixels=Pixels(cache="memory"))
    assert found.train.in_memory


FORMS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

with np.load(sys.argv[1]) as arrays:
    SET = dict(arrays)

class Written(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = [str(i) for i in range(10)]
        features = {"image": tfds.features.Image(shape=(28, 28, 1))}
        features["label"] = tfds.features.ClassLabel(names=names)
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for i, image in enumerate(SET["x_" + split]):
            yield i, {"image": image, "label": int(SET["y_" + split][i])}

for form in ("tfrecord", "array_record"):
    Written(data_dir=f"{sys.argv[2]}/{form}").download_and_prepare(file_format=form)
"""


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    arguments = [folders["npz"].partition(":")[2], str(root)]
    command = [sys.executable, "-c", FORMS, *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=root)
    return root


@pytest.mark.parametrize("form", ["tfrecord", "array_record"])
def test_a_set_of_tfds_gives_the_same_run(prepared, from_memory, form, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def data():
        options = {"data": "tfds:written", "data_dir": prepared / form}
        return FashionMNIST(**options, batch_size=32, augment="flip,crop")

    resident = data()
    assert trained(resident, "auto") == from_memory
    assert resident.train.in_memory
    index = next((tmp_path / "cache").rglob("records/*.npz"))
    made = index.stat().st_mtime_ns
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    read = data()
    assert trained(read, "auto") == from_memory
    assert not read.train.in_memory
    assert index.stat().st_mtime_ns == made
    index.write_bytes(b"damaged")
    assert np.array_equal(data().train.y, resident.train.y)


def test_modules_of_python(folders):
    folder = folders["folder"].partition(":")[2]
    module = FolderData(folder, image_size=(14, 14), color="rgb", batch_size=8)
    assert module.train.x.shape == (180, 14, 14, 3)
    assert module.data == folders["folder"]
    table = TableData(folders["csv"].partition(":")[2], validation=0.2)
    assert len(table.validation) == 40
    assert TableData("some.npz").data == f"npz:{os.path.abspath('some.npz')}"
    with pytest.raises(UserError, match="Give kind='csv'"):
        TableData(folder)
    with pytest.raises(UserError, match=r"image_size is 'big'.*--image_size 64,48"):
        FolderData(folder, image_size="big")


def test_pandas_series_are_labels():
    """What pandas gives: rows that have numbers of their own, of which ours must take no notice."""
    pandas = pytest.importorskip("pandas")
    x, y, *_ = SET
    order = np.arange(len(y))[::-1]
    plain = ArrayData(x, y.astype(np.int64))
    for labels in (pandas.Series(y, index=order), pandas.DataFrame({"y": y}, index=order)):
        made = ArrayData(x, labels)
        assert np.array_equal(made.train.y.reshape(-1), plain.train.y)
        assert np.array_equal(made.train.x, plain.train.x)


# --- sizes and colours --------------------------------------------------------------------------


def images(folder, contents, split=""):
    """Write files {"cat/a.png": bytes or array}; returns what --data is to be."""
    for name, content in contents.items():
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return f"folder:{folder}"


def grey(value=100, size=(8, 8)):
    return np.full((*size, 1), value, np.uint8)


def pair(**more):
    return {"cat/1.png": grey(10), "dog/2.png": grey(20)} | more


def many(n=20, **more):
    names = {f"{('cat', 'dog')[i % 2]}/{i}.png": grey(i) for i in range(n)}
    return names | more


def test_a_set_without_test_split_is_split_alike_for_every_seed(tmp_path):
    data = images(tmp_path, many(60))
    found = FashionMNIST(data=data, seed=1, batch_size=4).source
    assert (len(found.train), np.bincount(found.test.y).tolist()) == (54, [3, 3])
    assert found.class_names == ("cat", "dog")
    assert "6 examples are held out" in found.note
    again = FashionMNIST(data=data, seed=2, batch_size=4)
    assert again.source.sha256 == found.sha256
    assert np.array_equal(
        np.sort(np.concatenate([found.train.x, found.test.x])[:, 0, 0, 0]), np.arange(60)
    )


def test_validation_is_used_as_such_or_as_the_test(tmp_path):
    for split in ("train", "Valid"):
        images(tmp_path, many(), split)
    found = sources.load(f"folder:{tmp_path}")
    assert (len(found.train), len(found.test), found.validation) == (20, 20, None)
    images(tmp_path, pair(), "test")
    found = sources.load(f"folder:{tmp_path}")
    assert (len(found.validation), len(found.test)) == (20, 2)


def test_numbered_files_and_classes_come_in_the_order_of_their_numbers(tmp_path):
    contents = {f"class{i % 11}/img{i}.png": grey(i) for i in range(33)}
    found = sources.load(images(tmp_path, contents, "train"))
    everything = np.concatenate([found.train.x, found.test.x])
    assert found.class_names == tuple(f"class{i}" for i in range(11))
    assert np.array_equal(found.train.x[:, 0, 0, 0] % 11, found.train.y)
    assert np.array_equal(np.sort(everything[:, 0, 0, 0]), np.arange(33))
    assert (np.diff(found.train.x[:, 0, 0, 0].astype(int)) > 0).all()


def test_sizes_that_differ_are_named_with_what_to_type(tmp_path):
    other = {"dog/3.png": grey(size=(9, 7)), "dog/4.png": grey(size=(9, 7))}
    data = images(tmp_path, {"cat/1.png": grey(), **other})
    message = refusal(data)
    assert "2 sizes, height x width: 9x7 (2), 8x8 (1)" in message
    size = message.split("as --image_size ")[1]
    assert size == "9,7"
    assert sources.load(data, pixels=Pixels(size)).train.x.shape == (3, 9, 7, 1)


def test_shrinking_takes_means_and_the_ratio_of_sides_is_kept_as_asked():
    image = np.arange(32, dtype=np.uint8).reshape(4, 8, 1)
    halves = image.reshape(2, 2, 4, 2).mean((1, 3))
    assert np.array_equal(resized(image, (2, 4), "crop")[..., 0], np.ceil(halves))
    crop, pad, stretch = (resized(image, (4, 4), how)[..., 0] for how in ("crop", "pad", "stretch"))
    assert np.array_equal(crop, image[:, 2:6, 0])
    assert np.array_equal(stretch, np.ceil(image.reshape(4, 4, 2).mean(2)))
    assert np.array_equal(pad[1:3], np.ceil(halves))
    assert not pad[[0, 3]].any()
    large = resized(image, (8, 16), "crop")[..., 0]
    assert np.array_equal(large, np.asarray(Image.fromarray(image[..., 0]).resize((16, 8), 2)))


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (50, 2), (8, 8)])
def test_any_size_becomes_any_other(how, size):
    for image in (np.full((8, 8, 3), 77, np.uint8), np.full((1, 200, 1), 77, np.uint8)):
        made = resized(image, size, how)
        assert made.shape == (*size, image.shape[-1])
        assert set(np.unique(made)) <= ({0, 77} if how == "pad" else {77})


def test_colours_are_those_of_pillow_and_of_the_set(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (8, 8, 3), np.uint8)
    grey_of = np.asarray(Image.fromarray(color).convert("L"))
    assert np.array_equal(colored(color, 1)[..., 0], grey_of)
    data = images(tmp_path, many(4, **{"dog/c.png": color}))
    assert sources.load(data).train.x.shape == (5, 8, 8, 3)
    found = sources.load(data, pixels=Pixels(color="grey"))
    assert np.array_equal(found.train.x[-1, ..., 0], grey_of)
    assert sources.load(data, pixels=Pixels(color="rgb")).train.x.shape[-1] == 3
    assert sources.load("synthetic", pixels=Pixels((14, 14), "rgb")).test.x.shape[1:] == (14, 14, 3)


def test_a_model_says_its_least_size():
    for name in ("lenet", "baseline", "cnn", "resnet:depth=8", "wrn:depth=10", "airnet"):
        with pytest.raises(UserError, match="--image_size") as caught:
            build_model(name, input_shape=(3, 3, 1))
        words = str(caught.value).replace("x", " ").split()
        least = next(int(w) for w in words if w.isdigit() and int(w) > 3)
        build_model(name, input_shape=(least, least, 3))
        with pytest.raises((UserError, ValueError)):
            build_model(name, input_shape=(least - 1, least - 1, 3))


# --- files that are odd -------------------------------------------------------------------------


def jpeg(**options):
    return encoded(np.full((8, 8, 3), 90, np.uint8), "jpeg", **options)


def in_mode(mode, color=100, kind="png", **options):
    file = io.BytesIO()
    Image.new(mode, (8, 8), color).save(file, kind, **options)
    return file.getvalue()


ODD = {  # what is in a file of 8 x 8 pixels, and the grey or colour that it becomes
    "cmyk.jpg": (in_mode("CMYK", (0, 255, 255, 0), "jpeg"), [254, 0, 0]),
    "deep.png": (in_mode("I;16", 32768), [128]),
    "bits.png": (in_mode("1", 1), [255]),
    "palette.gif": (in_mode("P", 0, "gif"), [0]),
    "clear.png": (in_mode("RGBA", (9, 9, 9, 0)), [255, 255, 255]),
    "half.png": (in_mode("LA", (0, 128)), [127]),
    "palette.png": (in_mode("P", 0, transparency=0), [255, 255, 255]),
    "plain.bmp": (in_mode("RGB", (1, 2, 3), "bmp"), [1, 2, 3]),
    "plain.webp": (in_mode("RGB", (255, 255, 255), "webp", lossless=True), [255, 255, 255]),
    "UPPER.PNG": (in_mode("L", 7), [7]),
    "Größe, ein Bild (1).png": (in_mode("L", 8), [8]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_read(tmp_path, name):
    content, pixel = ODD[name]
    found = sources.load(images(tmp_path / "mit Leerzeichen", pair(**{f"cat/{name}": content})))
    assert found.train.x.shape[1:3] == (8, 8)
    made = [image for image in found.train.x if np.abs(image.astype(int) - pixel).max() <= 1]
    assert made, found.train.x[:, 0, 0]


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("L", (8, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    found = sources.load(images(tmp_path / "set", {"a/1.png": content, "b/1.png": content}))
    assert found.train.x.shape == (2, 8, 4, 1)
    assert found.train.x[0, 0, 3] == 255


def large():
    """A small file of 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return file.getvalue()


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path):
    bad = {
        "cat/text.png": b"this is text",
        "cat/cut.jpg": jpeg()[:200],
        "cat/cut.png": encoded(np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8))[:70],
        "dog/empty.gif": b"",
        "dog/large.png": large(),
    }
    data = images(tmp_path, many(**bad))
    os.mkfifo(tmp_path / "dog/pipe.png")
    found = sources.load(data)
    assert len(found.train) + len(found.test) == 20
    assert "6 images that cannot be read are left out" in found.note
    assert "cut.jpg (" in found.note
    assert "empty.gif (not an image)" in found.note
    message = refusal(data, on_bad_file="stop")
    assert "cat/cut.jpg" in message
    assert "--on_bad_file skip" in message


def test_other_files_are_counted_and_hidden_ones_are_not(tmp_path):
    extra = {"cat/notes.txt": b"", "cat/.DS_Store": b"", "dog/._1.png": b"", "cat/Thumbs.db": b""}
    found = sources.load(images(tmp_path, many(**extra, **{"__MACOSX/x/a.png": b""})))
    assert found.class_names == ("cat", "dog")
    assert "Files of other kinds are left out: 1 .txt." in found.note


def test_names_of_any_bytes_and_a_class_named_train(tmp_path):
    data = images(tmp_path, {"train/1.png": grey(), "plane/1.png": grey()})
    assert sources.load(data).class_names == ("plane", "train")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    Image.fromarray(grey()[..., 0]).save(os.fsencode(tmp_path) + b"/caf\xe9/\xff.png", "png")
    (tmp_path / "plane" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    found = sources.load(data)
    assert found.class_names == ("caf\ufffd", "plane", "train")
    assert "\ufffd.png (not an image)" in found.note


def test_links_are_followed_once(tmp_path):
    images(tmp_path, many())
    (tmp_path / "cat/loop").symlink_to(tmp_path / "cat")
    (tmp_path / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = sources.load(f"folder:{tmp_path}")
    assert len(found.train) + len(found.test) == 20
    assert "gone.png (No such file or directory)" in found.note


def test_an_unreadable_file_is_left_out_and_an_unreadable_folder_told(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    data = images(tmp_path, many())
    (tmp_path / "cat/0.png").chmod(0)
    assert "0.png (Permission denied)" in sources.load(data).note
    (tmp_path / "dog").chmod(0)
    message = refusal(data)
    (tmp_path / "dog").chmod(0o755)
    assert "dog cannot be read: Permission denied" in message


def test_an_empty_class_is_left_out(tmp_path):
    data = images(tmp_path, many())
    (tmp_path / "cow").mkdir()
    found = sources.load(data)
    assert found.class_names == ("cat", "dog")
    assert "Folders without an image are left out: cow." in found.note


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({}, "has no folders. Needed is PATH/train/CLASS"),
        ({"a.png": grey()}, "has no folders"),
        ({"cat/a.txt": b""}, "has 1 folders, without an image"),
        ({"cat/a.png": grey()}, "one class, 'cat'. A classifier needs two"),
        ({"cat/a.png": grey(), "cat/b.png": grey()}, "one class, 'cat'"),
        ({"cat/a.png": b"no", "dog/b.png": b"no"}, "no image for train.*2 images that cannot"),
        ({f"train/{n}": i for n, i in pair().items()} | {"test/cow/a.png": grey()}, "label 'cow'"),
        ({"test/cat/a.png": grey(), "test/dog/a.png": grey()}, "one class, 'test'"),
    ],
)
def test_folders_that_are_no_set(tmp_path, contents, words):
    assert re.search(words, refusal(images(tmp_path, contents)))


@pytest.mark.parametrize("kind", [*sources.KINDS])
def test_what_is_not_there_is_told(tmp_path, kind):
    assert "does not exist" in refusal(f"{kind}:{tmp_path}/nothing")
    assert f"--data {kind}:PATH" in refusal(f"{kind}:")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert re.search("Needed|needs the package", refusal(f"{kind}:{empty}"))
    (tmp_path / "one").write_bytes(b"\0" * 3)
    assert refusal(f"{kind}:{tmp_path / 'one'}")


# --- tables -------------------------------------------------------------------------------------

HEADER = b"label,pixel1,pixel2,pixel3,pixel4\n"
ROWS = b"0,1,2,3,4\n1,5,6,7,8\n"
LABELS = np.array([[0, 1, 2, 3, 4], [1, 5, 6, 7, 8]], np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROWS,
        ROWS,
        HEADER + ROWS.rstrip(),
        b"\xef\xbb\xbf" + HEADER + ROWS,
        (HEADER + ROWS).replace(b"\n", b"\r\n"),
        (HEADER + ROWS).replace(b",", b"\t"),
        HEADER + b'"0","1","2","3","4"\n"1","5","6","7","8"\n',
        b"p1,p2,p3,p4,Class\n1,2,3,4,0\n5,6,7,8,1\n",
        b",label,a,b,c,d\n0,0,1,2,3,4\n1,1,5,6,7,8\n",
        b"0.0,1.0,2.0,3.0,4.0\n1.0,5.0,6.0,7.0,8.0\n",
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path, content):
    (tmp_path / "a b.csv").write_bytes(content)
    found = sources.load(f"csv:{tmp_path / 'a b.csv'}")
    assert np.array_equal(found.train.x.reshape(2, 4), LABELS[:, 1:])
    assert found.train.x.shape == (2, 2, 2, 1)
    assert found.train.y.tolist() == [0, 1]
    assert len(found.test) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER, "has no rows"),
        (b"", "cannot be read as csv"),
        (HEADER + b"0,1,2,3,4\n1,5,6\n", "Expected 5 columns, got 3"),
        (HEADER + b"0,1,2,3,4\n1,5,,7,8\n", "no number for 'pixel2' in row 1"),
        (HEADER + b"0,1,2,3,4\n1,5,nan,7,8\n", "no number for 'pixel2' in row 1"),
        (HEADER + b"0,1,2,3,4\n,5,6,7,8\n", "1 of the train examples have no label.*example 1"),
        (HEADER + b"0,1,2,3,4\n1.5,5,6,7,8\n", r"hold 1\.5 \(at example 1\)"),
        (HEADER + b"0,1,2,3,4\n1,5,six,7,8\n", "column 'pixel2', which holds no numbers"),
        (HEADER + b"0,1,2,3,4\n1,5,6,7,4000\n", "1 to 4000, are in no known range.*example 1"),
        (HEADER + b"0,1,2,3,4\n1,5,6,7,-8\n", "in no known range"),
        (b"label,a,b,c\n0,1,2,3\n1,4,5,7\n", "3 pixels an image, which are no square"),
        (b"label,a,b\n0,1,2\n1,4,5\n", "2 pixels an image, which are no square"),
        (b"label,label,a\n0,1,2\n1,4,5\n", "names a column twice"),
        (b"path,label\ncat.png,cat\ndog.png,dog\n", "no image for train.*cat.png"),
        (b"name,age\nAda,36\nAlan,41\n", "1 pixels an image, which are no square"),
        (b"a,b,c,d\n1,2,3,4\n5,6,7,8\n", "no column of labels, only a, b, c, d. Name one"),
        (b"label;pixel1\n0;1\n1;2\n", "Needed are a label and pixels"),
        ((HEADER + ROWS).decode().encode("utf-16"), "is not in UTF-8"),
        (HEADER + b"0,1,2,3,4\n\xff\xfe,5,6,7,8\n", "is not in UTF-8"),
    ],
)
def test_tables_that_are_no_set(tmp_path, content, words):
    (tmp_path / "train.csv").write_bytes(content)
    assert re.search(words, refusal(f"csv:{tmp_path / 'train.csv'}"))


def test_a_test_file_without_labels_is_left_out(tmp_path):
    """Kaggle's digit recognizer: the labels of test.csv are for Kaggle to know."""
    (tmp_path / "train.csv").write_bytes(HEADER + ROWS * 10)
    (tmp_path / "test.csv").write_bytes(b"pixel1,pixel2,pixel3,pixel4\n1,2,3,4\n")
    found = sources.load(f"csv:{tmp_path}")
    assert (len(found.train), len(found.test)) == (18, 2)
    assert "The test split has no labels" in found.note
    (tmp_path / "others.csv").write_bytes(ROWS)
    assert "others.csv is of no known split" in refusal(f"csv:{tmp_path}")


def test_parquet_keeps_names_and_says_what_is_missing(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def stored(columns, **metadata):
        about = {key: json.dumps(value) for key, value in metadata.items()}
        table = pyarrow.table(columns)
        table = table.replace_schema_metadata(about or None)
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        return f"parquet:{tmp_path / 'a.parquet'}"

    two = [encoded(grey(1)), encoded(grey(2))]
    names = {"label": {"names": ["cat", "cow", "dog"], "_type": "ClassLabel"}}
    found = sources.load(
        stored({"img": two, "label": [0, 2]}, huggingface={"info": {"features": names}})
    )
    assert found.class_names == ("cat", "cow", "dog")
    assert found.train.y.tolist() == [0, 2]
    assert sources.load(stored({"png": two, "kind": ["a", "b"]})).class_names == ("a", "b")
    assert "no column of labels, only image" in refusal(stored({"image": two}))
    assert "no image in row 1" in refusal(stored({"image": [two[0], None], "label": [0, 1]}))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    assert "cannot be read as parquet" in refusal(f"parquet:{tmp_path / 'a.parquet'}")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refusal(f"parquet:{tmp_path / 'a.parquet'}")
    assert "pip install 'fmnist-keras3[parquet]'" in message


# --- arrays -------------------------------------------------------------------------------------


def saved(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return f"npz:{folder / 'set.npz'}"


X, Y = SET[0][:20], SET[1][:20] % 3


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train"), ("train_images", "train_labels"), ("X", "Y"), ("arr_0", "arr_1")],
)
def test_arrays_go_by_their_usual_names(tmp_path, names):
    found = sources.load(saved(tmp_path, **dict(zip(names, (X, Y), strict=True))))
    assert len(found.train) + len(found.test) == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x / 255.0, "0 to 1, were multiplied by 255"),
        (lambda x: (x / 255.0).astype(np.float32), "multiplied by 255"),
        (lambda x: (x / 127.5 - 1).astype(np.float32), "scaled to 0..255"),
        (lambda x: x.astype(np.uint16) * 257, "of 16 bits, were scaled"),
        (lambda x: x.astype(np.float64), None),
        (lambda x: x.astype(np.int64), None),
        (lambda x: x[..., 0], None),
        (lambda x: x.reshape(len(x), -1), None),
        (lambda x: x.transpose(0, 3, 1, 2), None),
        (lambda x: np.concatenate([x, x, x, np.full_like(x, 255)], -1), "3 channels"),
    ],
)
def test_numbers_of_other_kinds_are_the_same_images(tmp_path, change, said):
    x = SET[0].copy()
    x[0, 0, 0], x[0, 0, 1] = 255, 0
    found = sources.load(saved(tmp_path, x=change(x), y=SET[1], x_test=change(x), y_test=SET[1]))
    expected = np.repeat(x, 3, -1) if said == "3 channels" else x
    assert np.array_equal(found.train.x, expected)
    assert found.train.x.dtype == np.uint8
    assert (said or "") in (found.note or "") or said == "3 channels"
    assert (found.note is None) == (said in (None, "3 channels"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x - 20.0, "in no known range"),
        (lambda x: x.astype(np.uint16) * 16, "in no known range"),
        (lambda x: x.astype(np.int64) * 10**6, "in no known range"),
        (lambda x: np.where(x == 17, np.nan, x), "NaN or infinity"),
        (lambda x: x.astype(complex), "of type complex128; numbers are read"),
        (lambda x: x[:19], "19 images but 20 labels"),
        (lambda x: x[..., None], "arrays of shape"),
        (lambda x: x[:, :, :, [0, 0]], "arrays of shape"),
        (lambda x: x.reshape(len(x), -1)[:, :-1], "783 pixels an image, which are no square"),
        (lambda x: x.astype(object), "holds Python objects, which may run programs"),
        (lambda x: x[:0], "0 images but 20 labels"),
    ],
)
def test_numbers_that_are_no_images(tmp_path, change, words):
    assert words in refusal(saved(tmp_path, x_train=change(X), y_train=Y))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda y: np.array(["cat", "dog", "cow"])[y], ("cat", "cow", "dog")),
        (lambda y: np.array([b"10", b"9", b"b"])[y], ("9", "10", "b")),
        (lambda y: np.eye(3)[y], ("0", "1", "2")),
        (lambda y: y[:, None], ("0", "1", "2")),
        (lambda y: y.astype(np.float32), ("0", "1", "2")),
        (lambda y: y.astype(np.int64) + 1, ("1", "2", "3")),
        (lambda y: y.astype(np.int64) - 1, ("-1", "0", "1")),
        (lambda y: y * 10, ("0", "10", "20")),
        (lambda y: y == 1, ("0", "1")),
    ],
)
def test_labels_of_other_kinds_become_classes(tmp_path, change, names):
    y = change(Y)
    found = sources.load(saved(tmp_path, x=X, y=y, x_test=X, y_test=y))
    assert found.class_names == names
    assert found.train.y.dtype == np.int32
    told = [found.class_names[i] for i in found.train.y]
    plain = y.argmax(1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
    given = [v.decode() if isinstance(v, bytes) else str(v) for v in plain.tolist()]
    given = [{"True": "1", "False": "0"}.get(v, v.removesuffix(".0")) for v in given]
    assert told == given
    counted = names == tuple(map(str, range(len(names))))
    assert (found.note is None) == counted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: np.where(y == 1, np.nan, y), "have no label (first at example"),
        (lambda y: np.eye(3)[y] + np.eye(3)[0] * (y == 1)[:, None], "of several classes or none"),
        (lambda y: np.eye(3)[y] * 0.5, "of several classes or none"),
        (lambda y: y + 0.5, "a class is a whole number or a text"),
        (lambda y: y * 0, "of one class, 0. A classifier needs two"),
        (lambda y: np.zeros((20, 2, 2)), "labels have the shape [20, 2, 2]"),
        (lambda y: np.where(y == 1, "", "a"), "have no label"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, change, words):
    assert words in refusal(saved(tmp_path, x_train=X, y_train=change(Y)))


def test_archives_that_are_no_set(tmp_path):
    assert "has labels without images" in refusal(saved(tmp_path, y_train=Y))
    assert "no labels for its training" in refusal(saved(tmp_path, x_train=X))
    assert "has the arrays weights. Needed are x_train" in refusal(saved(tmp_path, weights=X))
    assert "several arrays of images" in refusal(saved(tmp_path, x_train=X, train_images=X, y=Y))
    (tmp_path / "set.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:300])
    assert "cannot be read as arrays of NumPy" in refusal(f"npz:{tmp_path / 'set.npz'}")
    (tmp_path / "one.npy").write_bytes(b"")
    (tmp_path / "set.npz").unlink()
    assert "cannot be read as arrays" in refusal(f"npz:{tmp_path}")


def test_idx_files_of_any_rank_and_name(tmp_path):
    def put(name, array, kind=8):
        header = np.array([kind * 256 + array.ndim, *array.shape], ">u4").tobytes()
        (tmp_path / name).write_bytes(header + array.tobytes())

    color = np.repeat(X, 3, -1)
    for start in ("emnist-letters", "emnist-digits"):
        put(f"{start}-train-images-idx4-ubyte", color)
        put(f"{start}-train-labels-idx1-ubyte", (Y + 1).astype(">i4"), 12)
        put(f"{start}-test-images-idx4-ubyte", color[:3])
        put(f"{start}-test-labels-idx1-ubyte", (Y[:3] + 1).astype(">i4"), 12)
    found = sources.load(f"idx:{tmp_path}/emnist-letters")
    assert np.array_equal(found.train.x, color)
    assert found.class_names == ("1", "2", "3")
    assert "several files of test images" in refusal(f"idx:{tmp_path}")
    put("emnist-letters-train-labels-idx1-ubyte", Y[:-1])
    assert "20 images but 19 labels" in refusal(f"idx:{tmp_path}/emnist-letters")
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(b"no idx")
    assert "is no IDX file" in refusal(f"idx:{tmp_path}/emnist-letters")


def test_genuine_idx_files_keep_their_names(tmp_path, monkeypatch):
    data = write(tmp_path / "a", "idx", *SET)
    found = sources.load(data)
    digests = idx.digests(found.train, found.test)
    monkeypatch.setattr(idx, "FILES", dict(zip(idx.FILES, digests, strict=True)))
    assert sources.load(data).class_names[9] == "Ankle boot"
