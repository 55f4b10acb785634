"""Contrastive learning (SimCLR, Chen et al., 2020): features learnt without a label.

Run it with ``python -m fmnist_keras3.examples.simclr``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops
from sklearn.manifold import TSNE

from fmnist_keras3 import ArrayData, DataModule, FashionMNIST, Module, Trainer, seed_everything
from fmnist_keras3.evaluation.sheets import scatter

AUGMENT = "flip,crop:2,brightness:0.4,contrast:0.4,erase:0.8"  # in what two views may differ
MAPPED = 3000  # test images on the map


class SimCLR(Module):
    """Learns to find, among all views of a batch, the other one of the same image."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.temperature = temperature
        self.encoder = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(128, 3, activation="relu"),
                layers.Flatten(),
            ]
        )
        # Of the head nothing is used later: it may forget what the two views differ in.
        self.head = keras.Sequential([layers.Dense(128, "relu"), layers.Dense(64)])

    def call(self, x: Any) -> Any:
        return self.encoder(x)

    def training_step(self, batch: Any) -> Any:
        (one, two), _ = batch  # the labels are not needed
        z = self.head(self.encoder(ops.concatenate([one, two])))
        z = z / ops.norm(z, axis=-1, keepdims=True)
        count = z.shape[0]
        # NT-Xent: cross-entropy of telling which of the others is the partner.
        alike = ops.matmul(z, ops.transpose(z)) / self.temperature
        others = alike - 1e9 * ops.eye(count)
        partner = ops.sum(z * ops.roll(z, count // 2, axis=0), axis=-1) / self.temperature
        found = ops.equal(ops.max(others, axis=-1), partner)
        self.log("found", ops.mean(ops.cast(found, "float32")), prog_bar=True)
        return ops.mean(ops.logsumexp(others, axis=-1) - partner)

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(2e-3), "cosine"


def probe(model: Module, data: Any, run_dir: Path) -> dict[str, float]:
    """Return what a linear classifier of the features reaches, which moves no weight of them."""
    trainer = Trainer(max_epochs=10, schedule="cosine", run_dir=run_dir)
    train, *others = (
        (trainer.predict(model, split.x), split.y)
        for split in (data.train, data.validation, data.test)
    )
    size = min(256, len(train[0]))
    features = ArrayData(*train, validation=others[0], test=others[1], batch_size=size)
    scaled = layers.BatchNormalization(center=False, scale=False)
    classes = len(data.source.class_names)
    linear = keras.Sequential([keras.Input(train[0].shape[1:]), scaled, layers.Dense(classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    linear.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    trainer.fit(linear, features, ckpt_path="auto")
    validation = trainer.validate(linear, features)["accuracy"]
    return {"accuracy": trainer.test(linear, features)["accuracy"], "validation": validation}


def main(
    epochs: int = 10, run_dir: str | Path = "runs/simclr", data: DataModule | None = None
) -> dict[str, float]:
    """Return a linear probe's accuracy on the test and on the validation images.

    "accuracy_untrained" is that of a probe of the same net before its training.
    """
    seed_everything(0)
    folder = Path(run_dir)
    data = (data or FashionMNIST(256, AUGMENT, views=2)).setup()
    model = SimCLR()
    before = probe(model, data, folder / "untrained")
    # The loss needs two views, of which a validation has none: the probe says how good it is.
    trainer = Trainer(
        max_epochs=epochs, run_dir=folder / "simclr", limit_val_batches=0, last_batch="drop"
    )
    trainer.fit(model, data, ckpt_path="auto")
    after = probe(model, data, folder / "probe")

    test: Any = data.test
    features = trainer.predict(model, test.x[:MAPPED])
    near = TSNE(init="pca", random_state=0, perplexity=min(30, len(features) // 4))
    scatter(
        near.fit_transform(features),
        test.y[:MAPPED],
        data.source.class_names,
        folder / "simclr.png",
        "Features of test images, learnt without a label",
        f"t-SNE; a linear probe of them tells {after['accuracy']:.2%} of the classes, "
        f"of the untrained net's {before['accuracy']:.2%}",
        "near is alike; the axes mean nothing else",
        "",
        synthetic=data.source.name == "synthetic",
    )
    return {
        "accuracy": after["accuracy"],
        "validation_accuracy": after["validation"],
        "accuracy_untrained": before["accuracy"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--run_dir", default="runs/simclr")
    print(main(**vars(parser.parse_args())))
