"""`python -m bench data`: images read from JPEG files as they are needed, beside other pipelines.

Each contestant trains the same small network on the same folder, which is made for it, and decodes
every image in every epoch. Besides, what `lenet` loses where its images are not on the device:
streamed from memory, and from decoded images on disk.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import cells
from bench.cells import Cell, Settings
from fmnist_keras3 import runtime

FILES, RESIDENT, STREAM, CACHE = "files", "resident", "stream", "cache"
KERAS, LIGHTNING = "image_dataset_from_directory", "Lightning"
CONTESTANTS = {
    FILES: "our Trainer, FolderData that is read as it is needed",
    CACHE: "our Trainer, decoded images on disk, mapped into memory (--cache disk)",
    RESIDENT: "our Trainer, images on the device",
    STREAM: "our Trainer, images in memory, through tf.data",
    KERAS: "keras.utils.image_dataset_from_directory and Model.fit",
    LIGHTNING: "torchvision's ImageFolder, a DataLoader with a process a core, PyTorch Lightning",
}
OURS = (FILES, CACHE, RESIDENT, STREAM)
# Side, kind of the files, how many, examples of a batch, and who trains on them.
SETS = {
    "jpeg-64": (64, "jpeg", 6400, 64, (FILES, KERAS, LIGHTNING)),
    "jpeg-224": (224, "jpeg", 1600, 64, (FILES, KERAS, LIGHTNING)),
    "lenet": (28, "png", 25600, 128, (RESIDENT, STREAM, CACHE)),
}
COLUMNS = ("backend", "contestant", "images/s", "lowest to highest", "MB", "ratio", "to")


def measure(settings: Settings, name: str, say: Any) -> list[dict[str, Any]]:
    """Measure all contestants on the set ``name``, each in a process of its own.

    They take turns, every other round backwards; ``say`` is told of each result.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        side, kind, count, size, who = SETS[name]
        write(Path(folder) / name, side, kind, count)
        for seed in range(settings.rounds):
            turn = [
                Cell(one, backend, name, seed, batch_size=size)
                for one in who
                for backend in (("torch",) if one == LIGHTNING else settings.backends)
            ]
            for cell in turn if seed % 2 == 0 else turn[::-1]:
                more = {"side": side, "images": str(Path(folder) / name)}
                found.append(cells.measure(cell, settings, Path(folder), **more))
                say(found[-1])
    return found


def write(folder: Path, side: int, kind: str, count: int) -> None:
    """Write ``count`` images of ten classes as files: ``folder/train/CLASS/*``, and a few of test.

    Coarse noise, enlarged, with fine noise over it: a photo's share of large and small shapes. The
    classes differ in brightness and colour.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    channels, options = (3, {"quality": 90}) if kind == "jpeg" else (1, {})
    for number in range(count + 100):
        label = number % 10
        coarse = rng.integers(0, 256, (side // 7, side // 7, channels), np.uint8)
        image = Image.fromarray(coarse.squeeze()).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(side, side, channels) * (0.4 + 0.04 * label)
        pixels[..., label % channels] += 40
        pixels += rng.integers(0, 20, pixels.shape)
        split = "train" if number < count else "test"
        path = folder / split / str(label) / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8).squeeze()).save(path, kind, **options)


def rates(found: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Return images/s of the timed epochs of all rounds, by backend and contestant."""
    made: dict[tuple[str, str], list[float]] = {}
    for cell in found:
        if "error" not in cell:
            key = cell["backend"], cell["contestant"]
            epochs = cell["epochs"][1:]
            made.setdefault(key, []).extend(cell["images"] / e["seconds"] for e in epochs)
    return made


