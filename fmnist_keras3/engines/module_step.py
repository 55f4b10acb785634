"""The steps of a `Module`, as a value that an engine is given."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.chunk import Batch
from fmnist_keras3.engines.metrics import numbers
from fmnist_keras3.engines.step import Losses, Phase, penalty_of, phases_of
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.ground.user_code import explained_at
from fmnist_keras3.layers import keras_private
from fmnist_keras3.module import Logged, Module, check_scalar, running
from fmnist_keras3.optimizers.group import OptimizerGroup

STEPS = {"train": "training_step", "validate": "validation_step", "test": "test_step"}
_PREFIXES = ("val_", "test_", "train_")  # of names that are logged in a validation or test


class ModuleStep:
    """What a `Module` computes on a batch; the arguments are those of `CompiledStep`.

    All steps are run once on symbols, with the shapes of ``example``, to build the layers and to
    see what they log. Raises UserError for one that cannot be compiled, with the line of it.
    """

    fills_training = fills_evaluation = False  # a step may look at all examples of a batch at once

    def __init__(
        self,
        model: Module,
        example: Split | None = None,
        *,
        label_smoothing: float = 0.0,
        fill_last_batch: bool = False,
    ) -> None:
        given = {"label_smoothing": label_smoothing, "last_batch='fill'": fill_last_batch}
        for name, value in given.items():
            if value:
                raise UserError(
                    f"{name} is for a compiled model; {type(model).__name__} is a Module, whose "
                    "training_step says what the loss is. Leave it out."
                )
        if example is None:
            raise UserError(f"{type(model).__name__} is a Module, which needs data to be built.")
        self.model = model
        self.loss_obstacles = [f"{type(model).__name__}.training_step"]
        self._example = example
        self._means: dict[str, keras.metrics.Mean] = {}
        self._used: dict[str, set[str]] = {}  # names of what the step of a verb measures
        self._refused: dict[str, UserError] = {}  # what is wrong with the step of a verb
        self.logged: list[str] = []  # names of the values of single steps
        self.progress: list[str] = []  # names on the progress bar
        self._without_loss: set[str] = set()  # verbs whose steps neither return nor log one
        make_ready(model, example)
        self.phases = phases_of(model)
        for verb in STEPS:
            try:
                self._look(verb)
            except UserError as error:
                # A validation there may be none of; without labels, none can be trained with.
                if verb == "train" and example.y is not None:
                    raise
                self._refused[verb] = error
        self.known = "train" not in self._refused
        self._own = {metric.name: metric for metric in model.metrics}
        names = [metric.name for metric in model.metrics]
        if twice := sorted({n for n in names if names.count(n) > 1 or n in self._means}):
            raise UserError(
                f"{type(model).__name__} measures {', '.join(twice)} twice. Give each metric and "
                "each logged value a name of its own: keras.metrics.Mean(name='mine')."
            )
        self.variables = [
            v for m in (*self._means.values(), *self._own.values()) for v in m.variables
        ]

    def program_for(self, verb: str) -> str:
        """Return the verb that has the same program: a test is mostly a validation.

        Raises UserError, with the line, where the step of the verb cannot be compiled.
        """
        self._check(verb)
        return "validate" if verb == "test" and not _overrides(self.model, "test_step") else verb

    def train(self, batch: Batch, phase: Phase | None = None) -> Losses:
        """Run `training_step`, for the optimizer of ``phase``, and return the losses."""
        name = phase.name if phase is not None else None
        self._check("train")
        loss, logged = _run(self.model, "train", _given(batch), name)
        self._count(logged, batch.valid)
        penalty = penalty_of(self.model)
        values = {n: ops.cast(v.value, "float32") for n, v in logged.items() if v.on_step}
        return Losses(loss + penalty, loss, penalty, values)

    def evaluate(self, batch: Batch, verb: str) -> tuple[Any, Any]:
        """Run the step of ``verb``; return the summed loss, and for "predict" the outputs."""
        if verb == "predict":
            return ops.zeros(()), self._predict(batch.x)
        loss, logged = _run(self.model, verb, _given(batch), None)
        self._count(logged, batch.valid)
        loss = ops.zeros(()) if loss is None else loss
        return loss * ops.cast(batch.valid, "float32"), ()

    def forward(self, batch: Batch) -> None:
        """Run `training_step` for what it does to variables."""
        for phase in self.phases:
            _run(self.model, "train", _given(batch), phase.name)

    def has_loss(self, verb: str) -> bool:
        """Tell whether the step of ``verb`` returns a loss, or logs one."""
        return verb not in self._without_loss

    def output_spec(self, x: Any, verb: str) -> Any:
        """Return the outputs of ``verb`` for ``x [B, ...]`` as KerasTensors."""
        if verb != "predict":
            return ()
        return keras_private.spec_of(self._predict, _symbols(x))

    def results(self, verb: str = "train") -> dict[str, float]:
        """Return what was logged, and the module's own metrics, since `reset`."""
        metrics = {**self._own, **self._means}
        return numbers(
            {
                _shown(name, verb): metrics[name].result()
                for name in sorted(self._used.get(verb, ()))
            }
        )

    def reset(self) -> None:
        """Begin the sums anew."""
        for metric in (*self._means.values(), *self._own.values()):
            metric.reset_state()

    def _predict(self, x: Any) -> Any:
        with keras_private.layers_called(training=False):
            return _call(self.model, "predict_step", x)

    def _check(self, verb: str) -> None:
        if verb in self._refused:
            raise self._refused[verb]

    def _count(self, logged: dict[str, Logged], examples: Any) -> None:
        for name, value in logged.items():
            if value.on_epoch and name in self._means:
                self._means[name].update_state(value.value, sample_weight=examples)

    def _look(self, verb: str) -> None:
        """Run a step on symbols, to see what it logs and which metrics it updates."""
        if verb != "train" and _takes_optimizer(self.model) and not _measures(self.model, verb):
            raise UserError(
                f"{type(self.model).__name__} has several optimizers, and no {STEPS[verb]}. Write "
                "one, or leave the validation out: Trainer(limit_val_batches=0)."
            )
        used = self._used.setdefault(verb, set())
        for phase in self.phases if verb == "train" else self.phases[:1]:
            name = phase.name if verb == "train" else None
            loss, logged, updated, made = _traced(self.model, verb, self._example, name)
            if loss is None:
                self._without_loss.add(verb)
            if made:
                with explained_at(type(self.model), STEPS[verb]):
                    raise UserError(
                        "makes a layer or a variable each time it runs. Make it in __init__, and "
                        "only use it in the step."
                    )
            for key, value in logged.items():
                if value.on_epoch and key not in self._means:
                    self._means[key] = keras.metrics.Mean(name=key)
                if verb == "train" and value.on_step and key not in self.logged:
                    self.logged.append(key)
                if value.prog_bar and (shown := _shown(key, verb)) not in self.progress:
                    self.progress.append(shown)
            used |= updated | {key for key, value in logged.items() if value.on_epoch}


