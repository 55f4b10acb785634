"""An autoencoder, Lightning's first page: garments squeezed into 16 numbers, and rebuilt of them.

Run it with ``python -m fmnist_keras3.examples.autoencoder``.
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


class Autoencoder(Module):
    """Learns to give back the image ``[B, 28, 28, 1]``, in 0..1, that it is given in 0..255."""

    def __init__(self, numbers: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Flatten(),
                layers.Dense(256, "relu"),
                layers.Dense(numbers),
            ]
        )
        self.decoder = keras.Sequential(
            [
                layers.Dense(256, "relu"),
                layers.Dense(784, "sigmoid"),
                layers.Reshape((28, 28, 1)),
            ]
        )

    def call(self, x: Any) -> Any:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any) -> Any:
        x, _ = batch  # the labels are not needed
        return ops.mean(ops.square(self(x) - x / 255))

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(2e-3), "cosine"


def main(
    epochs: int = 10, run_dir: str | Path = "runs/autoencoder", data: DataModule | None = None
) -> dict[str, float]:
    """Return the mean squared error of pixels in 0..1, and that of the mean image beside it."""
    seed_everything(0)
    data, model = data or FashionMNIST(), Autoencoder()
    trainer = Trainer(max_epochs=epochs, run_dir=run_dir)
    trainer.fit(model, data, ckpt_path="auto")

    test: Any = data.test
    x = test.x
    error = trainer.test(model, data)["loss"]
    plain = float(np.mean(np.square((x - data.train.x.mean(axis=0)) / 255)))
    rebuilt = trainer.predict(model, x[:36])
    sheet(
        [np.stack([x[i : i + 12] / 255, rebuilt[i : i + 12]]) for i in range(0, len(rebuilt), 12)],
        Path(run_dir) / "autoencoder.png",
        "Test images, and below each what was rebuilt of 16 numbers",
        f"mean squared error {error:.4f}; of the mean image {plain:.4f}",
        synthetic=data.source.name == "synthetic",
    )
    return {"error": error, "error_of_the_mean_image": plain}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--run_dir", default="runs/autoencoder")
    print(main(**vars(parser.parse_args())))
