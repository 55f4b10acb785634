"""A small model with all kinds of state, its data and its trainer, for the tests of this folder."""

import os
import signal

import keras
import numpy as np
from kept import kept

from fmnist_keras3 import ArrayData, Callback, EarlyStopping, ModelCheckpoint, Trainer
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.ground.errors import Interrupted
from fmnist_keras3.layers.fast import Dropout
from fmnist_keras3.runs import checkpoint

STEPS, EPOCHS = 5, 4  # 160 examples in batches of 32


def everything_model():
    """One model in its initial state; its engine compiles once for all tests of this file."""
    if not shared:
        model = kept.model(built_model)
        options = Trainer(label_smoothing=0.1)._engine_options()
        engine = kept.make_engine(model, example=Split(*(a[:1] for a in arrays())), **options)
        shared.update(model=model, engine=engine, state=engine.export_state(), options=options)
    shared["engine"].import_state(shared["state"])
    return shared["model"]


shared = {}


def built_model(optimizer=None):
    """A model with all kinds of state: dropout, batch normalisation, averages, accumulation."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(16, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            Dropout(0.2, seed=1),  # Keras' own draws other numbers on other backends
            keras.layers.Dense(10, kernel_regularizer="l2", name="logits"),
        ],
        name="everything",
    )
    rng = np.random.default_rng(0)
    for name in ("hidden", "logits"):  # Keras' initial weights differ between backends
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.normal(0, 0.1, kernel.shape).astype("float32"))
    model.compile(
        optimizer
        or keras.optimizers.AdamW(
            0.01, global_clipnorm=0.5, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def arrays():
    """200 images ``[28, 28, 1]`` and labels 0..9 that a small model can learn."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(200, dtype=np.int32) % 10)
    x = rng.integers(0, 100, (200, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 + 2 * label : 6 + 2 * label, 4:24] += 150
    return x, y


def data(**options):
    options = {"batch_size": 32, "augment": "flip,crop,erase", "validation": 0.2, **options}
    return ArrayData(*arrays(), **options)


def trainer(path, *callbacks, **options):
    """A Trainer with a checkpoint at every second step, so that a kill loses something."""
    callbacks = [EarlyStopping(patience=100), *callbacks]
    if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        callbacks.append(ModelCheckpoint(every_n_train_steps=2))
    options = {
        "max_epochs": EPOCHS,
        "schedule": "cosine",
        "label_smoothing": 0.1,
        "logger": "csv",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        **options,
    }
    made = Trainer(run_dir=path, callbacks=callbacks, **options)
    # Only used for its own model, and where no other options are asked for.
    made.programs.engine = shared.get("engine")
    made.programs._made_with = shared.get("options", {})
    return made


def last(run):
    found, problems = checkpoint.find(run / "checkpoints", "last", checkpoint.load)
    assert not problems
    return found


class At(Callback):
    """Does something when a step is done, or (with a negative step) in the validation there."""

    def __init__(self, step, action):
        self.step, self.action = step, action
        self.every_n_train_steps = 1  # a boundary at each step

    def setup(self, fit):
        self.fit, feed = fit, fit._fit.validation_feed
        if feed is None:
            return
        take = feed.take

        def watched(count):
            if self.step < 0 and fit.position.step == -self.step:
                self.action()
            return take(count)

        feed.take = watched

    def on_chunk_end(self, fit):
        if fit.position.step == self.step:
            self.action()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def kill():
    """What a SIGKILL leaves: nothing is written any more."""
    raise Interrupted("SIGTERM")
