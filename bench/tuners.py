"""`python -m bench tune`: what a trial costs here, with KerasTuner, and with Optuna and Lightning.

All try the same number of values for the learning rate, the dropout rate and the strength of L2 of
the same network, by random search over the same ranges, on the same images; nothing is pruned.
Each is written as its own documentation writes it.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import cells
from bench.cells import Cell, Settings
from bench.worker import arrays
from fmnist_keras3 import runtime

LR, DROPOUT, L2 = (1e-4, 1e-1), (0.1, 0.6), (1e-6, 1e-2)
TUNERS = {
    "fmnist tune": runtime.BACKENDS,
    "KerasTuner": runtime.BACKENDS,
    "Optuna and Lightning": ("torch",),
}
COLUMNS = ("tuner", "backend", "trials", "seconds", "median of a trial", "trials an hour", "ours")


def measure(settings: Settings, trials: int, say: Any) -> list[dict[str, Any]]:
    """Measure each tuner on each backend, in a process of its own; one after another.

    ``settings.epochs`` are those of a trial, ``say`` is told of each result.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-tune-") as work:
        cells.prepare(settings, Path(work))
        for tuner, backends in TUNERS.items():
            for backend in backends:
                if backend in (*settings.backends, "torch"):
                    cell = Cell(tuner, backend, settings.models[0], seed=0)
                    each = {"trials": trials, "batch_size": settings.batch_sizes[0]}
                    found.append(cells.measure(cell, settings, Path(work), **each))
                    say(found[-1])
    return found


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, in the order of `COLUMNS`; failures say so."""
    rows, hours = [], {}
    for cell in found:
        if "error" not in cell:
            hours[cell["contestant"], cell["backend"]] = 3600 * cell["trials"] / cell["total"]
    ours = {backend: rate for (who, backend), rate in hours.items() if who == "fmnist tune"}
    for cell in found:
        who, backend = cell["contestant"], cell["backend"]
        if "error" in cell:
            rows.append([who, backend, f"failed: {cell['error']}", *["-"] * 4])
            continue
        rate = hours[who, backend]
        # A peer without our backend is compared with the best of ours.
        best = ours.get(backend, max(ours.values(), default=float("nan")))
        median = statistics.median(cell["seconds"])
        rows.append(
            [who, backend, str(cell["trials"]), f"{cell['total']:.1f}", f"{median:.2f} s",
             f"{rate:,.0f}", f"{best / rate:.2f}"]
        )  # fmt: skip
    return rows


def line(cell: dict[str, Any]) -> str:
    """Return a line on what was measured."""
    name = f"{cell['contestant']} {cell['backend']}"
    if "error" in cell:
        return f"{name}: FAILED: {cell['error']}"
    return f"{name}: {cell['trials']} trials in {cell['total']:.1f} s, best {cell['best']:.4f}"


def costs(found: list[dict[str, Any]]) -> list[str]:
    """Return what is said of our trials: the way to the first step, and the overhead."""
    return [
        f"{cell['backend']}: a trial's first steps end {cell['to_first_steps']:.2f} s after the "
        f"trial before (median); a trial takes {cell['seconds_of_trial']:.3f} s, the training "
        f"alone {cell['seconds_of_training']:.3f} s: {cell['overhead']:+.1%}."
        for cell in found
        if "overhead" in cell
    ]


def our_tuner(spec: dict[str, Any]) -> dict[str, Any]:
    """Tune with `tune`, then take the same trainings without it."""
    runtime.prepare()
    from fmnist_keras3 import ArrayData, experiment, load_run, tune
    from fmnist_keras3.settings import TrainConfig
    from fmnist_keras3.training.programs import Programs

    x, y, x_val, y_val = arrays(spec)

    def data():
        return ArrayData(x, y, validation=(x_val, y_val), batch_size=spec["batch_size"])

    settings = {
        "model": spec["model"],
        "optimizer": "adam",
        "epochs": spec["epochs"],
        "batch_size": spec["batch_size"],
    }
    space = {"lr": (*LR, "log"), "dropout": DROPOUT, "l2": (*L2, "log")}
    folder = Path(tempfile.mkdtemp(dir=spec["folder"]))
    began = time.time() - runtime.process_seconds()
    study = tune(
        space, data(), trials=spec["trials"], sampler="random", study=str(folder / "study"),
        verbose=False, **settings,
    )  # fmt: skip
    total = runtime.process_seconds()
    tried: list[Any] = study.trials
    ends = [trial.datetime_complete.timestamp() for trial in tried]
    summaries = [load_run(run).summary for run in sorted((folder / "study/trials").iterdir())]
    firsts = [began + summary["time_to_first_step"] for summary in summaries]
    waits = [first - end for end, first in zip(ends, firsts[1:], strict=False)]

    programs, module, alone = Programs(), data().setup(), []
    for number, trial in enumerate(tried):
        place = str(folder / f"alone-{number}")
        started = time.perf_counter()
        config = TrainConfig(**{**settings, **trial.params, "run_dir": place})
        _, model, trainer = experiment.build(config, module, programs)
        trainer.enable_progress_bar = trainer.enable_model_summary = False
        trainer.fit(model, module, config=config.to_dict())
        alone.append(time.perf_counter() - started)
    of_trial = statistics.median(b - a for a, b in itertools.pairwise(ends))
    of_training = statistics.median(alone[1:])
    return {
        "trials": len(tried),
        "total": total,
        "seconds": [t.duration.total_seconds() for t in tried],
        "best": study.best_value,
        "to_first_steps": statistics.median(waits),
        "seconds_of_trial": of_trial,
        "seconds_of_training": of_training,
        "overhead": of_trial / of_training - 1,
    }


def keras_tuner(spec: dict[str, Any]) -> dict[str, Any]:
    """Tune with KerasTuner's random search."""
    import keras
    import keras_tuner
    from keras import layers, regularizers

    from bench.worker import pipelines

    x, y, x_val, y_val = arrays(spec)
    train, validation = pipelines({**spec, "seed": 0}, (x, y), (x_val, y_val))
    ends = []

    def build(hp):
        rate = hp.Float("dropout", *DROPOUT)
        decay = regularizers.L2(hp.Float("l2", *L2, sampling="log"))
        common = {"activation": "relu", "kernel_regularizer": decay}
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(6, 5, padding="same", **common),
                layers.MaxPooling2D(2),
                layers.Conv2D(16, 5, **common),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(120, **common),
                layers.Dropout(rate),
                layers.Dense(84, **common),
                layers.Dropout(rate),
                layers.Dense(10, kernel_regularizer=decay),
            ]
        )
        model.compile(
            keras.optimizers.Adam(hp.Float("lr", *LR, sampling="log")),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return model

    class Search(keras_tuner.RandomSearch):
        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            ends.append(time.perf_counter())

    tuner = Search(
        build, objective="val_accuracy", max_trials=spec["trials"], seed=0,
        directory=tempfile.mkdtemp(dir=spec["folder"]),
    )  # fmt: skip
    started = time.perf_counter()
    tuner.search(train, validation_data=validation, epochs=spec["epochs"], verbose=0)
    best = tuner.oracle.get_best_trials(1)[0].score
    return _result(started, ends, best)


def optuna_lightning(spec: dict[str, Any]) -> dict[str, Any]:
    """Tune PyTorch Lightning with Optuna, as Optuna's example does."""
    import lightning.pytorch as pl
    import optuna
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from bench.peers import loaders, torch_tensors

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tensors = torch_tensors(spec)

    class Classifier(pl.LightningModule):
        def __init__(self, lr, dropout, l2):
            super().__init__()
            self.lr, self.l2 = lr, l2
            self.model = nn.Sequential(
                nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                nn.Linear(400, 120), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(120, 84), nn.ReLU(), nn.Dropout(dropout), nn.Linear(84, 10),
            )  # fmt: skip

        def training_step(self, batch, index):
            loss = cross_entropy(self.model(batch[0].float() / 255), batch[1])
            kernels = (p for p in self.parameters() if p.ndim > 1)
            return loss + self.l2 * sum(p.square().sum() for p in kernels)

        def validation_step(self, batch, index):
            logits = self.model(batch[0].float() / 255)
            self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    ends = []

    def objective(trial):
        module = Classifier(
            trial.suggest_float("lr", *LR, log=True),
            trial.suggest_float("dropout", *DROPOUT),
            trial.suggest_float("l2", *L2, log=True),
        )
        trainer = pl.Trainer(
            max_epochs=spec["epochs"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, *loaders(tensors, spec["batch_size"]))
        ends.append(time.perf_counter())
        return trainer.callback_metrics["accuracy"].item()

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    started = time.perf_counter()
    study.optimize(objective, n_trials=spec["trials"])
    return _result(started, ends, study.best_value)


def _result(started: float, ends: list[float], best: float) -> dict[str, Any]:
    seconds = [b - a for a, b in itertools.pairwise([started, *ends])]
    total = runtime.process_seconds()
    return {"trials": len(ends), "total": total, "seconds": seconds, "best": float(best)}
