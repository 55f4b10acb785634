"""What a study is to do: the options of `fmnist tune`, and all that is checked of them.

Needs neither Keras nor Optuna.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.setting import Setting
from fmnist_keras3.settings import SETTINGS, TrainConfig
from fmnist_keras3.tuning.space import DEFAULT, Param, check_space, read_space

# By name: the direction, and how it is told. Of the validation, at the last epoch.
OBJECTIVES = {
    "accuracy": ("maximize", "validation accuracy"),
    "loss": ("minimize", "validation loss"),
    "parameters": ("minimize", "parameters"),
    "macs": ("minimize", "multiply-adds an image"),
    "seconds": ("minimize", "seconds of training"),
}
SAME = {"validation_accuracy": "accuracy", "validation_loss": "loss", "time": "seconds"}
MEASURED = ("accuracy", "loss")  # once an epoch, so that a trial can be pruned by it
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid")
PRUNERS = ("none", "median", "hyperband", "halving", "wilcoxon")
WILCOXON_SEEDS = 5  # four pairs are the least that can differ with p < 0.1
HELD_OUT = 0.1  # where the settings train on everything

# fmt: off
OPTIONS = {row.name: row for row in (
    Setting(name="trials", kind=int, default=50, least=1, group="study",
        help="trials of the study in all, of all processes and calls"),
    Setting(name="timeout", kind=str, group="study", optional=True,
        help="time after which no trial begins: 01:00:00 or seconds"),
    Setting(name="objective", kind=str, default="accuracy", group="study",
        help=f"one or two of {', '.join(OBJECTIVES)}; accuracy and loss are of the validation"),
    Setting(name="seeds", kind=int, default=1, least=1, group="study",
        help="seeds of a trial, whose mean counts"),
    Setting(name="sampler", kind=str, default="tpe", choices=SAMPLERS, group="study",
        help="Optuna's, which chooses the values"),
    Setting(name="pruner", kind=str, default="none", choices=PRUNERS, group="study",
        help="Optuna's, which ends poor trials early"),
    Setting(name="study", kind=str, optional=True, unset="a new one below studies/", group="study",
        help="name below studies/, or a folder; with one that is there, go on or join in"),
    Setting(name="storage", kind=str, optional=True, unset="study.db in the study's folder",
        group="study",
        help="journal, journal:FILE, grpc://HOST:PORT or a database's URL"),
    Setting(name="workers", kind=int, default=1, least=1, group="study",
        help="processes on this machine"),
)}
# fmt: on
STORED = ("objective", "seeds", "sampler", "pruner")


@dataclass(frozen=True)
class Plan:
    """A study: its space, the settings of all trials, and how it is searched.

    ``final_validation`` is the settings' own validation split where a trial holds out another.
    """

    space: dict[str, Param]
    settings: dict[str, Any]
    objectives: tuple[str, ...] = ("accuracy",)
    seeds: int = 1
    sampler: str = "tpe"
    pruner: str = "none"
    final_validation: float | None = None
    trials: int = 50
    timeout: float | None = None
    backend: str = field(default="", compare=False)

    @property
    def directions(self) -> list[Any]:
        """Optuna's directions of the objectives."""
        return [OBJECTIVES[name][0] for name in self.objectives]

    @property
    def epochs(self) -> int:
        """The epochs of the longest trial."""
        return max(self.space["epochs"].ends) if "epochs" in self.space else self.config().epochs

    @property
    def most(self) -> int:
        """How many trials there are to be, of a grid at most its points."""
        if self.sampler != "grid":
            return self.trials
        points = 1
        for param in self.space.values():
            points *= len(param.choices)
        return min(self.trials, points)

    def config(self, **values: Any) -> TrainConfig:
        """Return the settings of a trial with these ``values``."""
        return TrainConfig(**{**self.settings, **values})

    def best(self, values: dict[str, Any]) -> TrainConfig:
        """Return the settings of a training with the best ``values``, on all that it may use."""
        whole = {} if self.final_validation is None else {"validation": self.final_validation}
        try:
            return self.config(**values, **whole)
        except UserError:  # early stopping needs a validation
            return self.config(**values)

    def spec(self) -> dict[str, Any]:
        """Return what the study keeps of it, as JSON values."""
        return {
            "space": {name: str(param) for name, param in self.space.items()},
            "settings": self.settings,
            "objective": ",".join(self.objectives),
            **{name: getattr(self, name) for name in ("seeds", "sampler", "pruner")},
            "final_validation": self.final_validation,
            "backend": self.backend,
        }


