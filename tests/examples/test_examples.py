"""The examples: what they measure gets better, their pictures are drawn, and they go on."""

import json
from functools import partial
from importlib import import_module

import numpy as np
import pytest
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
    return lambda: ArrayData(x, y, test=(x[:60], y[:60]), batch_size=20)


def main(name):
    return import_module(f"fmnist_keras3.examples.{name}").main


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_figure_gets_better_and_its_picture_is_drawn(name, tmp_path, data):
    measured, more_is_better, pictures = EXAMPLES[name]
    early = main(name)(epochs=1, run_dir=tmp_path / "early", data=data())[measured]
    late = main(name)(epochs=5, run_dir=tmp_path / "late", data=data())[measured]
    assert late > early if more_is_better else late < early
    for picture in pictures:
        with Image.open(tmp_path / "late" / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10


class Killed(Callback):
    """Ends the program when the second epoch begins."""

    def on_train_epoch_start(self, fit):
        if fit.position.epoch == 1:
            raise MemoryError("killed")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_goes_on_where_it_was_to_the_same_bits(name, tmp_path, data, monkeypatch):
    whole = main(name)(epochs=2, run_dir=tmp_path / "whole", data=data())
    example = import_module(f"fmnist_keras3.examples.{name}")
    with monkeypatch.context() as patch:
        patch.setattr(example, "Trainer", partial(Trainer, callbacks=Killed()))
        with pytest.raises(MemoryError):
            example.main(epochs=2, run_dir=tmp_path / "part", data=data())
    assert [r["epoch"] for r in records(tmp_path / "part") if r["event"] == "train"] == [1]
    assert example.main(epochs=2, run_dir=tmp_path / "part", data=data()) == whole
