"""One trial: a training for each seed, in run directories that a killed one goes on in."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from fmnist_keras3 import experiment
from fmnist_keras3.callbacks.optuna_pruning import OptunaPruning
from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.weights import weighted
from fmnist_keras3.engines import out_of_memory
from fmnist_keras3.ground.errors import Diverged, Interrupted, UserError
from fmnist_keras3.ground.files import read_json, remove
from fmnist_keras3.runs import rundir
from fmnist_keras3.settings import TrainConfig, arguments_of
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.programs import Programs
from fmnist_keras3.tuning.plan import MEASURED, Plan

ENDED = ("completed", "stopped", "diverged")


class TooLarge(Exception):
    """A trial that does not fit into memory; the study goes on without its value."""


class TrialRunner:
    """Trains what trials of a ``plan`` ask for; data is loaded once, or given as ``data``.

    What was compiled for a trial serves the next one, where the shapes are the same.
    ``shown`` is called at a trial's begin and at the end of each epoch.
    """

    def __init__(
        self, plan: Plan, data: DataModule | None = None, shown: Callable[[], None] | None = None
    ) -> None:
        self.plan, self._given, self._shown = plan, data, shown
        self._source: Any = None  # what was read last, by the settings that say what it is
        self._read = ""
        self._programs = Programs()
        self._loaded: dict[str, DataModule] = {}

    def __call__(self, trial: optuna.Trial, folder: Path) -> list[float]:
        """Train with the values of ``trial`` below ``folder``; returns the objectives.

        Each is the mean over the seeds. Raises TrialPruned for a trial that is pruned or diverges,
        TooLarge where memory is too small, and Interrupted for a signal, after a checkpoint.
        """
        plan, results = self.plan, []
        if self._shown is not None:
            self._shown()
        for number in range(plan.seeds):
            place = folder if plan.seeds == 1 else folder / f"seed-{number}"
            seed = plan.settings["seed"] + number
            config = plan.config(**trial.params, seed=seed, run_dir=str(place))
            summary = self._summary(trial, config, place, number)
            results.append([value_of(name, summary) for name in plan.objectives])
            if plan.pruner == "wilcoxon":
                if number not in _known(trial):
                    trial.report(results[-1][0], number)
                if number + 1 < plan.seeds and trial.should_prune():
                    raise optuna.TrialPruned(f"pruned after {number + 1} seeds")
        for path in folder.rglob(rundir.CHECKPOINTS):
            remove(path)  # the trial is complete: its summaries say what it gave
        return [statistics.fmean(values) for values in zip(*results, strict=True)]

    def _summary(
        self, trial: optuna.Trial, config: TrainConfig, place: Path, number: int
    ) -> dict[str, Any]:
        """Return the summary of the training in ``place``, which is begun or gone on with."""
        summary = read_json(place / rundir.SUMMARY) or {}
        if summary.get("status") not in ENDED:
            summary = self._trained(trial, config, number)
        reason = str(summary.get("reason") or "")
        if summary["status"] == "diverged" or reason.startswith("pruned by Optuna"):
            trial.set_user_attr("reason", "diverged" if summary["status"] == "diverged" else reason)
            raise optuna.TrialPruned(reason)
        return summary

    def _trained(self, trial: optuna.Trial, config: TrainConfig, number: int) -> dict[str, Any]:
        data, model, trainer = experiment.build(config, self._data(config), self._programs)
        trainer.enable_progress_bar = trainer.enable_model_summary = False
        if self.plan.pruner not in ("none", "wilcoxon"):
            first = number * self.plan.epochs
            monitor = f"val_{self.plan.objectives[0]}"
            trainer.callbacks.append(OptunaPruning(trial, monitor, raises=False, first_step=first))
        if self._shown is not None:
            trainer.callbacks.append(_Shown(self._shown))
        try:
            result = trainer.fit(model, data, ckpt_path="auto", config=config.to_dict())
        except Diverged:
            return {"status": "diverged", "reason": "diverged"}
        except Exception as error:
            if not out_of_memory(error):
                raise
            trial.set_user_attr("reason", "out of memory")
            raise TooLarge(str(error)) from error
        if result.status == "interrupted":
            raise Interrupted(str(result.reason))
        return result.summary

    def _data(self, config: TrainConfig) -> DataModule:
        """Return the data of a trial, whose examples were read once."""
        if self._given is not None:
            data = copy.copy(self._given.setup())
            if "batch_size" in self.plan.space:
                data.batch_size = config.batch_size
            if "augment" in self.plan.space:
                data.augment = parse_augment(config.augment)
            return weighted(data, config.class_weight)
        read = repr(arguments_of("FashionMNIST", config))
        if read != self._read:  # other files, or images of another size
            self._source, self._read = None, read
            self._loaded.clear()
        key = repr((arguments_of("DataModule", config), config.class_weight))
        if key not in self._loaded:
            if len(self._loaded) > self.plan.seeds:  # of other batch sizes or augmentations
                self._loaded.clear()
            self._loaded[key] = experiment.load_data(config, self._source)
            self._source = self._loaded[key].source
        data = self._loaded[key]
        if data.validation is None:
            raise UserError("The data has no validation split. Type --validation 0.1")
        return data


class _Shown(Callback):
    section, order = "logging", 1

    def __init__(self, shown: Callable[[], None]) -> None:
        self._shown = shown

    def on_train_epoch_end(self, fit):
        self._shown()


def _known(trial: optuna.Trial) -> dict[int, float]:
    return trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values


def value_of(name: str, summary: dict[str, Any]) -> float:
    """Return an objective of a run from its summary; of averaged weights where there are any."""
    if name in MEASURED:
        averaged = summary.get(f"validation_averaged_{name}")
        return float(summary[f"validation_{name}"] if averaged is None else averaged)
    return float(sum(summary["epoch_seconds"]) if name == "seconds" else summary[name])