def example_of(split: Split) -> dict[str, Any]:
    """Return shape and dtype of an example, for a run's config; of arrays only."""
    first = split.read(slice(1))
    parts = {"x": first.x, "y": first.y, "weight": first.weight}
    found = {
        name: {"shape": list(a.shape[1:]), "dtype": a.dtype.name}
        for name, a in parts.items()
        if isinstance(a, np.ndarray)
    }
    return {"views": split.views, **found}


def build_for(model: Module, example: dict[str, Any]) -> None:
    """Make the weights of a Module, for the ``example_of`` a run."""
    if not model.built and "x" not in example:
        raise UserError(
            f"{type(model).__name__} cannot be built from its run, whose data is no plain array. "
            "Make the module, and give fit, test or predict the ckpt_path."
        )
    if not model.built:
        made = {"y": None, **example}
        for name in made.keys() - {"views"}:
            if (of := made[name]) is not None:
                made[name] = np.zeros((1, *of["shape"]), of["dtype"])
        make_ready(model, Split(**made))


def _run(
    model: Module, verb: str, batch: Any, optimizer: str | None, *, builds: bool = False
) -> tuple[Any, dict[str, Logged]]:
    """Run a step; return the loss, float32, and what it logged.

    The loss of a validation or test may be None. Layers train in a training step only, unless they
    are told otherwise, and not where the step ``builds`` them: a `keras.Sequential` keeps how its
    layers were called first, and does so again whenever the user calls it.
    """
    name = STEPS[verb]
    with (
        explained_at(type(model), name),
        running(name) as step,
        keras_private.layers_called(training=verb == "train" and not builds),
    ):
        found = getattr(model, name)(batch, *([] if optimizer is None else [optimizer]))
        loss = found.get("loss") if isinstance(found, dict) else found
        if verb == "train":
            _check_loss(found, loss)
        elif loss is None:
            logged = {_shown(key, verb): value.value for key, value in step.logged.items()}
            loss = logged.get("loss")
        if loss is not None:
            check_scalar(loss, "returns")
            loss = ops.cast(loss, "float32")
    return loss, step.logged


def _check_loss(found: Any, loss: Any) -> None:
    if isinstance(found, dict) and loss is None:
        raise UserError(f"returns a dict without 'loss': {', '.join(map(str, found))}.")
    if isinstance(loss, (int, float)):
        raise UserError(
            f"returns the number {loss}, which depends on no weight; it must return the loss, a "
            "scalar tensor."
        )
    check_scalar(loss, "returns")


