"""What an engine does, and what all engines share.

An engine compiles three kinds of program: `train` runs up to `chunk_steps` optimizer steps over a
chunk of batches that is on the device already, `infer` runs the forward pass over such a chunk, and
`jit` compiles what prepares a chunk (gathering, augmentation). The number of steps to run is an
argument of the program: a short chunk, or one of no steps, by which a program is compiled before
the clock starts, is no second compilation.

The engine owns the state while a session is open. `export_state` and `import_state` move it as a
list of named NumPy arrays; `sync_model` brings the Keras model up to date.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.engines.averages import Averages, batch_statistics, zeros_like
from fmnist_keras3.engines.chunk import Chunk, Device, StepLogs, StepPlan
from fmnist_keras3.engines.hyperparameters import Hyperparameters
from fmnist_keras3.engines.module_step import ModuleStep
from fmnist_keras3.engines.step import CompiledStep, Losses, Step
from fmnist_keras3.engines.world import World
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.fast import pooled_convolutions, traced_for_xla_cpu
from fmnist_keras3.module import Module
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.optimizers.group import OptimizerGroup


class Engine(ABC):
    """Trains one Keras model on one backend.

    ``step`` says what is computed on a batch, by default what the model was compiled for (see
    `step.CompiledStep`, which takes the other ``options``). ``averaging`` keeps averages of the
    weights beside them, ``accumulation`` sums of gradients, and ``gradient_norms`` has the norms
    reported. ``deterministic`` asks for programs that repeat to the bit, see `determinism`, and
    ``devices`` for several ("auto": all) that share each batch, and with ``shard`` "fsdp" large
    weights, too.
    """

    device: Device
    world: World = World()
    determinism_by: str  # what makes programs for a GPU deterministic

    def __init__(
        self,
        model: keras.Model,
        *,
        step: Step | None = None,
        chunk_steps: int = 128,
        averaging: bool = False,
        accumulation: bool = False,
        gradient_norms: bool = False,
        deterministic: bool | str | None = None,
        devices: int | str | None = None,
        shard: str | None = None,
        **options: Any,
    ):
        self.model = model
        self.step: Step = _step_of(model, **options) if step is None else step
        self.chunk_steps = chunk_steps
        self.deterministic = deterministic
        self._devices_asked, self._shard_asked = devices, shard
        self._norms_asked = gradient_norms
        self.optimizer = model.optimizer
        self.scales_loss = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        self.optimizer.build(model.trainable_variables)
        self.trains_all = _trains_all(model)
        self.averages = Averages(model) if averaging else None
        self.gradient_sums = [zeros_like(v) for v in model.trainable_variables * accumulation]
        self._programs: dict[Hashable, Callable] = {}  # those that prepare chunks
        self._pooled = pooled_convolutions(model)
        lr = self.optimizer.learning_rate
        # A Keras schedule inside the optimizer is the user's own, and stays in charge.
        self.sets_learning_rate = any(lr is v for v in self.optimizer.variables)
        self.device = self.find_device()
        self.hyperparameters = self._hyperparameters()
        self._compiled_from = self._what_it_is()

    def is_current(self) -> bool:
        """Tell whether the model is still what the programs were compiled from.

        Not so after another `compile`, in another precision, where a layer was frozen, or with
        another number that is not one of the `Hyperparameters`.
        """
        now = self._what_it_is()
        return len(now) == len(self._compiled_from) and all(
            a is b or (isinstance(a, str) and a == b)
            for a, b in zip(now, self._compiled_from, strict=True)
        )

    def adopt(self, model: keras.Model) -> bool:
        """Give the engine's model the weights, the optimizer and the numbers of ``model``.

        False, with nothing changed, where that is of another build.
        """
        numbers = self._hyperparameters(model)
        if not self.hyperparameters.same_build(numbers):
            return False
        model.optimizer.build(model.trainable_variables)
        mine = [*self.model.variables, *self.optimizer.variables]
        its = [*model.variables, *model.optimizer.variables]
        for variable, value in zip(mine, its, strict=True):
            variable.assign(value)
        self.hyperparameters.adopt(numbers)
        self.read_model()
        return True

    def program(self, key: Hashable, function: Callable, whole: bool = False) -> Callable:
        """Return ``function``, of arrays, compiled; the same one again for the same ``key``."""
        if key not in self._programs:
            self._programs[key] = self.jit(function, whole)
        return self._programs[key]

    @property
    def values_per_step(self) -> int:
        """How many values a step gives: loss, penalty, what it logs, norms of gradients."""
        norms = self._norms_asked * len(self.model.trainable_variables)
        return 2 + len(self.step.logged) + norms

    def step_values(self, losses: Losses, gradients: list[Any], scale: Any) -> list[Any]:
        """Return the values of a step, or of one phase, in their order.

        ``gradients`` are those of all trainable variables, of a loss times ``scale``, or None.
        """
        logged = [losses.logged.get(name, ops.zeros(())) for name in self.step.logged]
        values = [losses.loss, losses.penalty, *logged]
        if not self._norms_asked:
            return values
        parts = [ops.zeros(()) if g is None else ops.cast(g, "float32") for g in gradients]
        return [*values, *(ops.sqrt(ops.sum(ops.square(part / scale))) for part in parts)]

    def tracing(self) -> AbstractContextManager[None]:
        """Return the context in which the programs are traced: the layers take their fast form."""
        return traced_for_xla_cpu(self._takes_fast_forms, self._pooled)

    def _hyperparameters(self, model: keras.Model | None = None) -> Hyperparameters:
        by_xla, hashed = self.device.compiler == "xla", self._takes_fast_forms
        return Hyperparameters(model or self.model, by_xla=by_xla, hashed=hashed)

    @property
    def _takes_fast_forms(self) -> bool:
        return self.device.kind == "cpu" and self.device.compiler == "xla"

    def _what_it_is(self) -> list[Any]:
        """Return what programs of the model depend on and users change."""
        model = self.model
        compiled = keras_private.compiled_loss(model), keras_private.compiled_metrics(model)
        # A frozen BatchNormalization computes otherwise, also one without weights to train.
        layers = keras_private.all_layers(model)
        built = [f"{layer.dtype_policy.name} {layer.trainable}" for layer in layers]
        numbers = self._hyperparameters().constants
        parts = [model.optimizer, model.loss, *compiled, *model.trainable_variables]
        return [*parts, *built, *numbers]

    @abstractmethod
    def find_device(self) -> Device:
        """Return what the programs will run on."""

    @abstractmethod
    def jit(self, function: Callable, whole: bool = False) -> Callable:
        """Compile a function of arrays; each device gets ``whole`` results, or may get parts."""

    @abstractmethod
    def trace(self, folder: Path) -> AbstractContextManager[Any]:
        """Return the context in which the backend's own profiler writes into ``folder``."""

    def part(self, size: int) -> np.ndarray:
        """Return which examples of a batch of ``size`` this process, of many, has to have."""
        return np.arange(size)

    @abstractmethod
    def place(self, tree: Any, batch_axis: int | None = None, size: int | None = None) -> Any:
        """Copy arrays to the devices, which share batches: all, or the `part` of a ``size``."""

    def first(self, tree: Any, count: int) -> Any:
        """Return the first ``count`` examples of the first batch in arrays ``[K, B, ...]``."""
        return mapped(lambda array: array[:1, :count], tree)

    @abstractmethod
    def train(self, chunk: Chunk, plan: StepPlan) -> StepLogs:
        """Take ``chunk.count`` steps as ``plan`` says; waits for the device."""

    def infer(
        self, chunks: Iterable[Chunk], verb: str = "validate"
    ) -> tuple[dict[str, float], Any]:
        """Return mean loss and metrics over all chunks, and the outputs ``[N, ...]``.

        The outputs come in the model's structure; None if there was no example. For the ``verb``
        "predict" the loss is 0 and metrics say nothing; a `Module` has outputs for that one only.
        """
        verb = self.step.program_for(verb)
        loss, examples = 0.0, 0
        outputs: list[Any] = []
        metrics = self._begin_inference()
        try:
            for chunk in chunks:
                losses, predicted, metrics = self._infer_batches(chunk, metrics, verb)
                loss += float(losses[: chunk.count].sum(dtype=np.float64))
                for i, valid in enumerate(chunk.valid[: chunk.count].tolist()):
                    outputs.append(mapped(lambda a, i=i, valid=valid: a[i, :valid], predicted))
                    examples += valid
            results = self._inference_results(metrics, verb)
        finally:
            self._end_inference()
        logs = {"loss": loss / max(examples, 1)} if self.step.has_loss(verb) else {}
        logs |= results
        return logs, mapped(lambda *a: np.concatenate(a), *outputs) if outputs else None

    def update_statistics(self, chunks: Iterable[Chunk]) -> None:
        """Take the averages' statistics of BatchNormalization anew, from ``chunks``."""
        averages = self.averages
        if averages is None or not averages.statistics:
            return
        self.sync_model()
        weights = [to_numpy(v) for v in averages.weights]
        others = [to_numpy(v) for v in self.model.non_trainable_variables]
        function = partial(batch_statistics, self.model, self.step.forward, averages.places)
        program = self.program("statistics", function, whole=True)
        sums, batches = [0.0] * len(averages.statistics), 0
        for chunk in chunks:
            with self.tracing(), averages.batches_alone():
                found = program(weights, others, chunk.batches(), np.int32(chunk.count))
            batches += chunk.count
            sums = [total + to_numpy(part) for total, part in zip(sums, found, strict=True)]
        for variable, total in zip(averages.statistics, sums, strict=True):
            variable.assign(total / batches)

    def restart_averages(self) -> None:
        """Set the averages to what the weights are."""
        assert self.averages is not None
        self.sync_model()
        for variable, average in self.averages.pairs:
            average.assign(to_numpy(variable))
        self.read_model()

    def swap_averages(self) -> None:
        """Exchange the weights with their averages; a second time puts all back as it was."""
        assert self.averages is not None
        self.sync_model()
        for variable, average in self.averages.pairs:
            value = to_numpy(variable)
            variable.assign(to_numpy(average))
            average.assign(value)
        self.read_model()

    @abstractmethod
    def _begin_inference(self) -> Any:
        """Return fresh metric sums; those of the training are kept."""

    @abstractmethod
    def _infer_batches(self, chunk: Chunk, metrics: Any, verb: str) -> tuple[np.ndarray, Any, Any]:
        """Return summed losses ``[K]``, outputs ``[K, B, ...]`` and the metric sums after them."""

    @abstractmethod
    def _inference_results(self, metrics: Any, verb: str) -> dict[str, float]:
        """Return the results of the metric sums."""

    def _end_inference(self) -> None:  # noqa: B027 - an engine may keep them apart
        """Bring back the metric sums of the training, also after an exception."""

    @abstractmethod
    def metric_results(self) -> dict[str, float]:
        """Return the training metrics since `reset_metrics`."""

    @abstractmethod
    def reset_metrics(self) -> None:
        """Start the training metrics anew, as at the beginning of an epoch."""

    @abstractmethod
    def sync_model(self) -> bool:
        """Copy the state into the Keras model and its optimizer.

        False where there is none any more: a program failed that had taken it over.
        """

    @abstractmethod
    def read_model(self) -> None:
        """Take the state from the Keras model and its optimizer, the reverse of `sync_model`."""

    def determinism(self) -> tuple[bool, str]:
        """Tell whether equal runs give equal bits on this device with these versions, and why."""
        if self.device.kind == "cpu":
            return True, "XLA's programs for CPUs always are"
        if self.device.kind != "gpu":
            return False, f"nothing is known of the platform {self.device.kind!r}"
        if self.deterministic:
            return True, self.determinism_by
        return False, "not asked for: programs for GPUs may add in any order"

    @staticmethod
    @abstractmethod
    def out_of_memory(error: BaseException) -> bool:
        """Tell whether ``error`` is the backend's, for a device whose memory is too small."""

    @abstractmethod
    def peak_memory_mb(self) -> float | None:
        """Return the device's peak memory in MB, or None where the host's memory is its."""

    @property
    def variables(self) -> list[tuple[str, keras.Variable]]:
        """All state in a fixed order: weights, seeds, optimizer, metrics, averages, gradients."""
        groups = {
            "model": self.model.trainable_variables + self.model.non_trainable_variables,
            "optimizer": self.optimizer.variables,
            "metrics": self.step.variables,
        }
        named = [(f"{group}/{v.path}", v) for group, vs in groups.items() for v in vs]
        averages = self.averages.named if self.averages is not None else []
        named += [(f"averages/{path}", v) for path, v in averages]
        sums = zip(self.model.trainable_variables, self.gradient_sums, strict=False)
        group = "scaled_gradients" if self.scales_loss else "gradients"
        return named + [(f"optimizer/{group}/{of.path}", v) for of, v in sums]

    def learning_rate(self) -> float:
        """Return the optimizer's learning rate as it stands in the Keras model."""
        return float(to_numpy(self.optimizer.learning_rate))

    def iterations(self) -> int:
        """Return how many batches the optimizer has seen, as it stands in the Keras model."""
        return int(to_numpy(keras_private.batches_seen(inner_optimizer(self.optimizer))))

    def scheduled_rates(self, iterations: np.ndarray) -> np.ndarray:
        """Return what the optimizer's own schedule gives for ``iterations [K]``, float32."""
        rate = keras_private.rate_or_schedule(inner_optimizer(self.optimizer))
        schedule = partial(ops.vectorized_map, rate)
        program = self.program("learning rates", schedule, whole=True)
        return to_numpy(program(iterations.astype(np.int32))).astype(np.float32)

    def set_learning_rate(self, rate: float) -> None:
        """Set the optimizer's learning rate in the Keras model, unless it follows a schedule."""
        if self.sets_learning_rate:
            self.optimizer.learning_rate.assign(rate)

    def finish_optimizer(self) -> None:
        """Let the optimizer have its last word on the weights (their average by ``use_ema``)."""
        self.sync_model()
        self.optimizer.finalize_variable_values(self.model.trainable_variables)
        self.read_model()

    def export_state(self) -> list[tuple[str, np.ndarray]]:
        """Return the whole training state as named arrays, copied to the host."""
        if not self.sync_model():
            raise RuntimeError("The training state was lost with the program that failed.")
        return [(name, to_numpy(variable)) for name, variable in self.variables]

    def import_state(self, arrays: list[tuple[str, np.ndarray]]) -> None:
        """Set the whole state; names must be checked by the caller (`matching.adopt`)."""
        for (_, variable), (_, array) in zip(self.variables, arrays, strict=True):
            variable.assign(array)
        self.read_model()


