"""Distillation (Hinton et al., 2015): a small student learns from what a trained teacher answers.

Run it with ``python -m fmnist_keras3.examples.distill``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from fmnist_keras3 import (
    ArrayData,
    DataModule,
    FashionMNIST,
    Module,
    Trainer,
    build_model,
    seed_everything,
)
from fmnist_keras3.evaluation.plots import compare


class Student(Module):
    """A small net, to which the teacher's answers count ``trust``, and the labels the rest."""

    def __init__(self, trust: float, temperature: float = 2.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.trust, self.temperature = trust, temperature
        self.net = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def call(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        logits = self(x)
        self.accuracy.update_state(y["label"], logits)
        entropy = keras.losses.sparse_categorical_crossentropy
        of_labels = ops.mean(entropy(y["label"], logits, from_logits=True))
        # A temperature lets the small probabilities count: which garments are like which.
        soft = ops.softmax(y["teacher"] / self.temperature)
        entropy = keras.losses.categorical_crossentropy
        of_teacher = ops.mean(entropy(soft, logits / self.temperature, from_logits=True))
        # The square makes up for the gradients, which the temperature makes smaller.
        return (1 - self.trust) * of_labels + self.trust * self.temperature**2 * of_teacher

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(3e-3), "cosine"


def main(
    epochs: int = 5,
    run_dir: str | Path = "runs/distill",
    data: DataModule | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the validation accuracies of the teacher, its student, and the same one alone."""
    data, folder = data or FashionMNIST(), Path(run_dir)
    teacher = build_model("cnn")
    trainer = Trainer(max_epochs=epochs, schedule="cosine", run_dir=folder / "teacher")
    curves = {"teacher": trainer.fit(teacher, data, ckpt_path="auto").history}
    found = {"teacher": trainer.validate(teacher, data)["accuracy"]}

    # The teacher answers once; its logits go with the labels.
    def taught(split: Any) -> tuple[Any, Any]:
        return split.x, {"label": split.y, "teacher": trainer.predict(teacher, split.x)}

    answers = ArrayData(*taught(data.train), validation=taught(data.validation), seed=seed)
    for name, trust in (("student", 0.5), ("alone", 0.0)):
        seed_everything(seed)  # the two begin with the same weights
        trainer = Trainer(max_epochs=epochs, run_dir=folder / name, seed=seed)
        student = Student(trust)
        curves[name] = trainer.fit(student, answers, ckpt_path="auto").history
        found[name] = trainer.validate(student, answers)["accuracy"]

    compare(
        curves,
        folder / "distill.png",
        f"A student of {student.count_params():,} weights and its teacher",
        data.source.name == "synthetic",
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--run_dir", default="runs/distill")
    print(main(**vars(parser.parse_args())))