def _call(model: Module, name: str, *arguments: Any) -> Any:
    with explained_at(type(model), name):
        return getattr(model, name)(*arguments)


def _traced(
    model: Module, verb: str, example: Split, optimizer: str | None, *, builds: bool = False
) -> tuple[Any, dict[str, Logged], set[str], int]:
    """Run a step on symbols.

    Returns the loss, what is logged, the names of the metrics that are updated, and how many
    variables are made.
    """
    found: dict[str, Any] = {}

    def run(*parts: Any) -> Any:
        before = keras_private.unmade_variables()
        with keras.StatelessScope() as scope:
            found["loss"], found["logged"] = _run(
                model, verb, _packed(parts), optimizer, builds=builds
            )
            found["updated"] = {
                metric.name
                for metric in model.metrics
                if any(scope.get_current_value(v) is not None for v in metric.variables)
            }
        found["made"] = keras_private.unmade_variables() - before

    views = example.views if verb == "train" else 1
    x = example.x if views == 1 else (example.x,) * views
    parts = [p for p in (x, example.y, example.weight) if p is not None]
    keras_private.spec_of(run, *map(_symbols, parts))
    return found["loss"], found["logged"], found["updated"], found["made"]


def make_ready(model: Any, example: Split, *, predicts: bool = False) -> None:
    """Make the weights of a Module, by running it on symbols, and its optimizers, once.

    Nothing for another model. ``predicts``: ``example`` holds what `predict_step` takes.
    """
    if not isinstance(model, Module):
        return
    for name in STEPS.values():
        if "batch_idx" in inspect.signature(getattr(model, name)).parameters:
            with explained_at(type(model), name):
                raise UserError(
                    "takes batch_idx, which there is none of here: a step is compiled once for all "
                    f"batches. Type def {name}(self, batch)"
                )
    # The user may have called the module already; then what only the steps use has no weights yet.
    if not all(layer.built for layer in keras_private.all_layers(model)):
        with warnings.catch_warnings():
            # `call` may leave layers to the steps, as the decoder of an autoencoder.
            warnings.filterwarnings("ignore", r"`build\(\)` was called on layer", UserWarning)
            _build(model, example, predicts)
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None and not int(keras_private.batches_seen(optimizer)):
            model.optimizer = None  # of a predict before the fit, whose data did not build all
    model.set_optimizers()
    if _takes_optimizer(model) and not isinstance(model.optimizer, OptimizerGroup):
        with explained_at(type(model), "training_step"):
            raise UserError(
                "takes the name of an optimizer, of which there is one only. Type def "
                "training_step(self, batch), or return a dict of several from configure_optimizers."
            )


def _build(model: Module, example: Split, predicts: bool) -> None:
    """Make the weights, by running all that there is on symbols."""
    if predicts:  # first: other steps may take the inputs alone for something else
        with contextlib.suppress(UserError), keras_private.layers_called(training=False):
            keras_private.spec_of(lambda x: _call(model, "predict_step", x), _symbols(example.x))
    names: list[Any] = [None]
    if _takes_optimizer(model):
        given = _call(model, "configure_optimizers")
        names = [*given] if isinstance(given, dict) else []
    for name in names:
        # Without labels, a module may only predict.
        with contextlib.nullcontext() if example.y is not None else contextlib.suppress(UserError):
            _traced(model, "train", example, name, builds=True)
    for verb in (verb for verb in STEPS if _overrides(model, STEPS[verb])):
        with contextlib.suppress(UserError):  # which is told where the step is needed
            _traced(model, verb, example, None)
    if type(model).call is not keras.Model.call:
        # After the steps: of a GAN it takes noise, and would build its generator for images.
        with contextlib.suppress(Exception):
            keras_private.spec_of(model, _symbols(example.x))
    model.built = True


def _given(batch: Batch) -> Any:
    return _packed([part for part in (batch.x, batch.y, batch.weight) if part is not None])


def _packed(parts: Any) -> Any:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _symbols(arrays: Any) -> Any:
    return mapped(lambda a: keras.KerasTensor(a.shape, a.dtype.name), arrays)


def _takes_optimizer(model: Module) -> bool:
    return len(inspect.signature(model.training_step).parameters) > 1


def _measures(model: Module, verb: str) -> bool:
    """Tell whether the step of ``verb`` is more than the training's."""
    return any(_overrides(model, name) for name in ("validation_step", STEPS[verb]))


def _overrides(model: Module, name: str) -> bool:
    return getattr(type(model), name) is not getattr(Module, name)


def _shown(name: str, verb: str) -> str:
    """Return a name that was logged; in a validation as callbacks see it after ``val_``."""
    if verb == "train":
        return name
    return next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
