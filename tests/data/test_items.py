"""Examples that are read by their numbers: our sources, and what other libraries have."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from kept import kept
from PIL import Image
from written import encoded, examples

from fmnist_keras3 import ArrayData, FolderData, SourceData, Trainer, UserError, build_model
from fmnist_keras3.data import given
from fmnist_keras3.data import source as limits
from fmnist_keras3.data.given import as_datamodule

X, Y, X_TEST, Y_TEST = examples()
Y, Y_TEST = Y.astype(np.int32), Y_TEST.astype(np.int32)


class Gathers:
    """A source as we ask for."""

    identity, class_names = "a set", tuple("abcdefghij")

    def __init__(self, x=X, y=Y, **more):
        self.x, self.y = x, y
        vars(self).update(more)

    def __len__(self):
        return len(self.y)

    def gather(self, indices):
        return self.x[indices], self.y[indices]


class Pairs:
    """What torch's map-style data sets and Grain's sources look like."""

    def __init__(self, make=lambda i: (X[i], int(Y[i])), length=200):
        self.make, self.length = make, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.make(index)


class Column:
    """What a `datasets.Dataset` looks like: features with names, dicts, columns."""

    column_names, format = ("img", "label"), {"type": None}

    def __init__(self, labels=Y):
        self.features = {
            "img": SimpleNamespace(),
            "label": SimpleNamespace(names=[f"class {i}" for i in range(10)]),
        }
        self.labels = labels

    def __len__(self):
        return len(Y)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.labels.tolist()
        return {"img": Image.fromarray(X[key, ..., 0]), "label": int(Y[key])}

    def __getitems__(self, keys):
        return [self[key] for key in keys]


@pytest.fixture(scope="module", autouse=True)
def shared(compiled_once):
    """Models and their engines are made once."""


def trained(data, pipeline="auto", **options):
    model = kept.model(build_model, "lenet")
    trainer = Trainer(
        max_epochs=2, pipeline=pipeline, enable_progress_bar=False, barebones=True, **options
    )
    history = trainer.fit(model, data).history
    return [r.get("loss") for r in history], [w.tobytes() for w in model.get_weights()]


@pytest.fixture(scope="module")
def from_arrays():
    data = ArrayData(X, Y, validation=(X_TEST, Y_TEST), batch_size=32, augment="flip,crop")
    return trained(data)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (Gathers(), Gathers(X_TEST, Y_TEST)),
        (Pairs(), (X_TEST, Y_TEST)),
        (Pairs(lambda i: [X[i].transpose(2, 0, 1), np.int64(Y[i])]), Gathers(X_TEST, Y_TEST)),
        (Pairs(lambda i: {"image": encoded(X[i]), "label": Y[i]}), (X_TEST, Y_TEST)),
        (Column(), (X_TEST, Y_TEST)),
    ],
    ids=["source", "pairs", "channels first", "encoded", "column"],
)
def test_the_same_run_as_from_arrays(from_arrays, train, validation):
    data = SourceData(train, validation=validation, batch_size=32, augment="flip,crop")
    assert not data.setup().train.in_memory
    assert trained(data) == from_arrays


def test_read_into_memory_where_that_is_asked_for(from_arrays):
    options = {"validation": Gathers(X_TEST, Y_TEST), "batch_size": 32, "augment": "flip,crop"}
    assert trained(SourceData(Gathers(), **options), "resident") == from_arrays


def test_fit_takes_them_as_they_are():
    module = as_datamodule(Pairs())
    assert isinstance(module, SourceData)
    assert (len(module.train), len(module.validation), module.batch_size) == (180, 20, 128)
    module = as_datamodule({"train": Column(), "test": Column()}, 0.2)
    assert (len(module.train), len(module.validation), len(module.test)) == (160, 40, 200)
    assert module.source.class_names[3] == "class 3"
    # Labels that are known beforehand are held out class by class.
    assert np.array_equal(module.validation.y, as_datamodule((X, Y), 0.2).validation.y)
    assert np.array_equal(
        as_datamodule(Pairs(), Gathers(X_TEST, Y_TEST)).validation.x[3], X_TEST[3]
    )


def test_test_and_predict_read_as_they_go(tmp_path):
    data = SourceData(Gathers(), test=Gathers(X_TEST, Y_TEST), batch_size=32)
    model = kept.model(build_model, "lenet")
    trainer = Trainer(max_epochs=1, run_dir=tmp_path / "run", enable_progress_bar=False)
    result = trainer.fit(model, data)
    found = trainer.test(model, data)
    arrays = ArrayData(X, Y, test=(X_TEST, Y_TEST), batch_size=32)
    assert found == trainer.test(model, arrays)
    summary = result.summary
    assert (summary["pipeline"], summary["dataset"]["read"]) == ("stream", "as it is needed")
    assert (tmp_path / "run" / "plots" / "mistakes.png").exists()
    with pytest.raises(UserError, match="tta needs the images in memory"):
        trainer.test(model, data, tta="mirror")


def test_a_batch_of_keras_own_sequence_is_read_into_memory(monkeypatch):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 7

        def __getitem__(self, i):
            return X[32 * i :][:32], Y[32 * i :][:32]

    module = as_datamodule(Batches())
    assert (module.batch_size, module.train.in_memory) == (32, True)
    assert np.array_equal(np.sort(module.train.x, 0), np.sort(as_datamodule((X, Y)).train.x, 0))
    with pytest.raises(UserError, match="Batches is a PyDataset, which gives whole batches"):
        SourceData(Batches()).setup()
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(given.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"about 0\.0 GB, more than half .* one example"):
        as_datamodule(Batches())


class DataLoader:
    def __len__(self):
        return 3

    def __iter__(self):
        yield X, Y


class IterableDataset:
    def __iter__(self):
        yield X[0], Y[0]


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        trained(SourceData(source, batch_size=32, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DataLoader(), "SourceData(loader.dataset"),
        (IterableDataset(), "has no length"),
        (Pairs(length=0), "no example"),
        (Pairs(lambda i: (X[i], 1, 2, 3)), "gives 4 things"),
        (Pairs(lambda i: {"pixels": X[i], "label": 1}), "pixels, label; an image and a label"),
        (
            Pairs(lambda i: (X[i, i // 150 :], 1)),
            "is of [27, 28, 1] uint8",
        ),
        (Pairs(lambda i: (X[i].astype(np.float32) / 255, int(Y[i]))), "the model divides by 255"),
        (Pairs(lambda i: (X[i], int(Y[i]) + i // 150)), "hold 10 in"),
        (Pairs(lambda i: (X[i], str(Y[i]))), "dtype <U1"),
        (Column(labels=np.roll(Y, 1)), "where the column of labels has"),
        (Gathers(Y, Y), "the model takes"),
        (Gathers(X[:150], Y, identity="short"), "is out of bounds"),
    ],
)
def test_what_cannot_be_trained_on_is_named(source, words):
    try:
        message = refusal(source)
    except IndexError as error:  # the source's own
        message = str(error)
    assert words in message


def test_a_wrong_label_that_comes_late_is_named_with_its_place():
    """Beyond the first examples, which are looked at before anything is compiled."""
    y = np.where(np.arange(200) >= 100, Y + 5, Y)
    message = refusal(Gathers(X, y), validation=0.0)
    assert "streamed (from step 1 of the epoch on) labels hold 10, 11" in message


def test_an_image_that_breaks_off_is_named_when_it_comes(tmp_path, monkeypatch):
    for i in range(64):
        path = tmp_path / "train" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encoded(X[i])
        path.write_bytes(content[: len(content) // 2] if i == 40 else content)
    (tmp_path / "train" / "1" / "41.png").write_text("no image at all")
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    data = FolderData(tmp_path, batch_size=32, validation=0.0)
    assert "1 images that cannot be read are left out" in data.setup().source.note
    with pytest.raises(UserError, match=r"40\.png \(.*mend or remove it"):
        trained(data)


def test_values_that_change_are_told():
    rng = np.random.default_rng(0)
    noisy = Pairs(lambda i: (X[i] ^ rng.integers(0, 9, dtype=np.uint8), int(Y[i])))
    note = SourceData(noisy, batch_size=32).source.note
    assert "other values for the same example each time" in note
    assert SourceData(Pairs(), batch_size=32).source.note is None


def test_a_source_is_known_by_its_identity_or_its_contents():
    def known(source):
        return SourceData(source, batch_size=32).source.sha256

    assert known(Pairs()) == known(Pairs())
    assert known(Pairs()) != known(Pairs(lambda i: (X[i] + 1, int(Y[i]))))
    assert known(Gathers()) == known(Gathers(X + 1)) != known(Gathers(identity="another"))


def test_images_of_several_sizes_and_colours_are_brought_to_one():
    def example(i):
        shape = (20 + i % 3, 30) if i % 2 else (20, 30, 3)
        return Image.fromarray(np.full(shape, i, np.uint8)), i % 10

    data = SourceData(Pairs(example), image_size=(10, 15), color="rgb", batch_size=32)
    assert data.train.x.shape == (180, 10, 15, 3)
    assert data.train.x[[3, 4]].shape == (2, 10, 15, 3)
    words = "bring images to one"
    with pytest.raises(UserError, match=words):
        SourceData(Pairs(example), batch_size=32).train.x[:]
    floats = Pairs(lambda i: (X[i].astype(np.float32), 1))
    with pytest.raises(UserError, match=r"uint8.*ToTensor"):
        SourceData(floats, image_size=10, batch_size=32).setup()


@pytest.mark.parametrize("name", ["torch", "datasets", "grain"])
def test_the_libraries_own(name, from_arrays):
    library = pytest.importorskip(name)
    if name == "torch":
        labels = library.as_tensor(Y)
        train = library.utils.data.TensorDataset(library.as_tensor(X.transpose(0, 3, 1, 2)), labels)
    elif name == "grain":
        train = library.MapDataset.source(Pairs()).map(lambda pair: pair)
    else:
        names = library.ClassLabel(names=[str(i) for i in range(10)])
        features = library.Features({"image": library.Image(), "label": names})
        png = [{"bytes": encoded(image), "path": None} for image in X]
        train = library.Dataset.from_dict({"image": png, "label": Y}, features=features)
    data = SourceData(train, validation=(X_TEST, Y_TEST), batch_size=32, augment="flip,crop")
    assert trained(data) == from_arrays
