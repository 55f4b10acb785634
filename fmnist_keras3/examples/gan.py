"""A generative adversarial network (Goodfellow et al., 2014): two networks, two optimizers.

Run it with ``python -m fmnist_keras3.examples.gan``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fmnist_keras3 import DataModule, FashionMNIST, Module, Trainer, seed_everything
from fmnist_keras3.evaluation.sheets import sheet

NOISE = 64  # numbers that a garment is made of


class GAN(Module):
    """A generator makes garments of noise, for a critic that learns to tell them from real ones."""

    def __init__(self) -> None:
        super().__init__()
        # Dense layers: convolutions as small took ten times as long, with JAX on two cores.
        self.generator = keras.Sequential(
            [
                layers.Dense(128),
                layers.LeakyReLU(0.2),
                layers.Dense(512),
                layers.LeakyReLU(0.2),
                layers.Dense(784, "sigmoid"),
                layers.Reshape((28, 28, 1)),
            ]
        )
        self.critic = keras.Sequential(
            [
                layers.Rescaling(2, offset=-1),  # else black pixels would move no weight
                layers.Flatten(),
                layers.Dense(512),
                layers.LeakyReLU(0.2),
                layers.Dropout(0.3, seed=1),
                layers.Dense(128),
                layers.LeakyReLU(0.2),
                layers.Dropout(0.3, seed=2),
                layers.Dense(1),  # a logit: real, rather than made
            ]
        )
        self.noise = keras.random.SeedGenerator(0)

    def call(self, noise: Any) -> Any:
        return self.generator(noise)

    def training_step(self, batch: Any, optimizer: str) -> Any:
        x, _ = batch
        noise = keras.random.normal((ops.shape(x)[0], NOISE), seed=self.noise)
        made = self.critic(self.generator(noise))
        if optimizer == "generator":
            loss = ops.mean(ops.softplus(-made))  # it wants the critic to take them for real
        else:
            real = self.critic(x / 255)
            loss = (ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(made))) / 2
        self.log(f"{optimizer}_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return {
            "critic": (keras.optimizers.Adam(4e-4, beta_1=0.5), self.critic),
            "generator": (keras.optimizers.Adam(4e-4, beta_1=0.5), self.generator),
        }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance of two sets of images ``[N, 28, 28, 1]``, in 0..1.

    That of their pixels, as if these were normally distributed: it sees whether all kinds of
    garments are made, as often as there are, but not well whether they are sharp. (Of the features
    of an Inception network instead of pixels it would be the FID.)
    """
    a, b = (images.reshape(len(images), -1).astype("float64") for images in (a, b))
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * root)


def main(
    epochs: int = 12, run_dir: str | Path = "runs/gan", data: DataModule | None = None
) -> dict[str, float]:
    """Return how far 5,000 samples are from real images, and these from others; see `distance`."""
    seed_everything(0)
    data, model = data or FashionMNIST(), GAN()
    # There is nothing to validate: neither loss says how good the garments are.
    trainer = Trainer(max_epochs=epochs, run_dir=run_dir, limit_val_batches=0)
    trainer.fit(model, data, ckpt_path="auto")

    test: Any = data.test
    noise = np.random.default_rng(0).normal(size=(5000, NOISE)).astype("float32")
    made = trainer.predict(model, noise)
    real, others = test.x / 255, data.train.x[:5000] / 255
    found = {"distance": distance(made, real), "distance_of_real_ones": distance(others, real)}
    sheet(
        [made[:64].reshape(8, 8, 28, 28, 1)],
        Path(run_dir) / "gan.png",
        "Garments made of noise",
        "Frechet distance {:.2f}; of real ones {:.2f}".format(*found.values()),
        synthetic=data.source.name == "synthetic",
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--run_dir", default="runs/gan")
    print(main(**vars(parser.parse_args())))
