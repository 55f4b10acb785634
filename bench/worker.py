"""The process that measures one cell: a JSON spec as argument, a JSON result as the last line.

`prepare` writes what all cells share: the images, the plain Keras model and its initial weights.
Plain contestants take no more than that from us, and so run as they would on a user's machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.errors import UserError

LEARNING_RATE = 1e-3
VALIDATION = 2560  # images, at most
FLAGS = (
    "KERAS_BACKEND", "XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE", "TF_XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


class Clock:
    """Times the epochs of one cell; the first is warm-up. Seconds throughout.

    `start` and `stop` enclose an epoch's training, without validation; before `stop` and
    `first_step` the caller waits for the device.
    """

    def __init__(self) -> None:
        self.called = self._started = self._stopped = time.perf_counter()
        self._idle = 0.0
        self.epochs: list[dict[str, float]] = []
        self.first: dict[str, float] = {}

    def first_step(self) -> None:
        if not self.first:
            seconds = time.perf_counter() - self.called
            self.first = {"compile_seconds": seconds, "first_step": runtime.process_seconds()}

    def start(self) -> None:
        self._started = time.perf_counter()
        if self.epochs:
            self._idle += self._started - self._stopped

    def stop(self) -> None:
        self._stopped = time.perf_counter()
        elapsed = self._stopped - self.called - self._idle
        self.epochs.append({"seconds": self._stopped - self._started, "elapsed": elapsed})

    def validated(self, loss: float, accuracy: float) -> None:
        self.epochs[-1] |= {"loss": float(loss), "accuracy": float(accuracy)}


def arrays(spec: dict[str, Any]) -> list[np.ndarray]:
    """Return x and y for training, x and y for validation: uint8 [N,28,28,1] and int32 [N]."""
    with np.load(Path(spec["folder"]) / "data.npz") as data:
        return [data[name] for name in ("x", "y", "x_val", "y_val")]


def initial_weights(spec: dict[str, Any]) -> list[np.ndarray]:
    """Return the weights that every contestant starts from, in Keras' order."""
    with np.load(Path(spec["folder"]) / f"{spec['model']}-{spec['seed']}.npz") as weights:
        return [weights[f"arr_{i}"] for i in range(len(weights.files))]


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Write images, models and initial weights into the folder; returns what the data is."""
    from fmnist_keras3 import build_model
    from fmnist_keras3.data import sources, synthetic

    limit, batch, folder = spec["limit_train"], spec["batch_size"], Path(spec["folder"])
    if spec["data"] == "synthetic":
        source = synthetic.generate(train=(limit or 12_000) + VALIDATION)
    else:
        source = sources.load("fashion_mnist")
    order = np.random.default_rng(0).permutation(len(source.train))
    held = min(len(order) // 10, VALIDATION) // batch * batch
    validation = source.train.take(order[:held])
    rest = order[held:][: limit or None]
    train = source.train.take(rest[: len(rest) // batch * batch])  # whole batches for everybody
    if not (len(train) and held):
        raise UserError(f"{source.source} has too few images for batches of {batch}.")
    held_out: dict[str, Any] = {"x_val": validation.x, "y_val": validation.y}
    np.savez(folder / "data.npz", x=train.x, y=train.y, **held_out)
    for name in spec["models"]:
        for seed in range(spec["rounds"]):
            model = build_model(name, seed=seed)
            (folder / f"{name}.json").write_text(model.to_json())
            np.savez(folder / f"{name}-{seed}.npz", *model.get_weights())
    return {
        "name": source.name,
        "source": source.source,
        "train": len(train),
        "validation": held,
        "sha256": source.sha256,
    }


def trainer(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure our Trainer, with the images on the device or streamed."""
    runtime.prepare()
    import keras

    from fmnist_keras3 import Trainer, build_model
    from fmnist_keras3.data.datamodule import DataModule
    from fmnist_keras3.data.dataset import ImageData, Split
    from fmnist_keras3.training.callbacks import ModelCheckpoint

    class Prepared(DataModule):
        def setup(self):
            self.train, self.validation, self.test = Split(x, y), Split(x_val, y_val), None
            self.source = ImageData("bench", spec["folder"], self.train, self.validation, ())
            return self

    class Stopwatch(ModelCheckpoint):
        # The last callback: an epoch begins when the one before is saved, and holds its own plan.
        def on_fit_start(self, fit):
            clock.start()

        def on_chunk_end(self, fit):
            clock.first_step()
            if fit.position.step_in_epoch == fit.steps_in_epoch:
                clock.stop()

        def on_train_epoch_end(self, fit):
            validation = fit.records["validation"]
            clock.validated(validation["loss"], validation["accuracy"])
            super().on_train_epoch_end(fit)
            clock.start()

    x, y, x_val, y_val = arrays(spec)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model = build_model(spec["model"], seed=spec["seed"], optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        runner = Trainer(
            max_epochs=1 + spec["epochs"],
            pipeline="stream" if spec["contestant"] == "trainer-stream" else "resident",
            seed=spec["seed"],
            callbacks=[Stopwatch()],
            enable_progress_bar=False,
            run_dir=Path(folder) / "run",
        )
        clock = Clock()
        summary = runner.fit(model, Prepared(spec["batch_size"])).summary
    return measured(clock, len(x), model.count_params(), device=summary["device"])


def fit(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure plain Keras: its own layers, `Model.fit`, and tf.data as its guides write it."""
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # tf.data shall not take the GPU's memory

    class Stopwatch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            clock.start()

        def on_test_begin(self, logs=None):
            for weight in model.trainable_weights:  # waits for the device
                keras.ops.convert_to_numpy(weight.value)
            clock.stop()

        def on_epoch_end(self, epoch, logs=None):
            logs = logs or {}
            clock.validated(logs["val_loss"], logs["val_accuracy"])

    class FirstStep(Stopwatch):
        # In the warm-up only: a hook at each batch would slow down the epochs that count.
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                float((logs or {})["loss"])
                clock.first_step()

    x, y, x_val, y_val = arrays(spec)
    train = tf.data.Dataset.from_tensor_slices((x, y))
    train = train.shuffle(len(x), seed=spec["seed"]).batch(spec["batch_size"])
    train = train.prefetch(tf.data.AUTOTUNE)
    validation = tf.data.Dataset.from_tensor_slices((x_val, y_val))
    validation = validation.batch(spec["batch_size"]).prefetch(tf.data.AUTOTUNE)
    text = (Path(spec["folder"]) / f"{spec['model']}.json").read_text()
    model: Any = keras.models.model_from_json(text)
    for layer in model.layers:
        assert type(layer).__module__.startswith("keras."), layer
    model.set_weights(initial_weights(spec))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    options = {"validation_data": validation, "verbose": 0}
    clock = Clock()
    model.fit(train, epochs=1, callbacks=[FirstStep()], **options)
    epochs = 1 + spec["epochs"]
    model.fit(train, initial_epoch=1, epochs=epochs, callbacks=[Stopwatch()], **options)
    on_gpu = "GPU" if any("gpu" in d.lower() for d in keras.distribution.list_devices()) else "CPU"
    compiled = bool(model.jit_compile)
    return measured(clock, len(x), model.count_params(), device=on_gpu, jit_compile=compiled)


def measured(clock: Clock, images: int, parameters: int, **more: Any) -> dict[str, Any]:
    """Return a cell's result: the clock's epochs, and what else a reader must know of them."""
    versions = {p: v for p in ("torch", "lightning") if (v := runtime.version(p))}
    return {
        "images": images,
        "parameters": int(parameters),
        "epochs": clock.epochs,
        **clock.first,
        "peak_memory_mb": runtime.peak_memory_mb(),
        "versions": {**runtime.versions(), **versions},
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        **more,
    }


WORK = {
    "prepare": ("bench.worker", "prepare"),
    "trainer": ("bench.worker", "trainer"),
    "trainer-stream": ("bench.worker", "trainer"),
    "fit": ("bench.worker", "fit"),
    "jax": ("bench.peers", "bare_jax"),
    "torch": ("bench.peers", "bare_torch"),
    "lightning": ("bench.peers", "lightning"),
}


def main() -> None:
    """Do what the spec in the first argument says; an exception becomes the key ``error``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that is printed shall mix with the answer
    spec = json.loads(sys.argv[1])
    module, function = WORK[spec["contestant"]]
    try:
        answer = getattr(import_module(module), function)(spec)
    except Exception as error:
        traceback.print_exc()
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        answer = {"error": f"{name}{error}"}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