def _step_of(model: keras.Model, **options: Any) -> Step:
    kind = ModuleStep if isinstance(model, Module) else CompiledStep
    return kind(model, **options)


def to_numpy(variable: Any) -> np.ndarray:
    """Return a Keras variable's value, copied to the host."""
    # Not np.array(variable): Keras' variables do not know NumPy 2's `copy` argument.
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def averaged(average: Any, value: Any, share: Any) -> Any:
    """Return the average with ``share`` of ``value`` in it; exactly one of them for 0 and 1."""
    share = ops.cast(share, average.dtype)
    return (1 - share) * average + share * value


def _trains_all(model: keras.Model) -> bool:
    """Tell whether the optimizer was built for just the weights that are trained now.

    Raises UserError where it was built without one of them, as where a layer was unfrozen since,
    or where it keeps more beside its weights than its updates.
    """
    optimizer = inner_optimizer(model.optimizer)
    known = keras_private.trained_by(optimizer)
    now = model.trainable_variables
    if len(known) == len(now) and all(a is b for a, b in zip(known, now, strict=True)):
        return not isinstance(model.optimizer, OptimizerGroup)  # which has no `stateless_apply`
    needs_all = optimizer.use_ema or optimizer.gradient_accumulation_steps
    needs_all = needs_all or optimizer is not model.optimizer  # with loss scaling
    if needs_all or {id(v) for v in now} - {id(v) for v in known}:
        raise UserError(
            "The optimizer was built for other weights than those that are trained now; a layer "
            "was frozen or unfrozen since. Call model.compile(...) again, with a new optimizer."
        )
    return False
