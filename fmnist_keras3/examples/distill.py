"""Distillation (Hinton et al., 2015): a small student learns from what a trained teacher answers.

One image in ten has a label, for all who learn here. The teacher, larger and with images that are
mirrored and moved, is trained on these; the student learns from them and from what the teacher
answers for all images. Its gain over a student alone is therefore that of the nine images, too,
which say nothing without a teacher. With all labels for both, a net so small gains hardly anything.

Run it with ``python -m fmnist_keras3.examples.distill``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
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
from fmnist_keras3.evaluation.figure import BLUE, GREY, ORANGE, figure


class Student(Module):
    """A small net, to which the teacher's answers count ``trust``, and the labels the rest.

    Labels are -1 where there is none.
    """

    def __init__(self, trust: float, temperature: float = 2.0, hidden: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.trust, self.temperature = trust, temperature
        self.net = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Flatten(),
                layers.Dense(hidden, "relu"),
                layers.Dense(10),
            ]
        )
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def call(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        logits, labels = self(x), y["label"]
        known = ops.cast(labels >= 0, "float32")
        self.accuracy.update_state(labels, logits, sample_weight=known)
        entropy = keras.losses.sparse_categorical_crossentropy
        losses = entropy(ops.maximum(labels, 0), logits, from_logits=True)
        of_labels = ops.sum(known * losses) / ops.maximum(ops.sum(known), 1)
        # A temperature lets the small probabilities count: which garments are like which.
        soft = ops.softmax(y["teacher"] / self.temperature)
        entropy = keras.losses.categorical_crossentropy
        of_teacher = ops.mean(entropy(soft, logits / self.temperature, from_logits=True))
        # The square makes up for the gradients, which the temperature makes smaller.
        return (1 - self.trust) * of_labels + self.trust * self.temperature**2 * of_teacher

    def configure_optimizers(self) -> Any:
        return keras.optimizers.Adam(2e-3), "cosine"


def main(
    epochs: int = 10,
    run_dir: str | Path = "runs/distill",
    data: DataModule | None = None,
    seeds: int = 5,
) -> dict[str, float]:
    """Return test accuracies: the teacher's, and of ``seeds`` students the mean, taught and alone.

    "gain" is the mean of what a student gains by its teacher, and "standard_error" that of it. A
    student that learns alone has the same first weights and batches, and of these the labels only.
    """
    seed_everything(0)
    data, folder = (data or FashionMNIST()).setup(), Path(run_dir)
    train: Any = data.train
    known = np.arange(len(train.y)) % 10 == 0
    shape, classes = train.image_shape, len(data.source.class_names)
    held: dict[str, Any] = {"validation": data.validation, "test": data.test}
    splits = {name: (split.x, split.y) for name, split in held.items()}
    size = min(data.batch_size, int(known.sum()))
    labelled = ArrayData(
        train.x[known], train.y[known], **splits, batch_size=size, augment="flip,crop:1"
    )
    teacher = build_model("cnn", input_shape=shape, classes=classes)
    trainer = Trainer(
        max_epochs=4 * epochs,
        schedule="cosine",
        check_val_every_n_epoch=4,
        run_dir=folder / "teacher",
    )
    trainer.fit(teacher, labelled, ckpt_path="auto")
    found = {"teacher": trainer.test(teacher, labelled)["accuracy"]}

    # The teacher answers once for each image; its logits go with the labels that there are.
    def taught(x: Any, y: Any) -> tuple[Any, Any]:
        return x, {"label": np.asarray(y, "int32"), "teacher": trainer.predict(teacher, x)}

    splits = {name: taught(*split) for name, split in splits.items()}
    answers = taught(train.x, np.where(known, train.y, -1))
    everything = ArrayData(*answers, **splits, batch_size=data.batch_size)
    accuracies: dict[str, list[float]] = {"student": [], "alone": []}
    for seed in range(seeds):
        for name, trust in (("student", 0.9), ("alone", 0.0)):
            seed_everything(seed)
            student = Student(trust)
            learns = Trainer(max_epochs=epochs, seed=seed, run_dir=folder / f"{name}-{seed}")
            learns.fit(student, everything, ckpt_path="auto")
            accuracies[name].append(learns.test(student, everything)["accuracy"])

    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    gains = np.subtract(accuracies["student"], accuracies["alone"])
    error = float(gains.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else 0.0
    found |= means | {"gain": float(gains.mean()), "standard_error": error}
    title = f"A net of {student.count_params():,} weights, with a teacher and alone"
    subtitle = "{:.2%} and {:.2%} of the test images on average; the teacher {:.2%}".format(
        *means.values(), found["teacher"]
    )
    synthetic = data.source.name == "synthetic"
    with figure(folder / "distill.png", (6.4, 3.2), title, subtitle, synthetic) as (_, body):
        axes = body.add_subplot()
        axes.set(xlabel="seed", ylabel="test accuracy, %", xticks=range(seeds))
        pairs = np.multiply(100, [*accuracies.values()])
        axes.vlines(range(seeds), *pairs, color=GREY, linewidth=1)
        for values, label, colour in zip(pairs, ("taught", "alone"), (BLUE, ORANGE), strict=True):
            axes.plot(range(seeds), values, "o", color=colour, label=label, markersize=7)
        body.legend(loc="outside right upper")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--run_dir", default="runs/distill")
    parser.add_argument("--seeds", type=int, default=5)
    print(main(**vars(parser.parse_args())))
