"""Own images through the commands: what the README shows, colour sets, a set that changes."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3 import load_run
from fmnist_keras3.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/data"))
from written import encoded, examples, write  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty working folder, with settings for short runs in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    short = {"EPOCHS": 1, "LIMIT_TRAIN_BATCHES": 2, "BATCH_SIZE": 16, "LIMIT_VAL_BATCHES": 1}
    for name, value in short.items():
        monkeypatch.setenv(f"FMNIST_{name}", str(value))
    return tmp_path


def photos(folder):
    """Colour images of several sizes, the classes told by their colour."""
    rng = np.random.default_rng(0)
    for i in range(60):
        image = rng.integers(0, 60, (*rng.integers(30, 50, 2), 3), np.uint8)
        image[..., i % 3] += 150
        path = folder / ("red", "green", "blue")[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "jpeg"))


def test_what_the_readme_shows(inside, capsys, monkeypatch):
    monkeypatch.setenv("FMNIST_FAST_DEV_RUN", "1")
    part = (ROOT / "README.md").read_text().split("### Your own images")[1].split("\n## ")[0]
    part, larger = part.split("### Larger than memory")
    (commands,), (program,), (source,) = (
        re.findall(f"```{kind}\n(.*?)```", text, re.DOTALL)
        for kind, text in (("bash", part), ("python", part), ("python", larger))
    )
    photos(inside / "photos")
    write(inside / "tables", "csv", *examples())
    (inside / "tables/fashion-mnist_train.csv").rename("fashion-mnist_train.csv")
    write(inside / "arrays", "npz", *examples())
    (inside / "arrays/set.npz").rename("digits.npz")
    write(inside / "emnist", "idx", *examples())
    for path in (inside / "emnist").iterdir():
        path.rename(path.with_name(f"emnist-digits-{path.name}"))
    write(inside / "cifar", "parquet", *examples(size=(32, 32), channels=3))
    lines = [line for line in commands.splitlines() if line]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "fmnist"
        assert main(words[1:]) == 0, line
    text = capsys.readouterr().out
    assert "2 red" in text
    assert "The labels are texts; their classes are 0 blue, 1 green, 2 red." in text
    exec(compile(program, "README.md", "exec"), {})
    exec(compile(source, "README.md", "exec"), {})


def cifar(folder):
    """As Hugging Face has CIFAR-10: Parquet with encoded images "img", labels, and their names."""
    import pyarrow
    import pyarrow.parquet

    x, y, x_test, y_test = examples(160, 40, 2, (32, 32), 3)
    names = {"names": ["airplane", "automobile"], "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": {"img": {"_type": "Image"}, "label": names}}})
    (folder / "plain_text").mkdir(parents=True)
    for split, images, labels in (("train", x, y), ("test", x_test, y_test)):
        rows = [{"bytes": encoded(image), "path": None} for image in images]
        table = pyarrow.table({"img": rows, "label": labels.astype(np.int64)})
        table = table.replace_schema_metadata({"huggingface": about})
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, path)
    return [f"parquet:{folder}/plain_text"]


def imagenette(folder):
    """As fast.ai packs it: JPEG files of many sizes, some grey, below train and val by synset."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 160), ("val", 40)):
        for i in range(count):
            image = rng.integers(0, 100, (*rng.integers(40, 70, 2), 3), np.uint8)
            height = len(image) // 2
            image[height * (i % 2) :][:height] += 150
            name = ("n01440764", "n02102040")[i % 2]
            path = folder / split / name / f"ILSVRC2012_{split}_{i:08}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image[..., :1] if i % 9 == 0 else image, "jpeg"))
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return [f"folder:{folder}", "--image_size", "32"]


@pytest.mark.parametrize("model", ["resnet:depth=8,width=4", "airnet:widths=8-16,whiten=2"])
@pytest.mark.parametrize("write_set", [cifar, imagenette], ids=lambda f: f.__name__)
def test_a_colour_set_is_learnt(inside, monkeypatch, model, write_set):
    data = write_set(inside / "set")
    for name in ("LIMIT_TRAIN_BATCHES", "LIMIT_VAL_BATCHES"):
        monkeypatch.delenv(f"FMNIST_{name}")
    words = ["train", "--data", *data, "--model", model, "--epochs", "3", "--run_dir", "run"]
    assert main([*words, "--augment", "none", "--warmup", "0", "--lr", "0.01"]) == 0
    summary = load_run("run").summary
    assert summary["dataset"]["image_shape"] == [32, 32, 3]
    assert summary["dataset"]["test"] == 40
    assert summary["test_accuracy"] > 0.9
    assert not any(name.isdigit() for name in summary["dataset"]["classes"])
    assert main(["evaluate", "run"]) == 0


def test_a_set_that_changed_is_named_on_resume(inside, capsys):
    photos(inside / "photos")
    words = ["train", "--data", "folder:photos", "--image_size", "16", "--model", "lenet"]
    assert main([*words, "--run_dir", "run", "--epochs", "1"]) == 0
    config = (inside / "run/config.yaml").read_text()
    assert f"data: folder:{inside}/photos" in config
    assert main(["evaluate", "run"]) == 0
    more = ["train", "--resume", "last", "--run_dir", "run", "--epochs", "2"]
    (inside / "photos").rename("moved")
    assert main([*more, "--data", "folder:moved"]) == 0  # the same images, elsewhere
    image = inside / "moved/red/0.jpg"
    image.write_bytes(encoded(np.zeros((30, 30, 3), np.uint8), "jpeg"))
    capsys.readouterr()
    assert main([*more[:-1], "3", "--data", "folder:moved"]) == 2
    message = capsys.readouterr().err
    assert "started with sha256" in message
    assert f"The data is folder:moved from {inside}/moved" in message
    assert main([*more, "--data", "folder:moved", "--color", "grey"]) == 2
    assert "color was 'auto'" in capsys.readouterr().err


def test_rare_classes_are_warned_of(inside, capsys):
    photos(inside / "photos")
    for i in range(3, 60, 3):
        (inside / f"photos/red/{i}.jpg").unlink()
    assert main(["data", "--data", "folder:photos", "--image_size", "16"]) == 0
    text = capsys.readouterr().out
    assert "Warning: blue has 18 training examples, red only 1." in text
    assert main(["data", "--data", "folder:photos", "--image_size", "none of"]) == 2
    assert main(["data", "--data", "folder:photos", "--color", "blue"]) == 2
    assert main(["data", "--data", "folder:photos"]) == 2
    assert "Type --image_size H,W" in capsys.readouterr().err


def test_a_model_for_larger_images_is_told(inside, capsys):
    data = write(inside / "small", "npz", *examples(size=(10, 10)))
    assert main(["train", "--data", data, "--model", "lenet"]) == 2
    message = capsys.readouterr().err
    assert "lenet takes images of 12x12 pixels or more; these have 10x10" in message
    words = ["--image_size", "12,12", "--model", "lenet", "--run_dir", "run"]
    assert main(["train", "--data", data, *words]) == 0
    assert json.loads((inside / "run/summary.json").read_text())["dataset"]["train"] == 180
