"""`python -m bench.families FOLDER [NAME...]` trains a model of each family for `bench.exports`.

A little, on the backend of this process, into FOLDER/NAME-BACKEND.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
from keras import layers, ops

from fmnist_keras3 import FashionMNIST, Module, Trainer, build_model, runtime

FAMILIES = ("baseline", "cnn", "airnet", "resnet", "module")
STEPS, BATCH = {"module": 4000}, 64
FEW = 400  # steps of the others, whose files do not differ more after many


@keras.saving.register_keras_serializable("bench.families")
class Convolutions(Module):
    """A small classifier, as a Module."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Conv2D(16, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(4),
                layers.Flatten(),
                layers.Dropout(0.2, seed=0),
            ]
        )
        self.head = layers.Dense(10)

    def call(self, x):
        return self.head(self.body(x))

    def training_step(self, batch):
        x, y = batch
        losses = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
        return ops.mean(losses)

    def configure_optimizers(self):
        return keras.optimizers.Adam(1e-3)


def train(folder: Path, name: str) -> None:
    """Train a model of the family into a run directory in ``folder``."""
    keras.utils.clear_session(free_memory=False)  # so that layers are called as in a new process
    model = Convolutions() if name == "module" else build_model(name, seed=0)
    data = FashionMNIST(batch_size=BATCH, augment=None, data="fashion_mnist")
    path = folder / f"{name}-{runtime.choose_backend()}"
    trainer = Trainer(max_steps=STEPS.get(name, FEW), run_dir=path, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.test(model, data)


def main() -> None:
    for name in sys.argv[2:] or FAMILIES:
        train(Path(sys.argv[1]), name)


if __name__ == "__main__":
    from bench import families  # whose class can be loaded by its name

    families.main()
