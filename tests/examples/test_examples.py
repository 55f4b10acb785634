"""The examples: what they measure gets better, their pictures are drawn, and they go on."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from keras import ops
from PIL import Image

from fmnist_keras3 import ArrayData, Callback, Trainer

# By example: what it measures, whether more of it is better, and its pictures.
EXAMPLES = {
    "autoencoder": ("error", False, ["autoencoder.png"]),
    "vae": ("elbo", True, ["vae.png", "map.png"]),
    "gan": ("distance", False, ["gan.png"]),
    "multitask": ("error", False, ["multitask.png"]),
}


@pytest.fixture
def data(tiny_data):
    x, y = tiny_data

    def made(name):
        options = {"augment": "crop:1,brightness:0.3", "views": 2} if name == "simclr" else {}
        return ArrayData(x, y, test=(x[:60], y[:60]), batch_size=20, **options)

    return made


def main(name):
    return import_module(f"fmnist_keras3.examples.{name}").main


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_figure_gets_better_and_its_picture_is_drawn(name, tmp_path, data):
    measured, more_is_better, pictures = EXAMPLES[name]
    early = main(name)(epochs=1, run_dir=tmp_path / "early", data=data(name))[measured]
    late = main(name)(epochs=5, run_dir=tmp_path / "late", data=data(name))[measured]
    assert late > early if more_is_better else late < early
    for picture in pictures:
        assert is_drawn(tmp_path / "late" / picture)


@pytest.mark.slow  # of three trainings
def test_simclr_finds_more_partners_and_draws_its_map(tmp_path, data):
    found = main("simclr")(epochs=5, run_dir=tmp_path, data=data("simclr"))
    losses = [r["loss"] for r in records(tmp_path / "simclr") if r["event"] == "train"]
    assert losses[-1] < losses[0]
    assert 0 < found["accuracy"] <= 1
    assert is_drawn(tmp_path / "simclr.png")


def test_a_student_minimises_what_it_is_asked_to_trust():
    student = import_module("fmnist_keras3.examples.distill").Student(0.75, temperature=2.0)
    rng = np.random.default_rng(0)
    x, answers = rng.integers(0, 256, (6, 28, 28, 1), dtype=np.uint8), 3 * rng.normal(size=(6, 10))
    y = np.arange(6, dtype="int32")
    logits = np.asarray(ops.convert_to_numpy(student(x)), "float64")

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    of_labels = -log_softmax(logits)[np.arange(6), y].mean()
    soft = np.exp(log_softmax(answers / 2))
    of_teacher = -(soft * log_softmax(logits / 2)).sum(-1).mean()
    loss = student.training_step((x, {"label": y, "teacher": answers.astype("float32")}))
    assert float(loss) == pytest.approx(0.25 * of_labels + 0.75 * 2**2 * of_teacher, rel=1e-5)


def test_students_are_taught_and_compared(tmp_path, data):
    found = main("distill")(epochs=8, run_dir=tmp_path, data=data("distill"), seeds=1)
    assert found["teacher"] > 0.5
    assert found["gain"] == pytest.approx(found["student"] - found["alone"])
    assert (tmp_path / "student-0/model.keras").exists()
    assert is_drawn(tmp_path / "distill.png")


def is_drawn(picture):
    with Image.open(picture) as image:
        return np.asarray(image.convert("L")).std() > 10


class Killed(Callback):
    """Ends the program when the second epoch begins."""

    def on_train_epoch_start(self, fit):
        if fit.position.epoch == 1:
            raise MemoryError("killed")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_goes_on_where_it_was_to_the_same_bits(name, tmp_path, data, monkeypatch):
    whole = main(name)(epochs=2, run_dir=tmp_path / "whole", data=data(name))
    example = import_module(f"fmnist_keras3.examples.{name}")
    with monkeypatch.context() as patch:
        patch.setattr(example, "Trainer", partial(Trainer, callbacks=Killed()))
        with pytest.raises(MemoryError):
            example.main(epochs=2, run_dir=tmp_path / "part", data=data(name))
    assert [r["epoch"] for r in records(tmp_path / "part") if r["event"] == "train"] == [1]
    assert example.main(epochs=2, run_dir=tmp_path / "part", data=data(name)) == whole


# Runs an example, and kills itself in the middle of an epoch of the fit that it is told.
PROGRAM = """
import json, os, signal, sys
from functools import partial
from importlib import import_module
import numpy as np
from fmnist_keras3 import ArrayData, Callback, ModelCheckpoint, Trainer

name, folder, doomed = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Killed(Callback):
    every_n_train_steps, fits = 1, 0

    def setup(self, fit):
        Killed.fits += 1

    def on_chunk_end(self, fit):
        if Killed.fits == doomed and fit.position.step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

rng = np.random.default_rng(0)
y = rng.permutation(np.arange(200, dtype=np.int32) % 10)
x = rng.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
views = {"augment": "crop:1,brightness:0.3", "views": 2} if name == "simclr" else {}
data = ArrayData(x, y, test=(x[:60], y[:60]), batch_size=20, **views)
example = import_module(f"fmnist_keras3.examples.{name}")
quiet = {"enable_progress_bar": False, "enable_model_summary": False}
saves = [ModelCheckpoint(every_n_train_steps=5), Killed()]
example.Trainer = partial(Trainer, callbacks=saves, **quiet)
few = {"seeds": 1} if name == "distill" else {}
print(json.dumps(example.main(epochs=2, run_dir=folder, data=data, **few)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXAMPLES, "simclr", "distill"])
def test_killed_in_an_epoch_it_ends_with_the_same_bits(name, backend, tmp_path):
    doomed = 1 if name in EXAMPLES else 2  # whose first fit is of a probe, or of the teacher

    def run(folder, fit=0):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        words = [sys.executable, "-c", PROGRAM, name, str(tmp_path / folder), str(fit)]
        ended = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert ended.returncode == (-signal.SIGKILL if fit else 0), ended.stderr
        return ended.stdout.splitlines()[-1:]

    def states(folder):
        files = sorted((tmp_path / folder).rglob("state.safetensors"))
        return {str(f.relative_to(tmp_path / folder)): f.read_bytes() for f in files}

    whole = run("whole")
    assert run("part", doomed) == []
    assert run("part") == whole
    assert states("part") == states("whole") != {}