def check_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "Tuning needs Optuna, which is not installed. Type: pip install 'fmnist-keras3[tune]'"
        )


def check_options(given: Mapping[str, Any]) -> None:
    """Raise UserError for a value of `OPTIONS` that is not allowed."""
    for name, value in given.items():
        OPTIONS[name].check(value)
    _seconds(given.get("timeout"))


def _seconds(timeout: Any) -> float | None:
    from fmnist_keras3.training.arguments import seconds

    try:
        return None if timeout is None else seconds(timeout)
    except UserError as error:
        raise UserError(str(error).replace("max_time", "timeout")) from None


def new_plan(
    given: Mapping[str, Any],
    params: Any,
    chosen: Mapping[str, Any],
    typed: Mapping[str, Any],
    backend: str = "",
) -> Plan:
    """Return the plan of a new study; raises UserError for whatever cannot be.

    ``given`` are options of this table, ``params`` what `read_space` takes (empty: `DEFAULT`),
    ``chosen`` the settings, of which ``typed`` were given beside the parameters.
    """
    check_options(given)
    objectives = _objectives(given.get("objective", "accuracy"))
    if not params:
        params = {name: text for name, text in DEFAULT.items() if name not in typed}
    space = read_space(params)
    if not space:
        raise UserError('There is nothing to tune. Type --param "lr=log(1e-4,1e-1)"')
    for name in typed:
        if name in space:
            raise UserError(
                f"{name} is a parameter and an option, too. Leave --{name} or the --param out."
            )
    settings, final = _of_trials({**chosen}, typed)
    check_space(space, settings)
    plan = Plan(
        space,
        settings,
        objectives,
        **{name: given[name] for name in ("seeds", "sampler", "pruner", "trials") if name in given},
        timeout=_seconds(given.get("timeout")),
        final_validation=final,
        backend=backend,
    )
    _check_search(plan)
    return plan


def _of_trials(
    settings: dict[str, Any], typed: Mapping[str, Any]
) -> tuple[dict[str, Any], float | None]:
    """Return the settings of all trials, and their own validation if trials hold out another."""
    for name, why in (
        ("run_dir", "Each trial has a run directory in the study's folder"),
        ("resume", "A study goes on by itself: give --study and its name"),
        ("fast_dev_run", "fast_dev_run keeps no values to go by"),
        ("barebones", "barebones keeps no values to go by"),
    ):
        if settings.get(name):
            raise UserError(f"{why}. Leave --{name} out.")
    if settings.get("limit_val_batches") == 0 or typed.get("validation") == 0:
        name = "validation" if typed.get("validation") == 0 else "limit_val_batches"
        raise UserError(
            f"With {name} 0 there is no validation split, and trials are never chosen by the test "
            "set. Type --validation 0.1"
        )
    final = None
    if settings.get("validation") == 0:  # of a recipe, which trains on everything
        settings["validation"], final = HELD_OUT, 0.0
    config = TrainConfig(**settings)
    if config.epochs % config.check_val_every_n_epoch:
        raise UserError(
            f"check_val_every_n_epoch is {config.check_val_every_n_epoch}, so that the last of "
            f"{config.epochs} epochs has no validation. Leave it out."
        )
    # The warm-up that was not given goes by the schedule, which may be a parameter.
    return config.to_dict() | {n: settings.get(n) for n in ("recipe", "warmup")}, final


