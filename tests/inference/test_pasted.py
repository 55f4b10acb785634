"""Test images pasted on backgrounds are told nearly as well as they are themselves."""

import numpy as np
import pytest

from bench.pasted import BACKGROUNDS, paste
from bench.pictures import measure
from fmnist_keras3 import FashionMNIST, Predictor, Trainer, build_model, load_run
from fmnist_keras3.inference import pictures
from fmnist_keras3.inference.preparation import prepared, shrunk

# How much less than of the images themselves; measured with a trained model in
# bench/results/predict: at most 0.03.
LESS = {"white": 0.05, "grey": 0.08, "coloured": 0.08, "black": 0.05}
LESS |= {"gradient": 0.1, "textured": 0.1, "wooden": 0.1}


@pytest.mark.real_data
@pytest.mark.slow
def test_pasted_test_images(fashion_dir, tmp_path):
    data = FashionMNIST(data_dir=fashion_dir, batch_size=64)
    trainer = Trainer(2, run_dir=tmp_path / "run", enable_progress_bar=False)
    trainer.fit(build_model("lenet"), data)
    found = measure(Predictor(load_run(tmp_path / "run")), data.test.take(slice(100)), LESS)
    direct = found.pop("direct")
    assert direct > 0.8
    too_low = {name: value for name, value in found.items() if value < direct - LESS[name]}
    assert not too_low, (direct, found)


@pytest.mark.parametrize("filling", [False, True])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_shape_is_found_on_each_background(background, filling, tmp_path):
    """A dark garment fills the image as it did before it was pasted."""
    image = np.zeros((28, 28), np.uint8)
    image[0:28, 8:20] = image[2:10, 1:27] = 230
    rng = np.random.default_rng(1)
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(paste(image, background, rng, filling))
        found = prepared(shrunk(pictures.read(path)), (28, 28))
        overlap = ((found > 99) & (image > 99)).sum() / ((found > 99) | (image > 99)).sum()
        assert overlap > 0.85
