"""Trains on a set that does not fit, in a process of its own: `python victim.py KIND ...`.

Prints, as JSON, the seconds to the first step, the peak of the memory, and a checksum of weights.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from fmnist_keras3 import (
    Callback,
    FolderData,
    ModelCheckpoint,
    SourceData,
    Trainer,
    build_model,
    runtime,
)

SIDE = 64


class Described:
    """Images that are made from their numbers: as many as are asked for, none stored."""

    class_names = tuple("0123456789")

    def __init__(self, examples, side=SIDE):
        self.examples, self.side = examples, side
        self.identity = f"described {examples} {side}"

    def __len__(self):
        return self.examples

    def gather(self, indices):
        y = (indices * 7919 % 10).astype(np.int32)
        noise = (indices[:, None] * 31 + np.arange(self.side**2 * 3)) % 97
        x = noise.astype(np.uint8).reshape(-1, self.side, self.side, 3)
        rows = np.arange(self.side)
        x[(rows // (self.side // 10 + 1))[None] == y[:, None]] += 150
        return x, y


class At(Callback):
    """Kills the process at a step."""

    def __init__(self, step):
        self.step = step

    def next_event(self, fit, step):
        return self.step if step < self.step else None

    def on_chunk_end(self, fit):
        self.worked = getattr(self, "worked", None) or time.process_time()
        if fit.position.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def data_of(kind, argument):
    if kind == "described":
        return SourceData(Described(int(argument)), batch_size=64, augment="flip,crop:2")
    return FolderData(argument, batch_size=32, augment="flip,crop:2")


def main(kind, argument, steps, run, kill):
    data = data_of(kind, argument)
    model = build_model("lenet", input_shape=data.train.image_shape, classes=10)
    callbacks = [at := At(int(kill)), ModelCheckpoint(every_n_train_steps=5)]
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=int(steps),
        limit_val_batches=4,
        callbacks=callbacks,
        run_dir=run,
        enable_progress_bar=False,
    )
    result = trainer.fit(model, data, ckpt_path="auto")
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(weights.tobytes())
    summary = json.loads((Path(run) / "summary.json").read_text())
    print(
        json.dumps(
            {
                "status": result.status,
                "first step": summary["time_to_first_step"],
                "work to first step": at.worked,
                "peak": runtime.peak_memory_mb(),
                "pipeline": summary["pipeline"],
                "gigabytes": (data.train.nbytes + data.validation.nbytes) / 1e9,
                "weights": digest.hexdigest(),
                "losses": [r["loss"] for r in result.history if r["event"] == "train"],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