def _objectives(text: str) -> tuple[str, ...]:
    names = tuple(SAME.get(name.strip(), name.strip()) for name in text.split(","))
    for name in names:
        if name not in OBJECTIVES:
            raise UserError(
                f"There is no objective {name!r}.{nearest(name, [*OBJECTIVES, *SAME])} It must be "
                f"one or two of {', '.join(OBJECTIVES)}. Type --objective accuracy,parameters"
            )
    if len(names) > 2 or len(set(names)) < len(names):
        raise UserError(
            f"The objectives are {', '.join(names)}; they must be one, or two that differ. "
            "Type --objective accuracy,parameters"
        )
    return names


def _check_package(sampler: str) -> None:
    """Raise UserError where a sampler's own package is not installed."""
    needs = {"gp": "torch", "cmaes": "cmaes"}.get(sampler)
    if needs and importlib.util.find_spec(needs) is None:
        raise UserError(
            f"The sampler {sampler} needs {needs}, which is not installed. "
            f"Type: pip install {needs} (or --sampler tpe)."
        )


def _check_search(plan: Plan) -> None:
    """Raise UserError for a sampler or pruner that does not suit the rest."""
    ranges = [name for name, param in plan.space.items() if not param.choices]
    if plan.sampler == "grid" and ranges:
        raise UserError(
            f"The sampler grid takes lists, no ranges as that of {ranges[0]}. "
            f'Type --param "{ranges[0]}=[...,...]", or --sampler random'
        )
    if plan.sampler == "cmaes" and (len(ranges) < 2 or len(plan.objectives) > 1):
        why = "one objective" if len(plan.objectives) > 1 else "two or more ranges of numbers"
        raise UserError(f"The sampler cmaes needs {why}. Type --sampler tpe")
    _check_package(plan.sampler)
    if plan.pruner == "none":
        return
    if len(plan.objectives) > 1 or not set(plan.objectives) <= set(MEASURED):
        raise UserError(
            f"The pruner {plan.pruner} goes by accuracy or loss alone, and the objective is "
            f"{', '.join(plan.objectives)}. Leave --pruner or --objective out."
        )
    if plan.pruner == "wilcoxon":
        if plan.seeds < WILCOXON_SEEDS:
            raise UserError(
                f"The pruner wilcoxon compares seed by seed, and {plan.seeds} say too little. "
                f"Type --seeds {WILCOXON_SEEDS}, or --pruner median"
            )
    elif plan.epochs < 2:
        raise UserError(
            f"The pruner {plan.pruner} compares epochs, and a trial has one. Leave --pruner out."
        )


def stored_plan(
    spec: Mapping[str, Any],
    given: Mapping[str, Any],
    params: Any,
    typed: Mapping[str, Any],
    backend: str,
    study: str,
) -> Plan:
    """Return the plan of a study that is there, from its ``spec``; raises UserError for another."""
    settings = {name: value for name, value in spec["settings"].items() if name in SETTINGS}
    asked: dict[str, Any] = {"backend": backend}
    asked |= {name: given[name] for name in STORED if name in given}
    if "objective" in asked:
        asked["objective"] = ",".join(_objectives(asked["objective"]))
    stored = {name: spec[name] for name in ("backend", *STORED)}
    asked |= {name: str(param) for name, param in read_space(params or {}).items()}
    stored |= spec["space"]
    if params and (left := [name for name in spec["space"] if name not in asked]):
        raise UserError(f"The study {study} tunes {', '.join(left)}, too. {_ANOTHER}")
    asked |= {name: value for name, value in typed.items() if name != "data_dir"}
    stored |= {name: value for name, value in settings.items() if name not in stored}
    for name, value in asked.items():
        if value != stored.get(name):
            was = stored.get(name)
            raise UserError(f"The study {study} has {name} {was!r}, not {value!r}. {_ANOTHER}")
    check_options(given)
    _check_package(spec["sampler"])
    return Plan(
        read_space(spec["space"]),
        settings,
        tuple(spec["objective"].split(",")),
        **{name: spec[name] for name in ("seeds", "sampler", "pruner", "final_validation")},
        trials=given.get("trials", OPTIONS["trials"].default),
        timeout=_seconds(given.get("timeout")),
        backend=spec["backend"],
    )


_ANOTHER = "Leave it out to go on with the study, or give another name as --study."
