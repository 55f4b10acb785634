"""The process that measures one cell: a JSON spec as argument, a JSON result as the last line.

`prepare` writes what all cells share: the images, the plain Keras model and its initial weights.
Plain contestants take no more than that from us, and so run as they would on a user's machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.cells import PRECISIONS
from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import UserError

LEARNING_RATE = 1e-3
VALIDATION = 2560  # images, at most
REPEATS = 3  # of evaluation and prediction
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
        values = {"loss": float(loss), "accuracy": float(accuracy)}
        self.epochs[-1] |= {**values, "peak_memory_mb": runtime.peak_memory_mb()}


def arrays(spec: dict[str, Any]) -> list[np.ndarray]:
    """Return x and y for training, x and y for validation: uint8 [N,28,28,1] and int32 [N].

    Whole batches only, so that a mean over batches is the same for everybody.
    """
    size = spec["batch_size"]
    with np.load(Path(spec["folder"]) / "data.npz") as data:
        return [data[n][: len(data[n]) // size * size] for n in ("x", "y", "x_val", "y_val")]


def plain_model(spec: dict[str, Any]) -> str:
    """Return the model that every contestant trains as Keras' JSON, in the cell's precision."""
    return (Path(spec["folder"]) / f"{spec['model']}-{spec['precision']}.json").read_text()


def initial_weights(spec: dict[str, Any]) -> list[np.ndarray]:
    """Return the weights that every contestant starts from, in Keras' order."""
    with np.load(Path(spec["folder"]) / f"{spec['model']}-{spec['seed']}.npz") as weights:
        return [weights[f"arr_{i}"] for i in range(len(weights.files))]


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Write images, models and initial weights into the folder; returns what the data is."""
    import keras

    from fmnist_keras3 import build_model
    from fmnist_keras3.data import sources, synthetic

    limit, batch, folder = spec["limit_train"], max(spec["batch_sizes"]), Path(spec["folder"])
    if spec["data"] == "synthetic":
        source = synthetic.generate(train=(limit or 12_000) + VALIDATION)
    else:
        source = sources.load("fashion_mnist")
    order = np.random.default_rng(0).permutation(len(source.train))
    held = min(len(order) // 10, VALIDATION)
    validation = source.train.take(order[:held])
    train = source.train.take(order[held:][: limit or None])
    if min(len(train), held) < batch:
        raise UserError(f"{source.source} has too few images for batches of {batch}.")
    held_out: dict[str, Any] = {"x_val": validation.x, "y_val": validation.y}
    np.savez(folder / "data.npz", x=train.x, y=train.y, **held_out)
    for name in spec["models"]:
        for precision in spec["precisions"]:
            keras.config.set_dtype_policy(PRECISIONS[precision])
            model = build_model(name)
            (folder / f"{name}-{precision}.json").write_text(model.to_json())
        for seed in range(spec["rounds"]):
            weights = build_model(name, seed=seed).get_weights()
            np.savez(folder / f"{name}-{seed}.npz", *weights)
    return {
        "name": source.name,
        "source": source.source,
        "train": len(train),
        "validation": held,
        "sha256": source.sha256,
    }


def our_model(spec: dict[str, Any]) -> Any:
    """Return the model with our layers, in the cell's precision, with the common weights."""
    runtime.prepare()
    import keras

    from fmnist_keras3 import build_model

    keras.config.set_dtype_policy(PRECISIONS[spec["precision"]])
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    return build_model(spec["model"], seed=spec["seed"], optimizer=optimizer)


