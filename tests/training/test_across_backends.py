"""One seed, one run, every backend: the same weights, batches and losses on JAX and TensorFlow."""

import os
import tempfile

import numpy as np
import pytest


def losses(model, data, steps, optimizer, augment="flip,crop,erase") -> list[float]:
    """Train ``model`` with its own dropout and with augmentation; returns the loss of each step."""
    from fmnist_keras3 import FashionMNIST, Trainer, build_model
    from fmnist_keras3.optimizers import make_optimizer

    lr = 0.05 if optimizer == "sgd" else 1e-3
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            run_dir=f"{folder}/run",
            log_every_n_steps=1,
            limit_val_batches=1,
            enable_progress_bar=False,
        )
        result = trainer.fit(
            build_model(model, optimizer=make_optimizer(optimizer, lr)),
            FashionMNIST(data=data, augment=augment, batch_size=128),
        )
    return [record["loss"] for record in result.history if record["event"] == "step"]


@pytest.mark.parametrize(
    ("model", "optimizer", "steps"),
    [
        ("baseline", "adamw", 100),
        ("lenet", "adamw", 50),
        pytest.param("lenet", "sgd", 50, marks=pytest.mark.slow),
        pytest.param("airnet:widths=16-32", "adamw", 50, marks=pytest.mark.slow),
        pytest.param("resnet:depth=8,width=32", "sgd", 20, marks=pytest.mark.slow),
    ],
)
def test_many_steps_have_the_same_losses(on_tensorflow, model, optimizer, steps):
    call = (model, "synthetic", steps, optimizer)
    here, there = np.array(losses(*call)), np.array(on_tensorflow(losses, *call))
    assert len(here) == steps
    assert here[-1] < here[0]
    # Measured: equal bits (jax 0.10.2, tensorflow 2.21). Other versions may round elsewhere.
    assert np.abs(here / there - 1).max() <= 1e-4


@pytest.mark.parametrize("augment", ["altflip,rotate,mixup", "contrast,cutmix,brightness"])
def test_mixed_labels_give_the_same_losses(on_tensorflow, augment):
    call = ("lenet", "synthetic", 50, "adamw", augment)
    here, there = np.array(losses(*call)), np.array(on_tensorflow(losses, *call))
    assert here[-1] < here[0]
    assert np.abs(here / there - 1).max() <= 1e-4


def losses_of_an_example(name, steps) -> list[float]:
    """Train the Module of an example, whose weights NumPy draws; returns the loss of each step."""
    from fmnist_keras3 import FashionMNIST, Trainer
    from fmnist_keras3.examples.autoencoder import Autoencoder
    from fmnist_keras3.examples.multitask import TwoTasks
    from fmnist_keras3.layers.initial import draw_weights

    module = {"autoencoder": Autoencoder, "multitask": TwoTasks}[name]()
    data = FashionMNIST(data="synthetic", augment=None, batch_size=128)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            run_dir=f"{folder}/run",
            log_every_n_steps=1,
            limit_val_batches=1,
            enable_progress_bar=False,
        )
        trainer.predict(module, data.setup().train.x[:1])  # which makes its weights
        draw_weights(module, 0)
        result = trainer.fit(module, data)
    return [record["loss"] for record in result.history if record["event"] == "step"]


# multitask has the same bits for twenty steps. Then one last bit differs, and the pooling and ReLUs
# of its convolutions make 4e-4 of that until step 80, as in any net that is moved by a last bit.
@pytest.mark.parametrize(("name", "steps"), [("autoencoder", 100), ("multitask", 40)])
def test_many_steps_of_a_module_have_the_same_losses(on_tensorflow, name, steps):
    here = np.array(losses_of_an_example(name, steps))
    there = np.array(on_tensorflow(losses_of_an_example, name, steps))
    assert len(here) == steps
    assert here[-1] < here[0]
    assert np.abs(here / there - 1).max() <= 1e-4


@pytest.mark.real_data
def test_a_hundred_steps_on_the_real_data_have_the_same_losses(on_tensorflow, fashion_dir):
    assert os.environ["FMNIST_DATA_DIR"] == str(fashion_dir)
    call = ("baseline", "auto", 100, "adamw")
    here, there = np.array(losses(*call)), np.array(on_tensorflow(losses, *call))
    assert np.abs(here / there - 1).max() <= 1e-4
