"""Two tasks from one trunk: what a garment is, and how bright its image.

Run it with ``python -m fmnist_keras3.examples.multitask``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fmnist_keras3 import DataModule, FashionMNIST, Module, Trainer, seed_everything
from fmnist_keras3.evaluation.sheets import scatter


class TwoTasks(Module):
    """A trunk with two heads; ``share`` is the weight of the second task's loss."""

    def __init__(self, share: float = 10.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.share = share
        self.trunk = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(64, "relu"),
            ]
        )
        self.garment, self.brightness = layers.Dense(10), layers.Dense(1)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def call(self, x: Any) -> Any:
        features = self.trunk(x)
        return {"garment": self.garment(features), "brightness": self.brightness(features)[:, 0]}

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        outputs = self(x)
        losses = keras.losses.sparse_categorical_crossentropy(
            y, outputs["garment"], from_logits=True
        )
        errors = outputs["brightness"] - ops.mean(x / 255, axis=(1, 2, 3))
        self.accuracy.update_state(y, outputs["garment"])
        self.log("error", 255 * ops.mean(ops.abs(errors)))  # in grey levels, 0..255
        return ops.mean(losses) + self.share * ops.mean(ops.square(errors))

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(2e-3), "cosine"


def main(
    epochs: int = 5, run_dir: str | Path = "runs/multitask", data: DataModule | None = None
) -> dict[str, float]:
    """Return accuracy and mean absolute error, in grey levels, and that of the mean brightness."""
    seed_everything(0)
    data, model = data or FashionMNIST(), TwoTasks()
    trainer = Trainer(max_epochs=epochs, run_dir=run_dir)
    trainer.fit(model, data, ckpt_path="auto")

    outputs = trainer.test(model, data)
    test: Any = data.test
    true = test.x.mean(axis=(1, 2, 3))
    points = np.stack([true, 255 * trainer.predict(model, test.x)["brightness"]], axis=1)
    plain = float(np.abs(true - data.train.x.mean()).mean())
    scatter(
        points,
        test.y,
        data.source.class_names,
        Path(run_dir) / "multitask.png",
        "The brightness of test images, and what the model says it is",
        f"accuracy {outputs['accuracy']:.2%}; error {outputs['error']:.1f} grey levels, "
        f"of the mean brightness {plain:.1f}",
        "mean of the pixels",
        "predicted",
        synthetic=data.source.name == "synthetic",
    )
    names = "accuracy", "error"
    return {name: outputs[name] for name in names} | {"error_of_the_mean": plain}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--run_dir", default="runs/multitask")
    print(main(**vars(parser.parse_args())))