def trainer(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure our Trainer, with the images on the device or streamed."""
    model = our_model(spec)
    from fmnist_keras3 import Trainer
    from fmnist_keras3.callbacks import Callback
    from fmnist_keras3.data.datamodule import DataModule
    from fmnist_keras3.data.dataset import ImageData, Split

    class Prepared(DataModule):
        def load(self):
            examples, validation = Split(x, y), Split(x_val, y_val)
            return ImageData("bench", spec["folder"], examples, examples, (), validation=validation)

    class Stopwatch(Callback):
        def on_fit_start(self, fit):
            clock.start()

        def on_chunk_end(self, fit):
            clock.first_step()
            if fit.position.step_in_epoch == fit.steps_in_epoch:
                clock.stop()

        def on_train_epoch_end(self, fit):
            validation = fit.records["validation"]
            clock.validated(validation["loss"], validation["accuracy"])

        def on_save_checkpoint(self, fit, manifest):
            clock.start()  # an epoch begins when the one before is saved, and holds its own plan

    x, y, x_val, y_val = arrays(spec)
    with tempfile.TemporaryDirectory() as folder:
        runner = Trainer(
            max_epochs=1 + spec["epochs"],
            pipeline="stream" if spec["contestant"] == "trainer-stream" else "resident",
            seed=spec["seed"],
            callbacks=[Stopwatch()],
            enable_progress_bar=False,
            run_dir=Path(folder) / "run",
        )
        clock, data = Clock(), Prepared(spec["batch_size"])
        summary = runner.fit(model, data).summary
    outside = {
        "evaluate": timed(lambda: runner.test(model, data)),
        "predict": timed(lambda: runner.predict(model, x)),
    }
    return measured(clock, len(x), model.count_params(), device=summary["device"], **outside)


def engine(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure the compiled loop alone: batches that lie ready, one chunk an epoch."""
    model = our_model(spec)
    from fmnist_keras3.engines import make_engine
    from fmnist_keras3.engines.chunk import Chunk, StepPlan

    def chunk(x: np.ndarray, y: np.ndarray) -> Chunk:
        steps = len(x) // size
        x, y = (runner.place(a.reshape(steps, size, *a.shape[1:])) for a in (x, y))
        return Chunk(x, y, np.full(steps, size, np.int32), steps)

    x, y, x_val, y_val = arrays(spec)
    size = spec["batch_size"]
    runner = make_engine(model, chunk_steps=len(x) // size)
    training, validation, clock = chunk(x, y), chunk(x_val, y_val), Clock()
    step_plan = StepPlan(np.full(training.count, LEARNING_RATE, np.float32))
    runner.train(dataclasses.replace(training, count=1), step_plan)
    clock.first_step()
    for _ in range(1 + spec["epochs"]):
        clock.start()
        runner.train(training, step_plan)  # waits for the device
        clock.stop()
        logs, _ = runner.infer([validation])
        clock.validated(logs["loss"], logs["accuracy"])
    return measured(clock, len(x), model.count_params(), device=runner.device.name)


def timed(work: Callable[[], Any]) -> list[float]:
    """Return the seconds of each of `REPEATS` calls, after one of warm-up."""
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def fit(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure plain Keras: its own layers, `Model.fit`, and tf.data as its guides write it."""
    import keras

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
    train, validation = pipelines(spec, (x, y), (x_val, y_val))
    model: Any = keras.models.model_from_json(plain_model(spec))
    for layer in model.layers:
        assert type(layer).__module__.startswith("keras."), layer
    model.set_weights(initial_weights(spec))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    options: dict[str, Any] = {"validation_data": validation, "verbose": 0}
    if isinstance(train, tuple):
        options["batch_size"] = spec["batch_size"]
        train = dict(zip("xy", train, strict=True))
    else:
        train = {"x": train}
    clock = Clock()
    model.fit(**train, epochs=1, callbacks=[FirstStep()], **options)
    epochs = 1 + spec["epochs"]
    model.fit(**train, initial_epoch=1, epochs=epochs, callbacks=[Stopwatch()], **options)
    size = {"batch_size": spec["batch_size"], "verbose": 0}
    outside = {
        "evaluate": timed(lambda: model.evaluate(x, y, **size)),
        "predict": timed(lambda: model.predict(x, **size)),
    }
    on_gpu = "GPU" if any("gpu" in d.lower() for d in keras.distribution.list_devices()) else "CPU"
    compiled = bool(model.jit_compile)
    return measured(
        clock, len(x), model.count_params(), device=on_gpu, jit_compile=compiled, **outside
    )


def pipelines(spec: dict[str, Any], *splits: tuple[np.ndarray, np.ndarray]) -> list[Any]:
    """Return the splits as Keras' guides feed them: tf.data, or arrays where there is none."""
    if not runtime.version("tensorflow"):
        return list(splits)
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # tf.data shall not take the GPU's memory
    made = []
    for x, y in splits:
        data = tf.data.Dataset.from_tensor_slices((x, y))
        if not made:  # the first is for training
            data = data.shuffle(len(x), seed=spec["seed"])
        made.append(data.batch(spec["batch_size"]).prefetch(tf.data.AUTOTUNE))
    return made


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
    "engine": ("bench.worker", "engine"),
    "jax": ("bench.peers", "bare_jax"),
    "torch": ("bench.peers", "bare_torch"),
    "lightning": ("bench.peers", "lightning"),
    "fmnist tune": ("bench.tuners", "our_tuner"),
    "KerasTuner": ("bench.tuners", "keras_tuner"),
    "Optuna and Lightning": ("bench.tuners", "optuna_lightning"),
    **dict.fromkeys(("files", "cache", "resident", "stream"), ("bench.data", "ours")),
    "image_dataset_from_directory": ("bench.data", "keras_directory"),
    "Lightning": ("bench.data_torch", "lightning"),
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