def compared_with(
    key: tuple[str, str], speeds: dict[tuple[str, str], float]
) -> tuple[str, str] | None:
    """Return whom one of ours is compared with: the better peer, or resident on its backend."""
    backend, who = key
    if who in (RESIDENT, KERAS, LIGHTNING):
        return None
    if (backend, RESIDENT) in speeds:
        return backend, RESIDENT
    peers = [k for k in speeds if k[1] not in OURS]
    return max(peers, key=speeds.__getitem__, default=None)


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, in the order of `COLUMNS`; failures say so."""
    measured, rows = rates(found), []
    speeds = {key: statistics.median(values) for key, values in measured.items()}
    for key in dict.fromkeys((c["backend"], c["contestant"]) for c in found):
        mine = [c for c in found if (c["backend"], c["contestant"]) == key]
        if key not in speeds:
            rows.append([*key, f"failed: {mine[0]['error']}", *["-"] * 4])
            continue
        other = compared_with(key, speeds)
        memory = max(c["peak_memory_mb"] for c in mine if "error" not in c)
        rows.append(
            [*key, f"{speeds[key]:,.0f}", f"{min(measured[key]):,.0f} to {max(measured[key]):,.0f}",
             f"{memory:,.0f}", "-" if other is None else f"{speeds[key] / speeds[other]:.2f}",
             "-" if other is None else f"{other[1]} ({other[0]})"]
        )  # fmt: skip
    return rows


def line(cell: dict[str, Any]) -> str:
    """Return a line on what was measured."""
    name = f"{cell['model']} {cell['backend']} {cell['contestant']}"
    if "error" in cell:
        return f"{name}: FAILED: {cell['error']}"
    speeds = [cell["images"] / epoch["seconds"] for epoch in cell["epochs"][1:]]
    loss = cell["epochs"][-1]["loss"]
    return f"{name}: {statistics.median(speeds):,.0f} images/s, loss {loss:.3f}"


def said(name: str) -> list[str]:
    """Return what a reader of the table of the set ``name`` must know."""
    side, kind, count, size, who = SETS[name]
    net = " Pooling by 4, convolutions of 8 and 16 filters, a dense layer."
    return [
        f"{count:,} {kind.upper()} files of {side}x{side}, batch {size}.{net * (kind == 'jpeg')} "
        "The first epoch, with compilation, is left out. MB are the peak of the process that "
        "trains, without those of a DataLoader.",
        *(f"{one}: {CONTESTANTS[one]}." for one in who),
    ]


def network(side: int) -> Any:
    """Return the network for images ``[side, side, 3]``: small, so that reading counts."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((side, side, 3)),
            layers.Rescaling(1 / 255),
            layers.MaxPooling2D(4),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _epoch(clock: Any, loss: float) -> None:
    clock.epochs[-1] |= {"loss": float(loss), "peak_memory_mb": runtime.peak_memory_mb()}


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure our Trainer: on the device, streamed from memory, from a cache or from files."""
    runtime.prepare()
    import os

    from bench.worker import Clock, measured
    from fmnist_keras3 import Callback, FolderData, Trainer, build_model
    from fmnist_keras3.data import source

    who, side = spec["contestant"], spec["side"]
    if who in (FILES, CACHE):
        source.MEMORY_BYTES = 0  # else so small a set would be read into memory
    os.environ["XDG_CACHE_HOME"] = spec["folder"]

    class Stopwatch(Callback):
        def on_fit_start(self, fit):
            clock.start()

        def on_chunk_end(self, fit):
            clock.first_step()
            if fit.position.step_in_epoch == fit.steps_in_epoch:
                clock.stop()

        def on_train_epoch_end(self, fit):
            _epoch(clock, fit.records["train"]["loss"])
            clock.start()  # the next one begins with its plan

    data = FolderData(
        spec["images"],
        batch_size=spec["batch_size"],
        validation=0.0,
        cache="disk" if who == CACHE else "none",
    ).setup()
    assert data.train.in_memory == (who not in (FILES, CACHE))
    gray = data.train.image_shape[-1] == 1
    model = build_model("lenet", seed=spec["seed"]) if gray else network(side)
    trainer = Trainer(
        max_epochs=1 + spec["epochs"],
        pipeline="resident" if who == RESIDENT else "stream",
        seed=spec["seed"],
        callbacks=[Stopwatch()],
        enable_progress_bar=False,
        enable_checkpointing=False,  # as of the others
        run_dir=tempfile.mkdtemp(dir=spec["folder"]),
    )
    clock = Clock()
    trainer.fit(model, data)
    return measured(clock, len(data.train), model.count_params())


def keras_directory(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure `Model.fit` on `image_dataset_from_directory`, as Keras' guide writes it."""
    import keras

    from bench.worker import Clock, measured

    class Stopwatch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            clock.start()

        def on_epoch_end(self, epoch, logs=None):
            for weight in model.trainable_weights:  # waits for the device
                keras.ops.convert_to_numpy(weight.value)
            clock.stop()
            _epoch(clock, (logs or {})["loss"])

    side, keep = spec["side"], spec["batch_size"]
    train = keras.utils.image_dataset_from_directory(
        Path(spec["images"]) / "train", image_size=(side, side), batch_size=keep, seed=spec["seed"],
        verbose=False,
    )  # fmt: skip
    model, clock = network(side), Clock()
    model.fit(train, epochs=1 + spec["epochs"], verbose=0, callbacks=[Stopwatch()])
    return measured(clock, len(train.file_paths), model.count_params())
