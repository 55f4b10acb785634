"""A variational autoencoder (Kingma and Welling, 2013): a map of garments, and new ones from it.

Run it with ``python -m fmnist_keras3.examples.vae``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fmnist_keras3 import DataModule, FashionMNIST, Module, Trainer, seed_everything
from fmnist_keras3.evaluation.sheets import scatter, sheet


class VAE(Module):
    """Places an image on a map of two coordinates, and draws an image for each place of the map."""

    def __init__(self) -> None:
        super().__init__()
        # The encoder gives a mean and a log variance for each of the two coordinates.
        self.encoder = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Flatten(),
                layers.Dense(512, "relu"),
                layers.Dense(256, "relu"),
                layers.Dense(4),
            ]
        )
        self.decoder = keras.Sequential(
            [
                layers.Dense(256, "relu"),
                layers.Dense(512, "relu"),
                layers.Dense(784),  # logits of pixels
                layers.Reshape((28, 28, 1)),
            ]
        )
        self.noise = keras.random.SeedGenerator(0)  # its state is resumed, too

    def call(self, x: Any) -> Any:
        return self.encoder(x)[:, :2]  # where on the map it lies

    def training_step(self, batch: Any) -> Any:
        x, _ = batch
        mean, log_variance = ops.split(self.encoder(x), 2, axis=-1)
        noise = keras.random.normal(ops.shape(mean), seed=self.noise)
        logits = self.decoder(mean + ops.exp(log_variance / 2) * noise)
        # Both terms in nats an image: the sum is the negative ELBO.
        pixels = ops.binary_crossentropy(x / 255, logits, from_logits=True)
        rebuilding = ops.mean(ops.sum(pixels, axis=(1, 2, 3)))
        divergence = (ops.square(mean) + ops.exp(log_variance) - log_variance - 1) / 2
        divergence = ops.mean(ops.sum(divergence, axis=-1))
        self.log_dict({"rebuilding": rebuilding, "divergence": divergence})
        return rebuilding + divergence

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(1e-3), "cosine"


def main(
    epochs: int = 10, run_dir: str | Path = "runs/vae", data: DataModule | None = None
) -> dict[str, float]:
    """Return the ELBO on the test images, in nats an image, and its two terms."""
    seed_everything(0)
    data, model = data or FashionMNIST(), VAE()
    trainer = Trainer(max_epochs=epochs, run_dir=run_dir)
    trainer.fit(model, data, ckpt_path="auto")
    found = trainer.test(model, data)
    subtitle = f"ELBO of the test images: {-found['loss']:.1f} nats"
    synthetic = data.source.name == "synthetic"

    test: Any = data.test
    places = trainer.predict(model, test.x)
    names, axes = data.source.class_names, ("first coordinate", "second coordinate")
    path = Path(run_dir) / "map.png"
    scatter(places, test.y, names, path, "Test images on the map", subtitle, *axes, synthetic)
    # A grid that is finer where there are more garments: its cells are equally likely.
    steps = [NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)]
    grid = np.asarray([[(a, b) for a in steps] for b in reversed(steps)], "float32")
    made = ops.sigmoid(model.decoder(grid.reshape(-1, 2)))
    made = ops.convert_to_numpy(made).reshape(16, 16, 28, 28, 1)
    sheet([made], path.with_name("vae.png"), "Drawn from all over the map", subtitle, (), synthetic)
    return {"elbo": -found["loss"]} | {k: found[k] for k in ("rebuilding", "divergence")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--run_dir", default="runs/vae")
    print(main(**vars(parser.parse_args())))
